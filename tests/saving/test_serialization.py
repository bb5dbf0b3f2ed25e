"""Values as JSON data, and back: what can be said, and that nothing else is done."""

import collections
import dataclasses
import functools
import json
import math
import sys
import types

import flax
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxlayer_haiku  # noqa: F401  # its rules
from jaxlayer_core import errors, serialization
from jaxlayer_core.serialization import decode, encode, trusting

from . import importable

HERE = importable.__name__


def named(value):
    """An identifier without an address in memory, the same in all processes."""
    return getattr(value, "__name__", None) or type(value).__name__


def again(value, safe=False):
    """The value after a stay in a file."""
    return decode(json.loads(json.dumps(encode(value).data)), safe=safe)


def same_data(value):
    return encode(again(value)).data == encode(value).data


PLAIN = [
    None,
    True,
    1,
    -1.5,
    "text",
    10**40,
    [1, [2]],
    {"a": {"b": None}},
    (1, (2, 3)),
    {1: "one"},
    {"$": 1},
    {(1, 2): 3},
    {1, 2},
    frozenset({"a"}),
    b"\x00\xff",
    slice(1, None, 2),
    range(3),
    ...,
    1 + 2j,
    math.inf,
    -0.0,
]


@pytest.mark.parametrize("value", PLAIN, ids=named)
def test_plain_values(value):
    result = again(value, safe=True)
    assert result == value
    assert type(result) is type(value)
    assert repr(result) == repr(value)


def test_not_a_number():
    assert math.isnan(again(math.nan, safe=True))


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype("float16"),
        np.float32,
        np.int8,
        np.bool_,
        jnp.float32,
        jnp.bfloat16,
        jnp.int4,
        jnp.dtype("bfloat16"),
        jnp.bfloat16.dtype.type,
        jnp.float8_e4m3fn,
    ],
    ids=named,
)
def test_dtypes_stay_the_kind_of_object_that_they_are(dtype):
    assert again(dtype, safe=True) is dtype or again(dtype, safe=True) == dtype
    assert type(again(dtype, safe=True)) is type(dtype)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3)[:, ::2],
        np.zeros((0, 3), "int8"),
        np.float32(1.5),
        jnp.ones((2,), "bfloat16"),
        jnp.array(True),
        np.array([1 + 2j]),
    ],
    ids=named,
)
def test_arrays(array):
    result = again(array, safe=True)
    assert type(result) is type(array)
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, array)


def test_keys():
    key = jax.random.key(3, impl="rbg")
    result = again(key, safe=True)
    assert jax.random.key_impl(result) == jax.random.key_impl(key)
    np.testing.assert_array_equal(jax.random.key_data(result), jax.random.key_data(key))


LISTED = [
    jax.nn.relu,
    jax.nn.gelu,
    jax.nn.silu,
    jnp.tanh,
    jnp.add,
    jax.lax.rsqrt,
    nn.relu,
    nn.Dense,
    nn.dot_product_attention,
    nn.initializers.zeros,
    hk.nets.MLP,
    hk.one_hot,
    float,
    max,
    jax.lax.Precision.HIGHEST,
    jax.lax.dot_general,
    jax.numpy.linalg.norm,
    flax.core.FrozenDict,
    jax.sharding.PartitionSpec("x", None),
    types.SimpleNamespace,
]


@pytest.mark.parametrize("value", LISTED, ids=named)
def test_what_jax_flax_and_haiku_have_is_named_publicly_and_trusted(value):
    result = again(value, safe=True)
    assert result is value or result == value
    assert "._" not in json.dumps(encode(value).data)


