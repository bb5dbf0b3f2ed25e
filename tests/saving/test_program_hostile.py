"""Configs of programs that are broken, or made to do harm."""

import base64
import copy
import hashlib
import json
import random
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import Primitive
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from jaxlayer import JaxLayer
from jaxlayer_core.errors import ConfigError, JaxLayerError, ProgramError
from jaxlayer_core.program import Program, checking
from jaxlayer_core.program.blobs import Blob
from jaxlayer_core.program.exporting import PLATFORMS
from jaxlayer_core.program_layer import ProgramLayer


@pytest.fixture(scope="module")
def config():
    layer = JaxLayer(
        lambda params, state, rng, inputs, training: (
            {"out": inputs @ params["w"] + jax.random.normal(rng, ()), "none": None},
            {"count": state["count"] + 1},
        ),
        lambda rng, inputs: (
            {"w": jax.random.normal(rng, (inputs.shape[-1], 2)), "kind": "linear"},
            {"count": jnp.zeros(())},
        ),
    )
    layer(np.ones((4, 3), "float32"))
    return json.loads(json.dumps(layer.to_program().get_config()))


def test_it_loads(config):
    assert Program.from_config(config).get_config() == config


def places(data, path=()):
    """All places in JSON data."""
    yield path
    items = enumerate(data) if isinstance(data, list) else ()
    items = data.items() if isinstance(data, dict) else items
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(data, path, value):
    """A copy with another value in one place; REMOVED takes it away."""
    if not path:
        return value
    data = copy.copy(data)
    if value is REMOVED and len(path) == 1:
        del data[path[0]]
    else:
        data[path[0]] = replaced(data[path[0]], path[1:], value)
    return data


REMOVED = object()
VALUES = (REMOVED, None, True, -1, 2**70, 1.5, float("nan"), "", "x", "\0", [], {}, [[]], [None])


@pytest.mark.parametrize(
    "value", VALUES, ids=lambda value: "removed" if value is REMOVED else repr(value)
)
def test_anything_in_any_place_is_refused_or_harmless(config, value):
    """It loads, or it says what is wrong; nothing else ever comes out."""
    for path in places(config):
        if value is REMOVED and not path:
            continue
        try:
            program = Program.from_config(replaced(config, path, value))
        except (ProgramError, ConfigError):
            continue
        layer = ProgramLayer(program)
        try:
            layer(np.ones((2, 3), "float32"))
        except JaxLayerError:
            continue


@pytest.mark.parametrize("value", [None, 3, "program", [], {}], ids=repr)
def test_no_config_at_all(value):
    with pytest.raises(ProgramError, match="The saved program is broken: program"):
        Program.from_config(value)


def test_a_newer_format(config):
    with pytest.raises(ProgramError, match=r"versions\.format is 2, expected 1 to 1"):
        Program.from_config(replaced(config, ("versions", "format"), 2))


def only_blob(config):
    return next(iter(config["blobs"]))


