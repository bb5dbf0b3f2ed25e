"""Everything a user can get wrong, and what they are told."""

import inspect

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from jaxlayer import FlaxLayer, HaikuLayer, JaxLayer, as_layer
from jaxlayer_core import (
    Adapter,
    AdapterError,
    BuildError,
    CallSignature,
    JaxLayerError,
    ModuleError,
    Outcome,
    PureModule,
    SignatureError,
    StructureError,
    Variables,
)
from jaxlayer_flax import LinenAdapter

X = np.ones((6, 4), "float32")


# What is wrapped.


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (3, r"No adapter knows an object of builtins\.int.*equinox, flax\.linen.*haiku"),
        (keras.layers.Layer, "No adapter knows the class keras.*register_adapter"),
        (lambda x: x, r"(?s)plain function.*HaikuLayer\(fn\).*JaxLayer\(call_fn, init_fn\)"),
        (nn.Dense, "No adapter knows the class flax.*Dense"),
    ],
    ids=["number", "class", "function", "module class"],
)
def test_an_object_that_no_adapter_knows(obj, message):
    with pytest.raises(AdapterError, match=message):
        as_layer(obj)


def test_an_adapter_that_does_not_exist():
    with pytest.raises(
        AdapterError, match=r"no adapter 'nonsense'\. Known: equinox, flax\.linen.*haiku"
    ):
        as_layer(nn.Dense(2), adapter="nonsense")


def test_a_framework_that_is_not_installed(run_python):
    """`as_layer` meets it only when told to, as no object of it can exist."""
    printed = run_python(
        """
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("haiku", "flax"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocked())
        import jaxlayer
        from jaxlayer_core import MissingDependencyError

        for use in (
            lambda: jaxlayer.HaikuLayer,
            lambda: jaxlayer.FlaxLayer,
            lambda: jaxlayer.as_layer(lambda x: x, adapter="haiku"),
            lambda: jaxlayer.as_layer(lambda x: x, adapter="flax.linen"),
        ):
            try:
                use()
            except MissingDependencyError as error:
                assert isinstance(error, ImportError)
                assert isinstance(error.__cause__, ModuleNotFoundError)
                print(error)
        jaxlayer.JaxLayer(lambda inputs: inputs)(1.0)  # needs neither
        """
    )
    lines = printed.splitlines()
    assert len(lines) == 4
    for line, package in zip(lines, ("haiku", "flax") * 2, strict=True):
        assert f"package {package!r}" in line
        assert f"pip install 'jaxlayer[{package}]'" in line


# How it is called.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))

    @nn.compact
    def encode(self, x):
        return x


class Unknown(nn.Module):
    """Needs a flag of an unknown name."""

    @nn.compact
    def __call__(self, x, thinking):
        return nn.Dropout(0.5, deterministic=not thinking)(x)


def multi():
    def functions():
        linear = hk.Linear(4)
        return linear, {"encode": linear, "decode": lambda x: x}

    return hk.multi_transform(functions)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda **m: FlaxLayer(Net(), **m), "encode"),
        (lambda **m: HaikuLayer(hk.nets.VectorQuantizer, 4, 4, 0.1, **m), "quantize"),
        (lambda **m: HaikuLayer(multi(), **m), "decode, encode"),
        (lambda **m: HaikuLayer(lambda x: x, **m), "single function"),
        (lambda **m: HaikuLayer(hk.transform(lambda x: x), **m), "single function"),
    ],
    ids=["flax", "haiku class", "multi_transform", "haiku function", "haiku transform"],
)
@pytest.mark.parametrize("where", ["layer", "call"])
def test_an_unknown_method(make, names, where):
    def use():
        if where == "layer":
            make(method="nonsense")
        else:
            make()(X, method="nonsense")

    with pytest.raises(SignatureError, match=f"no method 'nonsense'.*{names}"):
        use()


def test_no_method_is_chosen():
    with pytest.raises(SignatureError, match=r"No method is chosen.*decode, encode.*method="):
        HaikuLayer(multi())(X)


@pytest.mark.parametrize("keras_input", [False, True], ids=["eager", "functional"])
def test_a_flag_of_an_unknown_name(keras_input):
    x = keras.Input((4,)) if keras_input else X
    with pytest.raises(SignatureError, match=r"Unknown requires.*`thinking`.*training_arg='think"):
        FlaxLayer(Unknown())(x)


def test_a_flag_of_an_unknown_name_can_be_named():
    layer = FlaxLayer(Unknown(), training_arg="thinking")
    assert np.any(np.asarray(layer(X, training=True)) == 0)
    np.testing.assert_array_equal(layer(X), X)
    layer = FlaxLayer(Unknown(), training_arg="not thinking")
    np.testing.assert_array_equal(layer(X, training=True), X)