@pytest.mark.parametrize(
    "initializer",
    [
        nn.initializers.lecun_normal(),
        nn.initializers.variance_scaling(2.0, "fan_out", "uniform"),
        nn.initializers.normal(0.02),
        nn.initializers.normal(0.02, jnp.bfloat16),
        nn.initializers.uniform(3.0),
        nn.initializers.constant(0.5),
        nn.initializers.orthogonal(2.0),
        nn.initializers.truncated_normal(0.1, lower=-1.0),
        nn.initializers.zeros_init(),
        nn.with_partitioning(nn.initializers.he_normal(), ("data", None)),
        nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp")),
    ],
    ids=named,
)
def test_initialisers_of_jax_come_back_with_their_arguments(initializer):
    result = again(initializer, safe=True)
    key = jax.random.key(0)
    expected, got = (f(key, (8, 4), jnp.float32) for f in (initializer, result))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_initialisers_of_haiku_come_back_with_their_arguments():
    result = again(hk.initializers.TruncatedNormal(0.3, mean=1.0), safe=True)
    assert type(result) is hk.initializers.TruncatedNormal
    assert vars(result) == vars(hk.initializers.TruncatedNormal(0.3, mean=1.0))


OWN = [
    importable.Config(),
    importable.Config(importable.Size.LARGE, (0.5,), jnp.bfloat16),
    importable.Size.LARGE,
    importable.Pair(1, (2,)),
    importable.forward,
    importable.squared_relu,
    importable.leaky,
    importable.Block.features,
    functools.partial(importable.Net, 3, name="n"),
    importable.Settings(3, depth=2),
    collections.OrderedDict(b=1, a=importable.Pair(1, 2)),
    flax.core.freeze({"a": {"b": 1}}),
    types.SimpleNamespace(rate=0.1, size=importable.Size.SMALL),
    importable.Block(
        activation=importable.squared_relu, inner=nn.Sequential([nn.Dense(2), nn.relu])
    ),
    hk.transform(importable.plain_forward),
    hk.transform_with_state(importable.forward),
    hk.without_apply_rng(hk.transform(importable.plain_forward)),
    hk.multi_transform(importable.autoencoder),
    nn.Dense(3).apply,
]


@pytest.mark.parametrize("value", OWN, ids=named)
def test_a_users_own_objects(value):
    assert encode(value).is_importable
    assert same_data(value)
    with trusting(HERE):
        again(value, safe=True)


def test_modules_come_back_equal_and_with_defaults_left_out():
    module = nn.Dense(5, param_dtype=jnp.bfloat16, name="head")
    assert again(module, safe=True) == module
    fields = encode(module).data["fields"]
    assert set(fields) - {"parent"} == {"features", "param_dtype", "name"}


def test_a_shared_module_stays_one():
    shared = nn.Dense(3)
    tied = again(importable.Tied(shared, shared))
    assert tied.first is tied.second
    apart = again(importable.Tied(nn.Dense(3), nn.Dense(3)))
    assert apart.first is not apart.second
    x = jnp.ones((1, 3))
    one, two = (jax.tree.leaves(m.init(jax.random.key(0), x)) for m in (tied, apart))
    assert (len(one), len(two)) == (2, 4)


def test_objects_of_keras_come_back_by_their_own_config():
    initializer = keras.initializers.RandomNormal(stddev=0.3)
    assert again(initializer, safe=True).get_config() == initializer.get_config()
    assert again(keras.activations.relu, safe=True) is keras.activations.relu


# What cannot be said.


def test_a_lambda_is_refused_where_it_is():
    with pytest.raises(errors.NotExpressibleError, match=r"the model\['act'\]\[1\] is <function"):
        encode({"act": [nn.relu, lambda x: x]}, "the model")


def test_an_object_that_comes_back_changed_is_refused():
    with pytest.raises(errors.NotExpressibleError, match=r"does not come back .* args"):
        encode(importable.Grown(3))


def test_a_value_without_a_rule_is_refused():
    with pytest.raises(errors.NotExpressibleError, match="generator"):
        encode(i for i in range(3))


def test_what_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(errors.NotExpressibleError, match="contains itself"):
        encode(value)