class TestBlobs:
    def test_every_flipped_bit_is_found(self, config):
        digest = only_blob(config)
        content = bytearray(base64.b64decode(config["blobs"][digest]["data"]))
        for position in random.Random(0).sample(range(len(content)), 30):
            flipped = bytearray(content)
            flipped[position] ^= 1 << (position % 8)
            data = base64.b64encode(flipped).decode()
            with pytest.raises(ProgramError, match=r"cannot be decompressed|checksum|bytes"):
                Program.from_config(replaced(config, ("blobs", digest, "data"), data))

    @pytest.mark.parametrize("part", [0, 0.5, 0.99])
    def test_truncated(self, config, part):
        digest = only_blob(config)
        data = config["blobs"][digest]["data"]
        short = data[: int(len(data) * part) // 4 * 4]
        with pytest.raises(ProgramError, match="the blob"):
            Program.from_config(replaced(config, ("blobs", digest, "data"), short))

    def test_no_base64(self, config):
        digest = only_blob(config)
        with pytest.raises(ProgramError, match="cannot be decompressed"):
            Program.from_config(replaced(config, ("blobs", digest, "data"), "a*b="))

    def test_a_bomb(self, config):
        """A gigabyte of zeros in a megabyte is never unpacked."""
        stream = zlib.compressobj(9)
        packed = b"".join(stream.compress(bytes(2**20)) for _ in range(2**10)) + stream.flush()
        data = base64.b64encode(packed).decode()
        tracemalloc.start()
        try:
            with pytest.raises(ProgramError, match="has not the 1000 bytes that it says it has"):
                Blob("0" * 64, 1000, data).unpack()
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()
        digest = only_blob(config)
        bomb = {"size": 2**31, "data": data}
        with pytest.raises(ProgramError, match="size is 2147483648, expected 0 to"):
            Program.from_config(replaced(config, ("blobs", digest), bomb))

    def test_other_bytes_under_the_same_checksum(self, config):
        digest = only_blob(config)
        size = config["blobs"][digest]["size"]
        other = Blob.of(bytes(size)).get_config()
        with pytest.raises(ProgramError, match="has another checksum than it should"):
            Program.from_config(replaced(config, ("blobs", digest), other))

    def test_many_bombs(self, config):
        bombs = {str(i): {"size": 2**30, "data": ""} for i in range(3)}
        with pytest.raises(ProgramError, match="more than 1073741824 bytes together"):
            Program.from_config(replaced(config, ("blobs",), {**config["blobs"], **bombs}))

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 100, b"no program" * 10], ids=["empty", "0", "text"]
    )
    def test_something_else_with_a_right_checksum(self, config, content):
        with pytest.raises(ProgramError, match=r"cannot be read: .* It was made with JAX"):
            Program.from_config(with_blob(config, content))

    @pytest.mark.parametrize("change", ["nested", "without a gradient"])
    def test_the_same_arrays_in_another_way(self, config, change):
        def function(w, count, key, x):
            return [count + 1, x @ w]

        def nested(pair, key, x):
            return function(*pair, key, x)

        batch = export.symbolic_shape("d0_0")[0]
        shapes = [((3, 2), "float32"), ((), "float32"), ((2,), "uint32"), ((batch, 3), "float32")]
        specs = [jax.ShapeDtypeStruct(*one) for one in shapes]
        if change == "nested":
            made = export.export(jax.jit(nested), platforms=PLATFORMS)(specs[:2], *specs[2:])
        else:
            made = export.export(jax.jit(function), platforms=PLATFORMS)(*specs)
        message = "takes something else" if change == "nested" else "a blob without a gradient"
        with pytest.raises(ProgramError, match=message):
            Program.from_config(with_blob(config, bytes(made.serialize())))

    def test_the_program_of_another_model(self, config):
        def other(*arrays):
            return [sum(jnp.sum(a) for a in arrays)] * 3

        specs = [jax.ShapeDtypeStruct((3, 5), "float32")]
        content = bytes(export.export(jax.jit(other))(*specs).serialize(vjp_order=1))
        with pytest.raises(ProgramError, match="has a blob that takes something else"):
            Program.from_config(with_blob(config, content))


def with_blob(config, content):
    """All calls with another blob."""
    blob = Blob.of(content)
    calls = [{**call, "blob": blob.digest} for call in config["calls"]]
    return {**config, "calls": calls, "init": None, "blobs": {blob.digest: blob.get_config()}}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("methods",), [], "lack the usual one"),
        (("calls", 0, "method"), "other", "is of the unknown method 'other'"),
        (("calls", 0, "platforms"), ["cpu"], "has a blob for other platforms"),
        (("calls", 0, "results"), ["array"], "does not return what a call does"),
        (("calls", 0, "results", 1, 3, 1), ["list", []], "does not return the state"),
        (("calls", 0, "results", 1, 3, 1), ["array"], "does not return the state"),
        (("calls", 0, "results", 1, 1, 1), ["list", [["array"], ["array"]]], "gives something"),
        (("calls", 0, "inputs", 0, "shape"), ["d0_0", 4], "takes something else"),
        (("calls", 0, "inputs", 0, "dtype"), "int32", "takes something else"),
        (("calls", 0, "draws"), False, "takes something else"),
        (("calls", 0, "reads"), [False], "takes something else"),
        (("calls", 0, "reads"), [], "has not as many inputs"),
        (("calls", 0, "blob"), "other", "the blob other is missing"),
        (("params", "arrays", 0, "compute"), "bfloat16", "takes something else"),
        (("params", "arrays", 0, "shape"), ["open", 2], "an array whose shape is open"),
        (("params", "arrays", 0, "dtype"), "O", "'O', no dtype"),
        (("init", "axes"), [], "does not make the variables"),
        (("init", "call", "results"), ["array"], "does not make the variables"),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together(config, path, value, message):
    with pytest.raises(ProgramError, match=message):
        Program.from_config(replaced(config, path, value))


