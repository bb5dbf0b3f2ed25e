"""What one trace or call shows of a model must not mislead the next, nor building leave a trace."""

import contextlib
import gc

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer, as_layer
from jaxlayer_core import JaxLayerError, SignatureError, StructureError
from jaxlayer_flax import LinenAdapter

x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


def test_hidden_flag_is_found_after_a_first_attempt_that_failed():
    class Words(nn.Module):
        @nn.compact
        def __call__(self, ids, **options):
            embedded = nn.Embed(10, 16)(ids)
            return nn.Dropout(0.5, deterministic=not options.get("train", False))(embedded)

    layer = FlaxLayer(Words())
    layer.build((None, 3))  # tries floats first, which Embed refuses
    ids = np.ones((4, 3), "int32")
    assert np.mean(np.asarray(layer(ids, training=True)) == 0) > 0.2
    assert not np.any(np.asarray(layer(ids)) == 0)


def test_a_bad_first_call_does_not_change_how_flags_are_set():
    class Picky(nn.Module):
        drop: nn.Module = nn.Dropout(0.5)

        @nn.compact
        def __call__(self, x, train=False):
            if x.shape[1] > 5:
                x = x[:, :5]
            return self.drop(nn.Dense(2)(x), deterministic=not train)

    layer = FlaxLayer(Picky())
    assert layer(keras.Input((4,))).shape == (None, 2)
    with pytest.raises(JaxLayerError):
        layer(np.ones((2, 3), "float32"))
    assert layer(x).shape == (8, 2)


def test_unset_flags_inside_are_set_for_every_method():
    class Coder(nn.Module):
        net: nn.Module

        def __call__(self, x):
            return self.net(x)

        def encode(self, x):
            return self.net(x)

    layer = FlaxLayer(Coder(nn.Sequential([nn.Dense(4), nn.Dropout(0.5)])))
    np.testing.assert_array_equal(layer(x), layer(x, method="encode"))


def test_shared_modules_stay_shared_when_flags_inside_are_set():
    dense = nn.Dense(4)
    layer = FlaxLayer(nn.Sequential([dense, nn.Dropout(0.5), dense]))
    layer(x)
    assert len(layer.weights) == 2


def test_streams_of_one_call_are_not_given_to_the_next():
    class Looks(nn.Module):
        @nn.compact
        def __call__(self, x, sample: bool = False):
            if sample:
                x = x + 0 * jax.random.normal(self.make_rng("noise"), x.shape)
            return x + 100 * self.has_rng("noise")

    layer = FlaxLayer(Looks())
    assert np.max(layer(x, sample=True)) > 90
    assert np.max(layer(x[:2])) < 90


def test_streams_that_a_module_only_looks_for_are_supplied_in_training():
    class Looks(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return x + 100 * self.has_rng("noise")

    layer = FlaxLayer(Looks(), rngs=("noise",))
    assert np.max(layer(x, training=True)) > 90
    assert np.max(layer(x, training=False)) < 90
    via_adapter = as_layer(Looks(), adapter=LinenAdapter(("noise",)))
    assert np.max(via_adapter(x, training=True)) > 90


def test_given_variables_with_a_sown_collection():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("metrics", "mean", x.mean())
            return nn.Dense(2)(x)

    variables = Sows().init(jax.random.key(0), x)
    layer = FlaxLayer(Sows(), variables=variables)
    expected = jax.jit(Sows().apply)({"params": variables["params"]}, x)
    for _ in range(2):
        np.testing.assert_array_equal(layer(x, training=True), expected)


def test_a_failed_call_is_forgotten():
    class Strict(nn.Module):
        @nn.compact
        def __call__(self, x):
            if x.shape[1] == 5:
                raise ValueError("five")
            return nn.Dense(2)(x)

    layer = FlaxLayer(Strict())
    with pytest.raises(JaxLayerError, match="five"):
        layer(keras.Input((5,)))
    layer.build((None, 4))
    assert layer(x).shape == (8, 2)


def test_a_mutable_option_is_read_anew_in_every_call():
    class Options:
        __hash__ = None
        scale = 1.0

    class Scales(nn.Module):
        def __call__(self, x, options):
            return x * options.scale

    options = Options()
    layer = FlaxLayer(Scales())
    np.testing.assert_array_equal(layer(x, options), x)
    options.scale = 5.0
    np.testing.assert_array_equal(layer(x, options), 5 * x)


def test_an_overridden_call_is_not_skipped():
    class Twice(FlaxLayer):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training) * 2

    layer = Twice(nn.Dense(2))
    np.testing.assert_array_equal(layer(x), layer(x))