def test_a_local_class_has_a_name_but_is_not_importable():
    class Local(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    encoded = encode(Local())
    assert not encoded.is_importable
    with pytest.raises(errors.TrustError, match="'Local'"):
        decode(encoded.data)
    with keras.saving.custom_object_scope({"Local": Local}):
        assert type(decode(encoded.data)) is Local


def test_a_function_that_is_running_is_not_called():
    """Its closures look like what it makes; calling it again would not end."""
    with trusting(__name__):
        local = maker(3)
    with pytest.raises(errors.NotExpressibleError), trusting(__name__):
        maker(3, lambda function: encode([function, lambda: None]))
    assert local() == 3


def maker(size, use=None):
    def made():
        return size

    if use is not None:
        use(made)
    return made


# What may not be had.


def test_another_package_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    data = {"$": "name", "of": {"module": "this", "name": "s"}}
    with pytest.raises(errors.TrustError, match=r"custom_objects=.*jaxlayer.trust\('this'\)"):
        decode(data)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("subprocess", "Popen"),
        ("jax.numpy", "load"),
        ("jax.numpy", "save"),
        ("jax", "os"),
        ("jax.numpy", "np.save"),
        ("flax.linen", "module.sys.modules"),
        ("flax.io", "rmtree"),
        ("haiku", "_src.base.warnings"),
        ("jax.profiler", "save_device_memory_profile"),
        ("operator", "attrgetter"),
        ("jax._src.api", "jit"),
        ("haiku.config", "set"),
        ("flax.linen.__dict__", "x"),
        ("flax", "linen.Module"),
        ("", ""),
        ("..", "x"),
        ("jaxlayer_haiku", "unpickle"),
        ("flax.linen", "Module.__init__.__globals__"),
        ("jax.experimental", "io_callback"),
        ("functools", "partial"),
        ("pickle", "loads"),
    ],
)
def test_names_outside_of_the_list_are_refused(module, name):
    with pytest.raises(errors.ConfigError):
        decode({"$": "name", "of": {"module": module, "name": name}})


def test_what_a_trusted_module_has_from_elsewhere_is_refused():
    for name in ("functools", "functools.partial", "jax", "imported", "NamedTuple", "Any"):
        with trusting(HERE), pytest.raises(errors.ConfigError):
            decode({"$": "name", "of": {"module": HERE, "name": name}})
    with trusting(HERE), pytest.raises(errors.TrustError, match="an object of 'typing'"):
        decode({"$": "name", "of": {"module": HERE, "name": "NamedTuple"}})


def test_trust_ends():
    data = encode(importable.forward).data
    serialization.trust(HERE)
    assert decode(data) is importable.forward
    serialization.distrust(HERE)
    with pytest.raises(errors.TrustError):
        decode(data)


def test_trust_takes_names_only():
    with pytest.raises(errors.JaxLayerError, match="import names"):
        serialization.trust("my models")


def test_a_package_that_is_missing_is_named():
    data = {"$": "name", "of": {"module": "not_there_at_all.x", "name": "y"}}
    with pytest.raises(errors.MissingDependencyError, match="pip install not_there_at_all"):
        decode(data, safe=False)


def test_an_object_that_is_gone_is_named():
    data = {"$": "name", "of": {"module": "flax.linen", "name": "Gone"}}
    with pytest.raises(errors.ConfigError, match=r"'flax.linen.Gone', which does not exist"):
        decode(data)


def test_given_objects_come_first_but_not_for_names_of_jax_flax_and_haiku():
    own = encode(importable.Net).data
    dense = encode(nn.Dense).data
    with keras.saving.custom_object_scope({"Net": hk.Linear, "Dense": hk.Linear}):
        assert decode(own) is hk.Linear
        assert decode(dense) is nn.Dense
    with keras.saving.custom_object_scope({"flax.linen.Dense": hk.Linear}):
        assert decode(dense) is hk.Linear


def test_registered_objects_are_found_by_their_registered_name():
    @keras.saving.register_keras_serializable(package="tests")
    def registered(x):
        return x

    encoded = encode(registered)
    assert decode(encoded.data) is registered


# What is broken.


def dense(**fields):
    return {
        "$": "dataclass",
        "class": {"module": "flax.linen", "name": "Dense"},
        "fields": {"features": 3, **fields},
    }