def test_deep_nesting_is_no_recursion_error(config):
    for leaf, wrap in ((["array"], lambda t: ["list", [t]]), (["none"], lambda t: ["tuple", [t]])):
        tree = leaf
        for _ in range(5000):
            tree = wrap(tree)
        with pytest.raises(ProgramError, match="nested too deeply"):
            Program.from_config(replaced(config, ("params", "tree"), tree))
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ProgramError, match="is no JSON"):
        Program.from_config(replaced(config, ("params", "tree"), ["static", deep]))


@pytest.mark.parametrize(
    "tree",
    [
        ["named", "__import__('os')", [["x", ["array"]]]],
        ["named", "A", [["x = 1", ["array"]]]],
        ["named", "A", [["class", ["array"]]]],
        ["named", "A", [["_x", ["array"]]]],
        ["named", "A", [["x", ["array"]], ["x", ["none"]]]],
        ["dict", [["[]", ["array"]]]],
        ["dict", [['"a"', ["array"]], ['"a"', ["none"]]]],
        ["dict", [["1", ["array"]], ['"a"', ["none"]]]],
        ["key", "no implementation"],
        ["static", "{"],
        ["array", "x"],
        ["list"],
        ["other", []],
    ],
    ids=repr,
)
def test_trees_that_are_none(config, tree):
    with pytest.raises(ProgramError, match=r"program\.params\.tree"):
        Program.from_config(replaced(config, ("params", "tree"), tree))


def test_names_of_objects_are_not_imported(config):
    """A static value is data of `serialization`, which has its own rules of what it may name."""
    static = {"$": "name", "reference": {"module": "os", "name": "system"}}
    tree = replaced(config["params"]["tree"], (1,), [["kind", ["static", json.dumps(static)]]])
    with pytest.raises((ConfigError, ProgramError)):
        Program.from_config(replaced(config, ("params", "tree"), tree))


def test_variables_larger_than_the_machine(config):
    huge = {"shape": [2**39], "dtype": "float32", "compute": "float32"}
    broken = {**config, "calls": [], "init": None, "blobs": {}}
    broken = replaced(broken, ("params", "arrays", 0), huge)
    with pytest.raises(JaxLayerError, match="GiB of memory"):
        ProgramLayer(Program.from_config(broken))


def calling(target):
    """A primitive that is a custom call of some target."""
    primitive = Primitive(f"call_{target}")
    primitive.def_abstract_eval(lambda x: x)

    def lower(context, x):
        call = stablehlo.CustomCallOp([x.type], [x], call_target_name=target)
        return call.results

    mlir.register_lowering(primitive, lower)
    return primitive


def exported_call(target, *, nested=False):
    primitive = calling(target)
    specs = jax.ShapeDtypeStruct((3,), "float32")

    def function(x):
        if nested:
            return jax.lax.cond(x[0] > 0, lambda x: primitive.bind(x), lambda x: x, x)
        return primitive.bind(x)

    allowed = export.DisabledSafetyCheck.custom_call(target)
    exported = export.export(jax.jit(function), disabled_checks=[allowed])(specs)
    return export.deserialize(exported.serialize())


COMPUTING = {
    "erf": jax.lax.erf,
    "top_k": lambda x: jax.lax.top_k(x, 2),
    "approx_max_k": lambda x: jax.lax.approx_max_k(x, 2),
    "cholesky": lambda x: jnp.linalg.cholesky(x.T @ x),
    "eigh": lambda x: jnp.linalg.eigh(x.T @ x)[0],
    "solve": lambda x: jnp.linalg.solve(x.T @ x, x.T),
    "svd": lambda x: jnp.linalg.svd(x)[1],
    "bernoulli": lambda x: jax.random.bernoulli(jax.random.key(0), 0.5, x.shape),
    "truncated_normal": lambda x: jax.random.truncated_normal(jax.random.key(0), -2, 2, x.shape),
    "rbg": lambda x: jax.random.bits(jax.random.key(0, impl="rbg"), x.shape),
    "max_pool": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 1), (1, 1), "SAME"),
    "ragged_dot": lambda x: jax.lax.ragged_dot(x, jnp.ones((2, 4, 3)), jnp.array([1, 1])),
    "empty": lambda x: jnp.empty(x.shape),
    "sort": jnp.sort,
}


