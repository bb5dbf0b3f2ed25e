"""The attacks: changed archives, by name. Each takes real archives, and gives hostile ones."""

import base64
import io
import itertools
import json
import math
import random
import warnings
import zipfile
import zlib

import h5py
import jax
import numpy as np

from jaxlayer_core.program.blobs import Blob

from .hostile import CONFIG, GONE, WEIGHTS, Archive, at, paths

BAIT = "hostile_bait"
"""A module that can be imported, and leaves a file where it is."""

TARGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("subprocess", "run"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("builtins", "getattr"),
    ("builtins", "type"),
    ("pickle", "loads"),
    ("marshal", "loads"),
    ("numpy", "load"),
    ("jax.numpy", "save"),
    ("jax.numpy", "load"),
    ("jax.numpy", "frompyfunc"),
    ("importlib", "import_module"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("types", "FunctionType"),
    ("webbrowser", "open"),
    ("antigravity", "x"),
    ("ctypes", "CDLL"),
    (BAIT, "run"),
    (BAIT, "Data"),
    ("flax.linen", "module.sys.modules"),
    ("flax.linen", "Module.__init__.__globals__"),
    ("flax.linen", "Dense.__class__.__base__.__subclasses__"),
    ("flax.linen.module", "sys"),
    ("flax.linen.module", "config"),
    ("flax", "io.rmtree"),
    ("flax.io", "rmtree"),
    ("flax.serialization", "from_bytes"),
    ("haiku", "_src.base.os"),
    ("haiku.config", "set"),
    ("jax", "pure_callback"),
    ("jax.experimental", "io_callback"),
    ("jax.debug", "callback"),
    ("jax.config", "update"),
    ("jax.profiler", "start_server"),
    ("jax._src.api", "jit"),
    ("keras.utils", "get_file"),
    ("keras.saving", "load_model"),
    ("jaxlayer_haiku", "unpickle"),
    ("jaxlayer_core.serialization", "trust"),
    ("jaxlayer", "register_adapter"),
    ("__main__", "os"),
    ("", ""),
    ("..", ".."),
    ("flax.linen.__dict__", "x"),
]
"""What a config should not come to have."""


def named(module, name, **more):
    return {"module": module, "name": name, **more}


def name(module, name):
    return {"$": "name", "of": named(module, name)}


def dense(**fields):
    return {
        "$": "dataclass",
        "class": named("flax.linen", "Dense"),
        "fields": {"features": 2, **fields},
    }


def partial(function, *args, **kwargs):
    return {"$": "partial", "function": function, "args": list(args), "kwargs": kwargs}


def made(module, name, **kwargs):
    return {"$": "made", "by": named(module, name), "kwargs": kwargs, "index": 0}


def of_keras(module, name, kind="function"):
    """How Keras names a function, or a class."""
    config = name if kind == "function" else {}
    class_name = kind if kind == "function" else name
    data = {"class_name": class_name, "config": config, "module": module, "registered_name": name}
    return {"$": "keras", "keras": data}


NODES = {
    "name": name,
    "registered": lambda m, n: {"$": "name", "of": named(m, n, registered=f"{m}>{n}")},
    "field": lambda m, n: dense(kernel_init=name(m, n)),
    "partial": lambda m, n: partial(name(m, n), "touch evil", x=1),
    "partial of a partial": lambda m, n: partial(
        partial(name("jax.nn", "relu")), partial(name(m, n), "x")
    ),
    "made": lambda m, n: made(m, n),
    "argument": lambda m, n: made("jax.nn.initializers", "constant", value=name(m, n)),
    "method": lambda m, n: {"$": "method", "of": name(m, n), "method": "run"},
    "dataclass": lambda m, n: {"$": "dataclass", "class": named(m, n), "fields": {"x": 1}},
    "attributes": lambda m, n: {"$": "attributes", "class": named(m, n), "attributes": {"x": 1}},
    "constructed": lambda m, n: {
        "$": "constructed",
        "class": named(m, n),
        "args": ["touch evil"],
        "kwargs": {},
        "attributes": {},
    },
    "enum": lambda m, n: {"$": "enum", "class": named(m, n), "member": "x"},
    "namedtuple": lambda m, n: {
        "$": "namedtuple",
        "class": named(m, n),
        "fields": ["x"],
        "items": [1],
    },
    "mapping": lambda m, n: {"$": "mapping", "class": named(m, n), "items": {"x": 1}},
    "multi_transform": lambda m, n: {
        "$": "haiku.multi_transform",
        "function": name(m, n),
        "with_state": False,
    },
    "function of keras": lambda m, n: of_keras(m, n),
    "class of keras": lambda m, n: of_keras(m, n, "class"),
}
"""Each rule's data, aimed at a target."""


def naming(bases):
    """Every target by every rule, as a Flax module and as a Haiku function."""
    return {
        f"{kind} {tag} {module}:{target}": bases[kind].with_module(node(module, target))
        for kind in ("flax", "haiku")
        for tag, node in NODES.items()
        for module, target in TARGETS
    }


def elsewhere(bases):
    """The same where a layer has other parts of its model, and where a call has arguments."""
    source = ("config", "source", "data")
    call = ("build_config", "call", "structure", "call")
    places = {
        "method": lambda a, data: a.changed((*source, "method"), data),
        "adapter": lambda a, data: a.changed((*source, "adapter"), data),
        "dtype": lambda a, data: a.changed(("config", "dtype"), data),
        "remat": lambda a, data: a.changed(("config", "remat"), data),
        "state_policy": lambda a, data: a.changed(("config", "state_policy"), {".*": data}),
        "regularizers": lambda a, data: a.changed(("config", "regularizers"), {".*": data}),
        "constraints": lambda a, data: a.changed(("config", "constraints"), {".*": data}),
        "keep_float32": lambda a, data: a.changed(("config", "keep_float32"), [data]),
        "freezing": lambda a, data: a.changed(("config", "freezing"), [{"freeze": data}]),
        "capture": lambda a, data: a.changed(("config", "capture"), [data]),
        "training_arg": lambda a, data: a.changed(("config", "training_arg"), [data]),
        "argument": lambda a, data: a.changed((*call, "kwargs"), {"x": data}),
        "positional": lambda a, data: a.changed((*call, "args", 0), data),
    }
    aims = [("os", "system"), (BAIT, "run"), ("builtins", "eval"), ("jax.numpy", "save")]
    return {
        f"{place} {tag} {module}:{target}": change(bases["flax"], NODES[tag](module, target))
        for (place, change), tag, (module, target) in itertools.product(
            places.items(), ("name", "partial", "made", "constructed", "function of keras"), aims
        )
    }


def _sequential(*layers, **more):
    cls = named("flax.linen", "Sequential")
    return {"$": "dataclass", "class": cls, "fields": {"layers": list(layers)}, **more}


def _laughing():
    """A tuple of a tuple twice, of a tuple twice, ..., told in a few lines."""
    items = [{"$": "items", "type": "tuple", "items": [1, 1], "id": 0}]
    for number in range(60):
        twice = [{"$": "same", "id": number}] * 2
        items.append({"$": "items", "type": "tuple", "items": twice, "id": number + 1})
    return items


def _nested(depth):
    data = []
    for _ in range(depth):
        data = [data]
    return data


def _deep_text(depth):
    return '{"a":' * depth + "1" + "}" * depth


WITH_A_WHILE_LOOP = {
    "cond_fun": name("jax.numpy", "ones_like"),
    "body_fun": name("jax.nn", "relu"),
    "init_val": 1.0,
}

TRICKS = {
    # Objects that are the same for a whole process, and have methods that change them.
    "defjvp": {"$": "method", "of": name("jax.nn", "relu"), "method": "defjvp"},
    "def_impl": {"$": "method", "of": name("jax.lax", "add_p"), "method": "def_impl"},
    "settings": {"$": "method", "of": name("flax.linen.module", "config"), "method": "update"},
    "ABCMeta.register": {
        "$": "method",
        "of": name("haiku", "RNNCore"),
        "method": "register",
    },
    "a method that runs": {"$": "method", "of": dense(), "method": "__reduce__"},
    # Functions that compute, or change something, in place of those that make functions.
    "made with all memory": made("jax.numpy", "zeros", shape=10**12),
    "made by an initialiser": made("jax.nn.initializers", "zeros", key=0, shape=[10**12]),
    "made without an end": made("jax.lax", "while_loop", **WITH_A_WHILE_LOOP),
    "made of a class": made("flax.struct", "dataclass", clz=name("flax.linen", "Dense")),
    "made for all": made("flax.linen", "set_logical_axis_rules", rules=[]),
    "made a mesh": {
        "$": "constructed",
        "class": named("jax.sharding", "set_mesh"),
        "args": [1],
        "kwargs": {},
        "attributes": {},
    },
    "a list of everything": {
        "$": "constructed",
        "class": named("builtins", "list"),
        "kwargs": {},
        "args": [{"$": "range", "type": "range", "bounds": [0, 10**12, 1]}],
        "attributes": {},
    },
    "a long range": {"$": "range", "type": "range", "bounds": [0, 10**12, 1]},
    # Functions that change the process, once they are called.
    "named_call": _sequential(partial(name("flax.linen", "enable_named_call"))),
    "set_mesh": _sequential(partial(name("jax.sharding", "set_mesh"), None)),
    "dataclass of a class": _sequential(
        partial(name("flax.struct", "dataclass"), name("flax.linen", "Dense"))
    ),
    # Functions of Keras that do more than compute, with arguments of the file's choice.
    "plot_model": _sequential(partial(of_keras("keras.utils", "plot_model"), to_file="evil.png")),
    "set_floatx": _sequential(partial(of_keras("keras.config", "set_floatx"), "float64")),
    "load_data": _sequential(partial(of_keras("keras.datasets.mnist", "load_data"), path="evil")),
    "download": _sequential(partial(of_keras("keras.applications", "ResNet50"))),
    "several": {"$": "keras", "keras": {"a": of_keras("keras.config", "set_floatx")["keras"]}},
    "a lambda": {
        "$": "keras",
        "keras": {
            "class_name": "__lambda__",
            "config": {"value": base64.b64encode(b"\xe3" + bytes(40)).decode()},
        },
    },
    "a Lambda layer": {
        "$": "keras",
        "keras": {
            "class_name": "Lambda",
            "module": "keras.layers",
            "registered_name": None,
            "config": {"function": {"class_name": "__lambda__", "config": {"value": "4w=="}}},
        },
    },
    # Sizes and structures.
    "laughing": _laughing(),
    "nested": _nested(90),
    "nested more": _nested(900),
    "the same as itself": {**dense(kernel_init={"$": "same", "id": 7}), "id": 7},
    "the same as nothing": {"$": "same", "id": 10**40},
    "a huge layer": dense(features=10**12),
    "a layer without a size": dense(features=10**40),
    "a huge array": {
        "$": "array",
        "kind": "jax",
        "dtype": "float32",
        "shape": [10**12],
        "base64": "",
    },
    "no kind": {"$": None},
    "unknown kind": {"$": "spell"},
    "keras in place of data": dense(
        kernel_init={"class_name": "__lambda__", "config": {"value": "4w=="}}
    ),
    "a layer in place of data": {
        "class_name": "Lambda",
        "module": "keras.layers",
        "config": {},
        "registered_name": "x",
    },
}
"""Data for the model."""


def tricks(bases):
    return {key: bases["flax"].with_module(data) for key, data in TRICKS.items()}


EXPONENTIAL = ["(a+)+b", "(a|a)*b", "(.*)*x", "(?:a?){60}a{60}", r"(?:\w+\s?)*!", "(a|aa)+$"]
POLYNOMIAL = [".*" * 12 + "x", "a*" * 9 + "b"]


def patterns(bases):
    """Regular expressions that take for ever, for a path that makes them."""
    module = partial(name("haiku.nets", "MLP"), [4, 2], name="a" * 60)
    cases = {}
    for pattern in EXPONENTIAL + POLYNOMIAL:
        options = {
            "regularizers": {pattern: "l2"},
            "constraints": {pattern: "non_neg"},
            "keep_float32": [pattern],
            "freezing": [{"freeze": pattern}],
            "state_policy": {pattern: "drop"},
            "capture": [pattern],
        }
        for option, value in options.items():
            changed = bases["haiku"].with_module(module).changed(("config", option), value)
            cases[f"{option} {pattern}"] = changed
    return cases


def sizes(bases):
    """Sizes that nothing has, in the call and in the weights."""
    array = ("build_config", "call", "arrays", 0)
    flax, cases = bases["flax"], {}
    for size in (10**12, 2**62, 2**63, 10**40):
        cases[f"shape {size}"] = flax.changed((*array, "shape"), [None, size])
        cases[f"all of shape {size}"] = flax.changed((*array, "shape"), [size, size])
    cases["many dimensions"] = flax.changed((*array, "shape"), [1] * 10**5)
    cases["many arrays"] = flax.changed(
        ("build_config", "call", "arrays"), [at(flax.layer, array)] * 10**5
    )
    cases["input_shape"] = flax.changed(("build_config",), {"input_shape": [None, 10**12]})
    cases["a huge dataset"] = flax.with_weights(_with_huge_dataset)
    return cases


def _leaves(file):
    """The groups and names of all datasets of a file of weights."""
    found = []
    file.visititems(
        lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None
    )
    return [path for path in found if "optimizer" not in path]


def _kernel(file):
    return next(path for path in _leaves(file) if file[path].ndim == 2)


def _with_huge_dataset(file):
    path = _kernel(file)
    del file[path]
    file.create_dataset(path, (10**6, 10**6), "float32", chunks=(1000, 1000), compression="gzip")


def _index(file):
    return next(path for path in _leaves(file) if path.endswith("%index"))


def _replace(file, path, value):
    del file[path]
    file[path] = value


def _replace_by_group(file):
    path = _kernel(file)
    del file[path]
    file.create_group(path)


WEIGHT_CHANGES = {
    "a value": lambda f: f[_kernel(f)].__setitem__((0, 0), 1e9),
    "not a number": lambda f: f[_kernel(f)].__setitem__((0, 0), math.nan),
    "a shape": lambda f: _replace(f, _kernel(f), np.zeros((2, 2), "float32")),
    "a dtype": lambda f: _replace(f, _kernel(f), np.asarray(f[_kernel(f)]).astype("int32")),
    "text": lambda f: _replace(f, _kernel(f), "text"),
    "objects": lambda f: _replace(f, _kernel(f), np.array(["a", "b"], h5py.string_dtype())),
    "a group": _replace_by_group,
    "a missing leaf": lambda f: f.__delitem__(_kernel(f)),
    "one leaf more": lambda f: f.__setitem__(_kernel(f) + "2", np.zeros(3)),
    "no index": lambda f: _replace(f, _index(f), np.zeros(0, "uint8")),
    "an index that is no JSON": lambda f: _replace(f, _index(f), np.full(9, 123, "uint8")),
    "a deep index": lambda f: _replace(f, _index(f), np.frombuffer(b"[" * 10**6, "uint8")),
    "an index of huge leaves": lambda f: _replace(
        f,
        _index(f),
        np.frombuffer(
            np.asarray(f[_index(f)]).tobytes().replace(b"[3, 4]", b"[3, 4000000000000]"), "uint8"
        ),
    ),
    "an external link": lambda f: _replace(f, _kernel(f), h5py.ExternalLink("/etc/passwd", "/")),
    "a soft link": lambda f: _replace(f, _kernel(f), h5py.SoftLink("/")),
    "a cycle": lambda f: _replace(f, _kernel(f), f["/"]),
}


def weights(bases):
    cases = {
        f"{kind}: {key}": bases[kind].with_weights(change)
        for kind in ("flax", "program")
        for key, change in WEIGHT_CHANGES.items()
        if kind == "flax" or key == "a value"
    }
    other = bases["haiku"].members[WEIGHTS]
    cases["of another model"] = Archive({**bases["flax"].members, WEIGHTS: other})
    cases["none"] = Archive({k: v for k, v in bases["flax"].members.items() if k != WEIGHTS})
    cases["empty"] = Archive({**bases["flax"].members, WEIGHTS: b""})
    return cases


def texts(bases):
    """Configs that are no configs."""
    flax = bases["flax"]
    contents = {
        "nothing": b"",
        "no JSON": b"{",
        "a list": b"[]",
        "a number": b"1",
        "null": b"null",
        "no text": b"\xff\xfe\x00",
        "deep": _deep_text(10**5),
        "deep lists": "[" * 10**5,
        "a huge number": "1" * 10**5,
        "not a number": b"NaN",
        "an empty object": b"{}",
    }
    cases = {key: flax.with_config(text) for key, text in contents.items()}
    deep = '"deep"'
    for place in (("config", "source", "data", "module"), ("build_config",), ("config", "capture")):
        text = flax.changed(place, "deep").members[CONFIG].decode()
        nested = text.replace(deep, _deep_text(900))
        cases[f"deep at {place[-1]}"] = flax.with_config(nested)
    return cases


_PROGRAM = ("config", "program", "config", "program")


def _digests(archive):
    return list(at(archive.layer, (*_PROGRAM, "blobs")))


def with_blob(archive, old, content):
    """The archive with other bytes in place of a blob, under a digest that is right."""
    blob = Blob.of(content)
    text = json.dumps(archive.changed((*_PROGRAM, "blobs", old), blob.get_config()).config)
    return archive.with_config(text.replace(old, blob.digest))


def blob_bytes(archive, digest):
    config = at(archive.layer, (*_PROGRAM, "blobs", digest))
    return Blob(digest, config["size"], config["data"]).unpack()


def _exported(function, *targets):
    spec = jax.ShapeDtypeStruct((2,), "float32")
    allowed = [jax.export.DisabledSafetyCheck.custom_call(target) for target in targets]
    exported = jax.export.export(jax.jit(function), disabled_checks=allowed)(spec)
    return bytes(exported.serialize())


def _evil(x):
    return jax.ffi.ffi_call("system", jax.ShapeDtypeStruct((2,), "float32"))(x)


def programs(bases):
    """Programs that are broken, or do more than compute. Their checksums are right."""
    archive = bases["program"]
    digests = _digests(archive)
    blobs = at(archive.layer, (*_PROGRAM, "blobs"))
    first, content = digests[0], blob_bytes(archive, digests[0])
    cases = {
        "a custom call": with_blob(archive, first, _exported(_evil, "system")),
        "another program": with_blob(archive, first, _exported(lambda x: x + 1)),
        "nothing": with_blob(archive, first, b""),
        "zeros": with_blob(archive, first, bytes(1000)),
        "text": with_blob(archive, first, b"evil"),
        "a pickle": with_blob(archive, first, b"cos\nsystem\n(S'touch evil'\ntR."),
        "swapped": archive.changed(
            (*_PROGRAM, "blobs"), dict(zip(digests, [*blobs.values()][::-1], strict=True))
        ),
        "a bomb": archive.changed((*_PROGRAM, "blobs", first, "data"), _bomb(10**9)),
        "a bomb that says so": archive.changed(
            (*_PROGRAM, "blobs", first), {"size": 10**9, "data": _bomb(10**9)}
        ),
        "huge": archive.changed((*_PROGRAM, "blobs", first, "size"), 10**12),
        "huge params": archive.changed((*_PROGRAM, "params", "arrays", 0, "shape"), [10**11]),
        "huge params without an init": archive.changed((*_PROGRAM, "init"), None).changed(
            (*_PROGRAM, "params", "arrays", 0, "shape"), [10**11]
        ),
        "deep": archive.changed((*_PROGRAM, "state", "tree"), _nested(500)),
        "another name": archive.changed(("config", "program", "config", "stands_for"), "a b"),
    }
    for key, changed in flipped(content, 50, seed=0).items():
        data = {"size": len(content), "data": base64.b64encode(zlib.compress(changed)).decode()}
        cases[f"flipped {key}"] = archive.changed((*_PROGRAM, "blobs", first), data)
    return cases


def _bomb(size):
    return base64.b64encode(zlib.compress(bytes(size), 9)).decode()


WRONG = {
    "none": None,
    "true": True,
    "int": -3,
    "huge": 10**40,
    "text": "text",
    "list": [],
    "items": [1, "a"],
    "dict": {},
    "entries": {"a": 1},
    "nan": math.nan,
    "gone": GONE,
}


def wrong_types(archive, below=("config", "build_config"), depth=100):
    """Each value in what Keras keeps for our layer, replaced by one of another type."""
    cases = {}
    for path in paths(archive.layer):
        if path[0] not in below or not 2 <= len(path) <= depth:
            continue
        for key, value in WRONG.items():
            if value is GONE and isinstance(path[-1], int):
                continue
            if value is GONE or not _is_same(value, at(archive.layer, path)):
                cases[f"{'/'.join(map(str, path))} {key}"] = archive.changed(path, value)
    return cases


def spread(cases, most):
    """At most so many of the cases, from everywhere."""
    chosen = np.linspace(0, len(cases) - 1, min(most, len(cases))).astype(int)
    return {name: cases[name] for name in np.array(list(cases))[chosen].tolist()}


def of_all(bases, make):
    """The cases that are made of each archive."""
    made = {kind: make(base) for kind, base in bases.items()}
    return {f"{kind} {name}": file for kind, cases in made.items() for name, file in cases.items()}


def _is_same(one, other):
    return type(one) is type(other) and one == other


# Archives that are no archives: whole files, as bytes.


def content(archive, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    archive.write(stream, compression)
    return stream.getvalue()


def truncated(archive, count):
    whole = content(archive)
    return {f"at {end}": whole[:end] for end in np.linspace(0, len(whole) - 1, count).astype(int)}


def flipped(whole, count, seed):
    """Bytes with one bit changed, each time another."""
    draw = random.Random(seed)
    cases = {}
    for _ in range(count):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        cases[f"byte {place} bit {bit}"] = bytes(changed)
    return cases


def zips(archive):
    """Archives whose members are where they should not be, twice, linked, or far too large."""
    cases = {}
    for place in ("../evil.txt", "/tmp/hostile-evil.txt", "assets/../../evil.txt", "assets/evil"):
        cases[f"with {place}"] = content(Archive({**archive.members, place: b"evil"}))
    cases["twice"] = _zip([*archive.members.items(), (CONFIG, b"{}")])
    cases["weights twice"] = _zip([*archive.members.items(), (WEIGHTS, b"")])
    link = zipfile.ZipInfo(WEIGHTS)
    link.external_attr = 0o120777 << 16
    members = {name: data for name, data in archive.members.items() if name != WEIGHTS}
    cases["a link"] = _zip([*members.items(), (link, b"/etc/passwd")])
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as file:
        for member, data in members.items():
            file.writestr(member, data)
        with file.open(WEIGHTS, "w", force_zip64=True) as stream:
            for _ in range(1024):
                stream.write(bytes(2**20))
    cases["a bomb"] = zeros.getvalue()
    cases["not a zip"] = b"PK\x03\x04" + bytes(100)
    cases["nothing"] = b""
    return cases


def _zip(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there already
        for member, data in members:
            file.writestr(member, data)
    return stream.getvalue()


GROUPS = {
    "naming": naming,
    "elsewhere": elsewhere,
    "tricks": tricks,
    "patterns": patterns,
    "sizes": sizes,
    "weights": weights,
    "texts": texts,
    "programs": programs,
    "wrong types": lambda bases: wrong_types(bases["flax"], depth=3),
    "truncated": lambda bases: of_all(bases, lambda base: truncated(base, 25)),
    "flipped": lambda bases: of_all(bases, lambda base: flipped(content(base), 50, seed=0)),
    "zips": lambda bases: zips(bases["flax"]),
}