def test_a_regularizer_set_later_is_seen():
    layer = FlaxLayer(nn.Dense(2))
    layer(x), layer(x)
    layer.activity_regularizer = keras.regularizers.L2(1.0)
    layer(x)
    assert len(layer.losses) == 1


def test_names_with_dots_are_saved_apart(tmp_path):
    def call(params, inputs):
        return inputs * params["a"]["b.c"] + params["a.b"]["c"]

    def model(one, other):
        params = {"a": {"b.c": one}, "a.b": {"c": other}}
        return keras.Sequential([keras.Input((4,)), JaxLayer(call, params=params)])

    first, second = model(2.0, 3.0), model(0.0, 0.0)
    first.save_weights(tmp_path / "w.weights.h5")
    second.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(first(x), second(x))


@pytest.mark.parametrize(("start", "step"), [(np.int32(0), 0.6), (np.bool_(True), np.int32(1))])
def test_state_that_its_variable_would_round_is_refused(start, step):
    layer = JaxLayer(
        lambda params, state, inputs: (inputs, {"n": state["n"] + step}),
        params={},
        state={"n": start},
    )
    with pytest.raises(StructureError, match=r"`n` has dtype .* initialised as"):
        layer(x)


def test_pooled_sizes_are_not_taken_for_zero():
    class Pools(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(x.shape[1]):  # rejects symbols
                pass
            return nn.avg_pool(x, (4,), (4,))

    assert FlaxLayer(Pools())(keras.Input((None, 3))).shape == (None, None, 3)


def test_haiku_params_of_old_checkpoints():
    transformed = hk.transform(lambda x: hk.Linear(2)(x))
    params = hk.data_structures.to_immutable_dict(transformed.init(jax.random.key(0), x))
    layer = HaikuLayer(transformed, params=params)
    expected = jax.jit(transformed.apply)(params, None, x)
    np.testing.assert_array_equal(layer(x), expected)


@pytest.mark.parametrize("with_rng", [True, False])
def test_a_transform_made_by_hand_with_a_flag_that_only_apply_takes(with_rng):
    base = hk.transform(lambda x: hk.Linear(2)(x))
    if with_rng:

        def apply(params, rng, x, train=False):
            return base.apply(params, rng, x) + 100 * train
    else:

        def apply(params, x, train=False):
            return base.apply(params, None, x) + 100 * train

    layer = HaikuLayer(hk.Transformed(base.init, apply))
    assert np.max(layer(x)) < 50
    assert np.min(layer(x, training=True)) > 50


def test_an_argument_given_twice_and_positional_only_defaults():
    class Adds(nn.Module):
        def __call__(self, a, b=0.0):
            return a + b

    with pytest.raises(SignatureError, match="two values for its argument `a`"):
        FlaxLayer(Adds())(x, a=x)
    layer = HaikuLayer(lambda x, n=3, train=False, /: x * n + 100 * train)
    np.testing.assert_array_equal(layer(x), 3 * x)


def test_jax_layer_has_no_methods():
    layer = JaxLayer(lambda inputs: jnp.sin(inputs))
    with pytest.raises(SignatureError, match="no methods"):
        layer(x, method="other")


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_collection_waits_while_a_layer_is_built(on, fails):
    seen = []

    class Watching(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen.append(gc.isenabled())
            if fails:
                raise ValueError("fails")
            return nn.Dense(2)(x)

    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(JaxLayerError) if fails else contextlib.nullcontext():
            FlaxLayer(Watching()).build(x.shape)
        assert gc.isenabled() == on
    finally:
        (gc.enable if was_on else gc.disable)()
    assert not any(seen)
    assert seen