def test_a_training_arg_that_does_not_exist():
    with pytest.raises(SignatureError, match=r"training_arg names \['nonsense'\].*x, thinking"):
        FlaxLayer(Unknown(), training_arg="nonsense")


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, X, X), {}, r"takes 1 positional argument\(s\) \(x\).*called with 3.*unpack_inputs"),
        ((), {"x": X, "nonsense": 1}, "does not take 'nonsense'.*x, train"),
        ((), {"train": True}, "requires the argument `x`"),
        ((), {}, "requires the argument `x`"),
    ],
    ids=["too many", "unknown keyword", "missing", "nothing"],
)
def test_a_wrong_number_of_inputs(args, kwargs, message):
    layer = FlaxLayer(Net())
    layer(X)
    with pytest.raises(ValueError, match=message):
        layer(*args, **kwargs)
    with pytest.raises(ValueError, match=message):
        FlaxLayer(Net())(*args, **kwargs)


def test_a_wrong_number_of_inputs_to_functions():
    with pytest.raises(SignatureError, match=r"takes 1 positional.*\(inputs\).*called with 2"):
        JaxLayer(lambda inputs: inputs)(X, X)


# Given variables.


def variables(change):
    given = jax.tree.map(np.asarray, Net().init(jax.random.key(0), X))
    change(given)
    return given


def set_leaf(value):
    def change(given):
        given["params"]["Dense_0"]["kernel"] = value

    return change


def delete_leaf(given):
    del given["params"]["Dense_0"]["bias"]


def delete_branch(given):
    del given["batch_stats"]["BatchNorm_0"]


def stringify(given):
    given["params"]["Dense_0"]["kernel"] = "oops"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_leaf(np.ones((5, 2))), r"`params/Dense_0/kernel` has shape \(5, 2\), .*\(4, 2\)"),
        (set_leaf(np.ones((4, 2), "int32")), "`params/Dense_0/kernel` has dtype int32.*float32"),
        (delete_leaf, r"`params/Dense_0/bias` is missing \(expected shape \(2,\)\)"),
        (delete_branch, "`batch_stats/BatchNorm_0/mean` is missing"),
        (stringify, "`params/Dense_0/kernel` is .*oops"),
    ],
    ids=["shape", "dtype", "leaf", "branch", "string"],
)
def test_given_variables_that_do_not_fit(change, message):
    layer = FlaxLayer(Net(), variables=variables(change))
    with pytest.raises(
        StructureError, match=f"(?s)variables given for .*Net do not fit.*{message}"
    ):
        layer(X)


def test_given_haiku_params_that_do_not_fit():
    layer = HaikuLayer(lambda x: hk.Linear(2)(x), params={"linear": {"w": np.ones((4, 3))}})
    with pytest.raises(StructureError, match=r"(?s)`linear/b` is missing.*`linear/w` has shape"):
        layer(X)


# Building.


@pytest.mark.parametrize("make", [lambda: FlaxLayer(Net()), lambda: HaikuLayer(hk.Linear, 2)])
def test_building_before_the_shape_is_known(make):
    with pytest.raises(BuildError, match=r"cannot be built before the shape.*layer\.build\(input"):
        make().build(None)


def test_a_shape_that_does_not_fit_the_model():
    layer = FlaxLayer(Net(), name="narrow")
    layer.build((None, 4))
    with pytest.raises(ModuleError, match=r"Net, wrapped by the layer 'narrow'.*float32\[6, 5\]"):
        layer(np.ones((6, 5), "float32"))


# State.


class Growing(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("a", "count", lambda: jnp.zeros(2))
        if not self.is_initializing():
            count.value = jnp.zeros(3)
        return x


class Renaming(nn.Module):
    @nn.compact
    def __call__(self, x):
        names = ["old"] if self.is_initializing() else ["old", "new"]
        for name in names:
            self.variable("a", name, lambda: jnp.zeros(2))
        return x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Growing(), r"`a/count` has shape \(3,\).*initialised with shape \(2,\)"),
        (Renaming(), r"returned and was not initialised with: \['a/new'\]"),
    ],
    ids=["shape", "leaf"],
)
def test_a_state_that_changed(module, message):
    layer = FlaxLayer(module)
    with pytest.raises(StructureError, match=f"(?s)Structure mismatch.*{message}"):
        layer(X, training=True)


def test_a_fixed_value_in_the_state_that_changed():
    def call(state, inputs):
        return inputs, {"mode": "other"}

    layer = JaxLayer(call, state={"mode": "first"})
    with pytest.raises(StructureError, match=r"'other' for the leaf `mode`.*fixed value 'first'"):
        layer(X)


@pytest.mark.parametrize("built", [True, False])
def test_a_state_write_inside_a_raw_jit(built):
    layer = FlaxLayer(Net(), name="net")
    if built:
        layer(X)
    with pytest.raises(JaxLayerError, match=r"net has to write its state `net/batch.*stateless_ca"):
        jax.jit(lambda x: layer(x, training=True))(X)
    for variable in layer.variables:
        assert not isinstance(variable.value, jax.core.Tracer), variable.path
    layer(X, training=True)