NAMED = {"module": "flax.linen", "name": "relu"}
BROKEN = {
    "no kind": {"$": None},
    "unknown kind": {"$": "spell"},
    "no class": {"$": "dataclass", "fields": {}},
    "class of a function": {"$": "dataclass", "class": NAMED, "fields": {}},
    "class of another kind": {
        "$": "enum",
        "class": {"module": "flax.linen", "name": "Dense"},
        "member": "x",
    },
    "field that is none": dense(evil=1),
    "fields that are none": {**dense(), "fields": 3},
    "attributes of a built-in": {
        "$": "attributes",
        "class": {"module": "builtins", "name": "dict"},
        "attributes": {},
    },
    "attributes of an exception": {
        "$": "attributes",
        "class": {"module": "flax.linen", "name": "Dense"},
        "attributes": [],
    },
    "the same as nothing": {"$": "same", "id": 0},
    "the same as what is around it": {**dense(kernel_init={"$": "same", "id": 0}), "id": 0},
    "an id that is none": {**dense(), "id": "x"},
    "bytes that are none": {"$": "bytes", "base64": "?"},
    "too few bytes": {
        "$": "array",
        "kind": "numpy",
        "dtype": "float32",
        "shape": [1 << 40],
        "base64": "",
    },
    "negative shape": {
        "$": "array",
        "kind": "numpy",
        "dtype": "float32",
        "shape": [-1, -1],
        "base64": "AAAAAA==",
    },
    "objects": {
        "$": "array",
        "kind": "numpy",
        "dtype": "object",
        "shape": [1],
        "base64": "AAAAAAAAAAA=",
    },
    "structured": {
        "$": "array",
        "kind": "numpy",
        "dtype": "i4,O",
        "shape": [1],
        "base64": "AAAAAAAAAAAAAAAA",
    },
    "unhashable in a set": {"$": "items", "type": "set", "items": [[1]]},
    "pairs that are none": {"$": "items", "type": "dict", "items": [1]},
    "unknown container": {"$": "items", "type": "deque", "items": []},
    "numbers that are none": {"$": "number", "parts": ["one"]},
    "range without bounds": {"$": "range", "type": "range"},
    "method of an array": {
        "$": "method",
        "of": {"$": "array", "kind": "numpy", "dtype": "uint8", "shape": [1], "base64": "AA=="},
        "method": "tofile",
    },
    "private method": {"$": "method", "of": dense(), "method": "_call_wrapped_method"},
    "method that is none": {"$": "method", "of": dense(), "method": "features"},
    "maker that is a class": {
        "$": "made",
        "by": {"module": "flax.linen", "name": "Dense"},
        "kwargs": {},
        "index": 0,
    },
    "maker that makes none": {
        "$": "made",
        "by": {"module": "jax.nn.initializers", "name": "normal"},
        "kwargs": {},
        "index": 5,
    },
    "maker without a function": {
        "$": "made",
        "by": {"module": "jax.nn", "name": "one_hot"},
        "kwargs": {"x": 1, "num_classes": 2},
        "index": 0,
    },
    "arguments that do not fit": {
        "$": "made",
        "by": {"module": "jax.nn.initializers", "name": "normal"},
        "kwargs": {"x": 1},
        "index": 0,
    },
    "name without a module": {"$": "name", "of": {"name": "relu"}},
    "name of numbers": {"$": "name", "of": {"module": 1, "name": 2}},
    "partial of nothing": {"$": "partial", "function": {}, "args": [], "kwargs": {}},
    "partial of a list": {
        "$": "partial",
        "function": {"$": "name", "of": NAMED},
        "args": {},
        "kwargs": {},
    },
    "a lambda of Keras": {
        "$": "keras",
        "keras": {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}},
    },
    "an unknown class of Keras": {
        "$": "keras",
        "keras": {"class_name": "Evil", "config": {}, "module": "os", "registered_name": "Evil"},
    },
    "namedtuple of another size": {
        "$": "namedtuple",
        "class": {"module": "haiku", "name": "LSTMState"},
        "fields": [],
        "items": [1],
    },
    "a set as data": {1, 2},
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_data_are_a_clear_error(data):
    with pytest.raises(errors.ConfigError, match="the model"):
        decode(data, root="the model")


