"""A model as a program: calls, sizes, derivatives, initialisation, and what cannot be stored.

That it computes what the model does, bit by bit, is in `test_program_elsewhere.py`.
"""

import json
import sys

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer
from jaxlayer_core import MissingDependencyError, ModuleError, SignatureError, StructureError
from jaxlayer_core.errors import ProgramError
from jaxlayer_core.program import Program, export_program
from jaxlayer_core.program_layer import ProgramLayer

from . import program_exercise, program_models
from .program_models import copied, example, floats, stored


def pair(name):
    """A layer, and the one that runs its program with its variables."""
    layer = program_models.MODELS[name]()
    args, kwargs = example(name)
    layer(*args, **kwargs)
    other = ProgramLayer.from_config(stored(layer))
    other(*args, **kwargs)
    return layer, copied(layer, other)


def loaded(layer, *calls):
    """The layer that runs the program of a layer, after some calls."""
    for args, kwargs in calls:
        layer(*args, **kwargs)
    program = Program.from_config(json.loads(json.dumps(layer.to_program().get_config())))
    return copied(layer, build(ProgramLayer(program), calls[0]))


def build(layer, call):
    layer(*call[0], **call[1])
    return layer


def test_the_exercises_notice():
    """Another number in one weight, and nothing in `test_program_elsewhere.py` passes."""
    layer, other = pair("weight_norm")
    calls = [example("weight_norm"), example("weight_norm", 6)]
    other.variables[0].assign(other.variables[0] + 1e-3)
    for run in program_exercise.EXERCISES.values():
        expected, got = run(layer, calls), run(other, calls)
        assert any(not np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_program_of_a_program_is_the_same():
    layer, other = pair("haiku_lambda")
    (x,), _ = example("haiku_lambda")
    again = ProgramLayer.from_config(json.loads(json.dumps(other.get_config())))
    assert again.program.get_config() == other.program.get_config()
    again(x)
    copied(other, again)
    np.testing.assert_array_equal(again(x), layer(x))


def test_blobs_are_stored_once_and_hold_no_paths_of_files():
    layer, _ = pair("statics")
    program = layer.to_program()
    assert len(program.calls) == 2  # both modes, which are the same for this model
    assert len({call.blob for call in program.calls}) == 1
    content = b"".join(blob.unpack() for blob in program.library.blobs.values())
    if jax.__version_info__ >= (0, 10):  # an older JAX has no setting that leaves all of them out
        assert b".py" not in content


def test_weights_are_no_part_of_it():
    layer = FlaxLayer(nn.Dense(1000))
    layer(floats(2, 500))
    assert len(json.dumps(layer.to_program().get_config())) < 40_000


class TestInitialisation:
    def test_a_copy_is_initialised_as_the_model_is(self):
        layer, _ = pair("cnn")
        other = ProgramLayer(layer.to_program(), seed=1)
        other.build((None, 8, 8, 2))
        for own, theirs in zip(layer.variables, other.variables, strict=True):
            assert own.path.split("/")[1:] == theirs.path.split("/")[1:]
            np.testing.assert_allclose(own, theirs, rtol=1e-6)  # compiled, and so rounded

    def test_data_that_it_depends_on_are_used(self):
        layer = program_models.weight_norm()
        x = floats(5, 3)
        layer(x)
        other = ProgramLayer(layer.to_program(), seed=1)
        other(2 * x)
        one, two = (np.array(each.params["params"]["scale"]) for each in (layer, other))
        np.testing.assert_allclose(one, 2 * two, rtol=1e-6)

    def test_other_features_are_refused(self):
        layer, _ = pair("haiku_lambda")
        other = ProgramLayer(layer.to_program())
        with pytest.raises(
            SignatureError, match=r"can only be initialised as it was then: .*, 4\]"
        ):
            other.build((None, 5))

    def test_without_one_variables_are_zeros_until_weights_are_loaded(self):
        weights = {"w": np.ones((3, 2), "float32"), "kind": "linear"}
        layer = JaxLayer(lambda params, inputs: inputs @ params["w"], params=weights)
        x = floats(4, 3)
        layer(x)
        other = ProgramLayer(layer.to_program())
        np.testing.assert_array_equal(other(x), np.zeros((4, 2)))
        np.testing.assert_array_equal(copied(layer, other)(x), layer(x))
        given = ProgramLayer(layer.to_program(), params=weights)
        np.testing.assert_array_equal(given(x), layer(x))


class TestSizes:
    def test_an_unknown_time_dimension(self):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.Dense(4)(x)
                return nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(num_heads=2)(x, x))

        layer = FlaxLayer(Block())
        layer(keras.Input((None, 3)))
        other = copied(layer, build(ProgramLayer(layer.to_program()), ((floats(2, 5, 3),), {})))
        for batch, time in ((2, 5), (3, 9), (1, 1)):
            x = floats(batch, time, 3)
            np.testing.assert_array_equal(other(x), layer(x))
        model = keras.Sequential([keras.Input((None, 3)), other])
        assert model.output_shape == (None, None, 4)
        spread = keras.layers.TimeDistributed(other)(floats(2, 3, 5, 3))
        np.testing.assert_allclose(spread[:, 1], layer(floats(2, 3, 5, 3)[:, 1]), rtol=1e-5)

    def test_an_input_without_examples_keeps_its_size(self):
        def net(x, table):
            return hk.Linear(2)(x) + table @ jnp.ones((7, 2))

        layer = HaikuLayer(hk.transform(lambda x, table: net(x, table)))
        other = loaded(layer, ((floats(4, 3), floats(7)), {}))
        x, table = floats(5, 3), floats(7, seed=1)
        np.testing.assert_array_equal(other(x, table), layer(x, table))
        assert [form.shape[0] for form in other.program.calls[0].inputs] == [7, "d1_0"]

    def test_a_model_for_known_sizes_only(self):
        def net(x):
            return hk.Linear(2)(x.reshape(int(x.shape[0]) // 2, 6))

        layer = HaikuLayer(hk.transform(lambda x: net(x)))
        other = loaded(layer, ((floats(4, 3),), {}))
        np.testing.assert_array_equal(other(floats(4, 3)), layer(floats(4, 3)))
        with pytest.raises(SignatureError, match=r"(?s)Expected.*x=float32\[4, 3\].*Got.*\[6, 3\]"):
            other(floats(6, 3))

    def test_a_model_that_wants_two_examples_at_least(self):
        def net(x):
            if x.shape[0] < 2:
                raise ValueError("too few")
            return hk.Linear(2)(x)

        layer = HaikuLayer(hk.transform(lambda x: net(x)))
        other = loaded(layer, ((floats(4, 3),), {}))
        np.testing.assert_array_equal(other(floats(2, 3)), layer(floats(2, 3)))
        with pytest.raises(SignatureError, match="open sizes at least 2"):
            other(floats(1, 3))


class TestCalls:
    @pytest.fixture
    def layers(self):
        class Coder(nn.Module):
            def setup(self):
                self.encoder, self.decoder = nn.Dense(3), nn.Dense(4)

            def __call__(self, x):
                return self.decode(self.encode(x))

            def encode(self, x, scale=1.0, activation=jnp.tanh):
                return activation(self.encoder(x) * scale)

            def decode(self, z):
                return self.decoder(z)

        layer, x = FlaxLayer(Coder()), floats(4, 4)
        calls = [
            ((x,), {}),
            ((x,), {"method": "encode"}),
            ((x,), {"method": "encode", "scale": 2.0}),
            ((floats(4, 3),), {"method": "decode"}),
        ]
        return layer, loaded(layer, *calls), x

    def test_several_methods(self, layers):
        layer, other, x = layers
        np.testing.assert_array_equal(other(x), layer(x))
        z = other(x, method="encode")
        np.testing.assert_array_equal(z, layer(x, method="encode"))
        np.testing.assert_array_equal(other(z, method="decode"), layer(z, method="decode"))

    def test_all_spellings_are_one_call(self, layers):
        layer, other, x = layers
        twice, once = layer(x, method="encode", scale=2.0), layer(x, method="encode")
        for args, kwargs in (((x, 2.0), {}), ((), {"x": x, "scale": 2.0})):
            np.testing.assert_array_equal(other(*args, **kwargs, method="encode"), twice)
        np.testing.assert_array_equal(other(x, 1.0, method="encode"), once)

    @pytest.mark.parametrize(
        ("kwargs", "wanted"),
        [
            ({"method": "encode", "scale": 3.0}, r"encode\(scale=3.0, x=float32\[4, 4\]\)"),
            ({"method": "encode", "scale": 2}, r"encode\(scale=2, "),
            ({"method": "encode", "activation": lambda x: x}, "no data can express"),
            ({"method": "other"}, "the method 'other'"),
        ],
        ids=["static", "type", "lambda", "method"],
    )
    def test_another_call_says_what_there_is(self, layers, kwargs, wanted):
        _, other, x = layers
        with pytest.raises(SignatureError, match=wanted) as caught:
            other(x, **kwargs)
        assert "decode(z=float32[None, 3]) in inference" in str(caught.value)
        assert "encode(scale=2.0, x=float32[None, 4]) in training" in str(caught.value)

    @pytest.mark.parametrize(
        ("value", "got"),
        [(floats(4, 5), r"float32\[4, 5\]"), (np.ones((4, 4), "int32"), r"int32\[4, 4\]")],
    )
    def test_other_arrays_say_what_is_expected(self, layers, value, got):
        _, other, _ = layers
        with pytest.raises(SignatureError, match=rf"(?s)x=float32\[None, 4\].*Got.*x={got}"):
            other(value)

    def test_another_structure(self, layers):
        _, other, x = layers
        with pytest.raises(SignatureError, match=r"x\.0=float32\[4, 4\]"):
            other([x])

    def test_other_variables(self, layers):
        _, other, x = layers
        call, params, state = other.to_pure()
        del params["params"]["encoder"]["kernel"]
        with pytest.raises(StructureError, match=r"at `params/encoder/kernel`.*nothing"):
            call(params, state, jax.random.key(0), x)

    def test_node_types_with_the_same_names_are_one(self):
        layer, other = pair("containers")
        (one,), kwargs = example("containers")
        expected = layer(one, **kwargs)["pair"].value
        np.testing.assert_array_equal(other(one._asdict(), **kwargs)["pair"].value, expected)
        more = other(one, **kwargs)["more"]
        assert (type(more).__name__, more._fields) == ("Outputs", ("logits", "extra"))

    def test_a_mode_stated_by_its_flag(self):
        layer, other = pair("haiku_lambda")
        x = floats(4, 4)
        np.testing.assert_array_equal(other(x, is_training=False), layer(x, is_training=False))
        np.testing.assert_array_equal(other(x, is_training=True), layer(x, is_training=True))


def test_only_a_model_that_draws_moves_its_seed():
    for model, training, moves in (("cnn", True, 1), ("cnn", False, 0), ("statics", True, 0)):
        _, other = pair(model)
        args, kwargs = example(model)
        before = np.array(other.seed_generator.state)
        other(*args, training=training, **kwargs)
        assert np.array(other.seed_generator.state)[1] - before[1] == moves


def test_what_is_frozen_stays():
    layer, other = pair("cnn")
    for one in (layer, other):
        one.freeze("Conv_0|batch_stats")
    before = {v.path: np.array(v) for v in other.weights}
    program_exercise.fitted(other, [example("cnn")])
    changed = {v.path for v in other.weights if not np.array_equal(before[v.path], v)}
    assert changed == {v.path for v in other.trainable_weights}
    assert len(changed) == len(layer.trainable_weights) == 4


def test_rematerialised():
    layer, _ = pair("cnn")
    config = {**stored(layer), "remat": True}
    other = copied(layer, build(ProgramLayer.from_config(config), example("cnn")))
    calls = [example("cnn")]
    pairs = zip(*(program_exercise.five_steps(one, calls) for one in (other, layer)), strict=True)
    for one, two in pairs:
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_a_saved_model_with_it(tmp_path):
    _, other = pair("cnn")
    model = keras.Sequential([keras.Input((8, 8, 2)), other, keras.layers.Dense(2)])
    (x,), _ = example("cnn", 6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


class TestDerivatives:
    @pytest.fixture
    def functions(self):
        layer = HaikuLayer(hk.transform(lambda x: jnp.tanh(hk.Linear(2)(x))))
        other = loaded(layer, ((floats(4, 3),), {}))

        def scalar(one):
            call, params, state = one.to_pure()
            return lambda x: jnp.sum(call(params, state, jax.random.key(0), x)[0] ** 2)

        return scalar(layer), scalar(other)

    def test_vmap_and_reverse_mode_together(self, functions):
        x = floats(5, 1, 3)
        for transform in (
            jax.vmap,
            lambda f: jax.vmap(jax.grad(f)),
            lambda f: jax.grad(lambda x: jax.vmap(f)(x).sum()),
            lambda f: jax.jit(jax.vmap(jax.grad(f))),
        ):
            expected, got = (transform(f)(x) for f in functions)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_second_derivatives_are_refused(self, functions, wrap):
        _, program = functions
        twice = jax.grad(lambda x: jnp.sum(jax.grad(program)(x)))
        with pytest.raises(ProgramError, match="function can only be differentiated once"):
            wrap(twice)(floats(4, 3))

    def test_forward_mode_is_refused_by_jax(self, functions):
        x = floats(4, 3)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(functions[1], (x,), (x,))

    def test_forward_mode_of_the_layer(self):
        layer = HaikuLayer(hk.transform(lambda x: jnp.tanh(hk.Linear(2)(x))))
        other = loaded(layer, ((floats(4, 3),), {}))
        x = jnp.asarray(floats(4, 3))
        with pytest.raises(ModuleError, match="forward-mode"):
            jax.jvp(lambda x: other(x), (x,), (x,))

    def test_a_model_without_a_gradient(self):
        def net(x):
            x = hk.Linear(3)(x)
            return jax.lax.while_loop(lambda c: c.sum() < 99, lambda c: jnp.abs(c) * 2 + 1, x)

        layer = HaikuLayer(hk.transform(lambda x: net(x)))
        x = floats(4, 3)
        other = loaded(layer, ((x,), {}))
        np.testing.assert_array_equal(other(x), layer(x))
        with pytest.raises(ProgramError, match=r"no gradient, .*while_loop"):
            jax.grad(lambda x: other(x).sum())(jnp.asarray(x))


class TestNotStorable:
    def test_no_call(self):
        layer = FlaxLayer(nn.Dense(2))
        with pytest.raises(ProgramError, match="no call of it is known"):
            export_program(layer._methods, [], layer._params, layer._state)

    def test_a_callback(self):
        def net(x):
            jax.debug.print("{}", x.sum())
            return hk.Linear(2)(x)

        layer = HaikuLayer(hk.transform(lambda x: net(x)))
        layer(floats(4, 3))
        message = r"__call__\(float32\[4, 3\]\) of the Haiku function in inference.*custom_objects"
        with pytest.raises(ProgramError, match=f"(?s){message}") as caught:
            layer.to_program()
        assert isinstance(caught.value.__cause__, NotImplementedError)

    def test_an_argument_that_no_data_can_express(self):
        layer = HaikuLayer(hk.transform(lambda x, f: f(hk.Linear(2)(x))))
        layer(floats(4, 3), lambda x: x)
        with pytest.raises(ProgramError, match=r"that no data can express: .*builtins.function"):
            layer.to_program()

    def test_one_mode_only(self):
        def net(x, is_training):
            if not is_training:
                jax.debug.print("{}", x.sum())
            return hk.Linear(2)(x)

        layer = HaikuLayer(hk.transform(lambda x, is_training: net(x, is_training)))
        other = loaded(layer, ((floats(4, 3),), {"training": True}))
        x = floats(4, 3)
        np.testing.assert_array_equal(other(x, training=True), layer(x, training=True))
        with pytest.raises(SignatureError, match=r"not: .*in inference.*host_callbacks"):
            other(x)

    def test_wider_numbers_than_there_are_here(self, monkeypatch):
        layer = JaxLayer(lambda inputs: inputs * 2)
        try:
            jax.config.update("jax_enable_x64", True)
            layer(np.ones((2, 3), "float64"))
            config = layer.to_program().get_config()
        finally:
            jax.config.update("jax_enable_x64", False)
        with pytest.raises(ProgramError, match=r"float64.*JAX_ENABLE_X64"):
            Program.from_config(config)

    def test_without_flatbuffers(self, monkeypatch):
        layer, _ = pair("embedding")
        config = layer.to_program().get_config()
        new = program_models.embedding()
        new(*example("embedding")[0])
        monkeypatch.setitem(sys.modules, "flatbuffers", None)
        for run in (new.to_program, lambda: Program.from_config(config)):
            with pytest.raises(MissingDependencyError, match=r"flatbuffers.*pip install"):
                run()