# Outputs.


def named(x):
    return {"x": x, "more": [x, "a name"], "none": None}


def test_an_output_that_is_no_array():
    with pytest.raises(StructureError, match=r"`more/1`.*'a name' of type str.*='drop'"):
        HaikuLayer(named)(X)


def test_an_output_that_is_no_array_can_be_dropped():
    layer = HaikuLayer(named, non_array_outputs="drop")
    outputs = layer(X)
    np.testing.assert_array_equal(outputs["more"][0], X)
    assert outputs["more"][1] is None
    inputs = keras.Input((4,))
    model = keras.Model(inputs, HaikuLayer(named, non_array_outputs="drop")(inputs)["more"][0])
    np.testing.assert_array_equal(model.predict(X, verbose=0), X)


# Options.


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlaxLayer(Net(), nonsense=1),
        lambda: HaikuLayer(lambda x: x, nonsense=1),
        lambda: JaxLayer(lambda inputs: inputs, nonsense=1),
        lambda: as_layer(Net(), nonsense=1),
    ],
    ids=["flax", "haiku", "functions", "as_layer"],
)
def test_an_unknown_option(make):
    with pytest.raises(ValueError, match="nonsense"):
        make()


def test_arguments_for_something_that_is_no_class():
    with pytest.raises(SignatureError, match=r"HaikuLayer got \[3\].*Only an hk\.Module class"):
        HaikuLayer(hk.transform(lambda x: x), 3)


def test_an_unknown_choice_for_an_option():
    with pytest.raises(JaxLayerError, match="non_array_outputs must be 'error' or 'drop', got 'no"):
        FlaxLayer(Net(), non_array_outputs="nonsense")


# Backends.


def test_another_keras_backend(run_python):
    printed = run_python(
        """
        import flax.linen as nn
        from jaxlayer import FlaxLayer, JaxLayer
        from jaxlayer_core import BackendError
        for use in (lambda: FlaxLayer(nn.Dense(2)), lambda: JaxLayer(lambda inputs: inputs)):
            try:
                use()
            except BackendError as error:
                print(error)
        """,
        env={"KERAS_BACKEND": "numpy"},
    )
    assert printed.count("'numpy'") == 2
    assert printed.count("KERAS_BACKEND=jax") == 2


# The cause.


class Own(Exception):
    """Of the user."""


class Raises(nn.Module):
    """Works until it is trained."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        if train and not self.is_initializing():
            raise Own("inside")
        return nn.Dense(2)(x)


def functional(layer):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layer(inputs))


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x, training=None):  # without `training`, Keras never says that it trains
        return self.layer(x, training=training)


@pytest.mark.parametrize(
    "wrap",
    [functional, Subclassed, lambda layer: keras.Sequential([layer])],
    ids=["functional", "subclassed", "sequential"],
)
def test_the_cause_is_attached_in_fit(wrap):
    model = wrap(FlaxLayer(Raises(), name="raises"))
    model.compile("sgd", "mse")
    with pytest.raises(ModuleError, match=r"'raises'.*Own: inside") as info:
        model.fit(X, np.ones((6, 2)), verbose=0)
    assert isinstance(info.value.__cause__, Own)


def test_the_cause_is_attached_in_an_eager_call():
    with pytest.raises(ModuleError, match="Own: inside") as info:
        FlaxLayer(Raises())(X, training=True)
    assert isinstance(info.value.__cause__, Own)


def test_params_of_a_flax_layer():
    with pytest.raises(SignatureError, match=r"FlaxLayer has no argument 'params': .*variables="):
        as_layer(nn.Dense(2), params={})


def test_leaves_of_params_and_state_with_the_same_name():
    class Colliding(Adapter):
        framework = "test"

        def accepts(self, obj):
            return True

        def purify(self, obj, *, method=None, training_arg=None):
            x = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            return PureModule(
                init=lambda rng, arguments: Variables({"w": jnp.ones(2)}, {"w": jnp.ones(2)}),
                call=lambda params, state, *_: Outcome(params["w"], state),
                signature=CallSignature.read("a test", [x], None),
                has_modes=False,
                scopes=((), ()),
            )

    with pytest.raises(StructureError, match=r"are both called 'w'.*PureModule\(scopes=...\)"):
        as_layer(object(), adapter=Colliding())(np.ones(2))


def test_an_adapter_whose_options_would_be_lost_is_not_saved():
    layer = as_layer(nn.Dense(2), adapter=LinenAdapter(("noise",)))
    with pytest.raises(AdapterError, match=r"cannot be saved with the adapter .*LinenAdapter"):
        layer.get_config()