def test_data_may_not_be_nested_without_end():
    data = []
    for _ in range(5000):
        data = [data]
    with pytest.raises(errors.ConfigError, match="nested too deeply"):
        decode(data)


def test_errors_say_where():
    with pytest.raises(errors.ConfigError, match=r"the model.fields\['kernel_init'\].args\[1\]"):
        decode(
            dense(
                kernel_init={
                    "$": "partial",
                    "function": {"$": "name", "of": NAMED},
                    "args": [1, {"$": "spell"}],
                    "kwargs": {},
                }
            ),
            root="the model",
        )


def test_a_named_tuple_may_be_replaced_by_one_that_looks_like_it():
    data = encode(importable.Pair(1, 2)).data
    with pytest.raises(errors.TrustError):
        decode(data)
    pair = decode(data, stand_ins=True)
    assert (pair.left, pair.right, type(pair).__name__) == (1, 2, "Pair")
    assert type(pair) is type(decode(data, stand_ins=True))


# What would come back changed, and is refused or kept.


@dataclasses.dataclass
class Counted:
    width: int = 2
    pair: tuple = (1, 2)
    depth: int = dataclasses.field(default=1, init=False)


class Slotted:
    __slots__ = ("width",)


class Wide(Slotted):
    pass


def returned(size=1):
    def made(x, size=size):
        return x * size

    return made


def test_fields_that_a_class_sets_itself_are_compared():
    assert again(Counted(3)) == Counted(3)
    changed = Counted(3)
    changed.depth = 7
    with pytest.raises(errors.NotExpressibleError, match="depth"):
        encode(changed)


def test_attributes_beside_the_fields_are_compared():
    changed = Counted()
    changed.extra = 1
    with pytest.raises(errors.NotExpressibleError, match="rest"):
        encode(changed)


def test_a_value_equal_to_the_default_is_not_the_default():
    assert again(Counted(pair=(True, 2))).pair[0] is True
    assert type(again(Counted(pair=(jnp.ones(2), 2))).pair[0]) is type(jnp.ones(2))


def test_slots_are_no_attributes():
    value = Wide()
    value.width = 3
    with pytest.raises(errors.NotExpressibleError, match="no rule"):
        encode(value)


def test_defaults_of_a_closure_are_arguments_of_its_maker():
    with trusting(__name__):
        assert again(returned(5), safe=True)(2) == 10


def test_a_method_under_another_name_is_refused():
    class Methods:
        def one(self):
            return 1

        two = one

    with pytest.raises(errors.NotExpressibleError):
        encode(types.MethodType(lambda self: 3, Methods()))


def test_a_closure_over_itself_ends():
    with trusting(__name__), pytest.raises(errors.NotExpressibleError):
        encode([recursive(3), lambda: None])


def recursive(size):
    def made(x):
        return made.size * x

    made.size = size
    return made


def test_methods_of_registered_classes_are_not_called_by_files():
    """Those of a Keras model write files."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    data = {
        "$": "method",
        "of": {"$": "keras", "keras": keras.saving.serialize_keras_object(model)},
        "method": "save",
    }
    with pytest.raises(errors.TrustError, match="needs a method of keras"):
        decode(data)


@pytest.mark.parametrize("function", [jnp.zeros, nn.relu, functools.partial(importable.forward, 1)])
def test_a_multi_transform_is_of_a_function_of_a_model(function):
    data = {
        "$": "haiku.multi_transform",
        "function": encode(function).data,
        "with_state": True,
    }
    with trusting(HERE), pytest.raises(errors.ConfigError, match="no function of a model"):
        decode(data)


def test_a_block_trusts_names_only():
    with pytest.raises(errors.JaxLayerError, match="import names"), trusting("not a name"):
        pass