class TestCustomCalls:
    TARGETS = ("xla_ffi_python_cpu_callback", "xla_python_cpu_callback", "tf.call_tf_function")
    TARGETS += ("tpu_custom_call", "mosaic_gpu_v2", "system", "Sharding ")

    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize("target", TARGETS)
    def test_unknown_ones_are_refused(self, target, nested):
        with pytest.raises(ProgramError, match=f"contains the custom call '{target}'"):
            checking.check(exported_call(target, nested=nested), "The program")

    def test_known_ones_are_not(self):
        checking.check(exported_call("Sharding"), "The program")

    @pytest.mark.skipif(jax.__version_info__ < (0, 10), reason="an older JAX has fewer of them")
    def test_jax_agrees_that_the_known_ones_stay_loadable(self):
        specs = jax.ShapeDtypeStruct((3,), "float32")
        written_so = {"chlo.ragged_dot", "mhlo.erf", "mhlo.topk"}  # when it is serialised
        for target in sorted(checking.ALLOWED - written_so):
            primitive = calling(target)
            export.export(jax.jit(lambda x, p=primitive: p.bind(x)))(specs)

    @pytest.mark.parametrize("name", COMPUTING)
    def test_what_models_compute_is_known(self, name):
        batch = export.symbolic_shape("batch")[0]
        shape = (5, 4) if name == "svd" else (batch, 4)  # JAX compares the sizes
        specs = jax.ShapeDtypeStruct(shape, "float32")
        exported = export.export(jax.jit(COMPUTING[name]), platforms=PLATFORMS)(specs)
        checking.check(export.deserialize(exported.serialize()), "The program")

    def test_in_the_gradient_too(self):
        primitive = calling("system")

        @jax.custom_vjp
        def function(x):
            return x

        function.defvjp(lambda x: (x, None), lambda _, g: (primitive.bind(g),))
        specs = jax.ShapeDtypeStruct((3,), "float32")
        allowed = [export.DisabledSafetyCheck.custom_call("system")]
        exported = export.export(jax.jit(function), disabled_checks=allowed)(specs)
        without = export.deserialize(exported.serialize())
        checking.check(without, "The program")
        with pytest.raises(ProgramError, match="'system'"):
            checking.check(export.deserialize(exported.serialize(vjp_order=1)), "The program")

    def test_while_a_program_is_loaded(self, config, monkeypatch):
        """Before anything is compiled, and so before anything could run."""
        primitive = calling("system")

        def function(w, count, key, x):
            return [count + 1, primitive.bind(x) @ w]

        batch = export.symbolic_shape("d0_0")[0]
        shapes = [((3, 2), "float32"), ((), "float32"), ((2,), "uint32"), ((batch, 3), "float32")]
        specs = [jax.ShapeDtypeStruct(*one) for one in shapes]
        allowed = [export.DisabledSafetyCheck.custom_call("system")]
        exported = export.export(jax.jit(function), disabled_checks=allowed)(*specs)
        blob = bytes(exported.serialize())
        assert hashlib.sha256(blob).hexdigest() == Blob.of(blob).digest
        with pytest.raises(ProgramError, match="contains the custom call 'system'"):
            Program.from_config(with_blob(config, blob))

    @pytest.mark.parametrize("name", ["infeed", "outfeed", "send", "recv"])
    def test_operations_that_reach_outside(self, name):
        class Operation:
            def __init__(self, name):
                self.name = name

        with pytest.raises(ProgramError, match=f"the operation 'stablehlo.{name}'"):
            checking._check_operation(Operation(f"stablehlo.{name}"), "The program")
        with pytest.raises(ProgramError, match=r"the operation 'llvm\.call'"):
            checking._check_operation(Operation("llvm.call"), "The program")
