"""Archives as an attacker would make them, and a process that loads them and notices what they do.

    python tests/saving/hostile.py FOLDER

loads each `FOLDER/*.keras` in this process, under limits of memory and time, and prints a line of
JSON for each: what came of it, and what it did meanwhile. Those called `good...` come first. Each
`FOLDER/*.weights.h5` is loaded into the model of `good-flax.keras`, which has to stay as it was
where that fails.
"""

import copy
import dataclasses
import faulthandler
import functools
import io
import json
import os
import pathlib
import resource
import sys
import time
import warnings
import zipfile

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
MEMORY = 6 * 2**30
"""Bytes that the process may have beyond what the libraries take."""
SECONDS = 60
"""For one archive."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A saved model: the members of a `.keras` file."""

    members: dict
    place: tuple = ("config", "layers", -1)
    """Where in the config it is that Keras keeps what is ours: a layer, or an optimizer."""

    @classmethod
    def read(cls, path, *place):
        with zipfile.ZipFile(path) as file:
            return cls({name: file.read(name) for name in file.namelist()}, *place)

    @property
    def config(self):
        return json.loads(self.members[CONFIG])

    @property
    def layer(self):
        """The part of the config that Keras keeps for our layer, or optimizer."""
        return at(self.config, self.place)

    def with_config(self, config):
        text = config if isinstance(config, bytes | str) else json.dumps(config)
        text = text.encode() if isinstance(text, str) else text
        return dataclasses.replace(self, members={**self.members, CONFIG: text})

    def with_layer(self, layer):
        return self.with_config(replaced(self.config, self.place, layer))

    def changed(self, path, value):
        """The archive with another value at a path in what Keras keeps for our layer."""
        return self.with_layer(replaced(self.layer, path, value))

    def with_module(self, data):
        """The archive with other data for the model."""
        return self.changed(("config", "source", "data", "module"), data)

    def with_weights(self, change):
        """The archive after `change(file)` of its open HDF5 file."""
        import h5py

        stream = io.BytesIO(self.members[WEIGHTS])
        with h5py.File(stream, "r+") as file:
            change(file)
        return Archive({**self.members, WEIGHTS: stream.getvalue()})

    def write(self, path, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, content in self.members.items():
                file.writestr(name, content)


GONE = object()
"""In place of a value: the entry is taken out."""


def replaced(data, path, value):
    """JSON data with another value at a path."""
    if not path:
        return value
    data = copy.copy(data)
    first, *rest = path
    if value is GONE and not rest:
        del data[first]
    else:
        data[first] = replaced(data[first], rest, value) if rest else value
    return data


def at(data, path):
    for step in path:
        data = data[step]
    return data


def paths(data, path=()):
    """The paths of all that is inside JSON data."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from paths(item, (*path, key))


# In the process.

_DOING = ("os.", "shutil.", "subprocess.", "socket.", "pty.", "ctypes.", "tempfile.", "urllib.")
_HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# These make classes with `exec` and `eval` of names that they have checked, or of the annotations
# in a class's source, as NNX has it for each subclass.
_MAKING_CLASSES = {"collections", "dataclasses", "importlib._bootstrap", "typing"}
_FRAMEWORKS = {"keras", "jax", "jaxlib", "flax", "haiku", "jaxlayer", "jaxlayer_core", "numpy"}
_FRAMEWORKS |= {"jaxlayer_haiku", "jaxlayer_flax", "jaxlayer_equinox", "jaxlayer_optax"}
_FRAMEWORKS |= {"equinox", "optax", "optree", "h5py", "opt_einsum", "ml_dtypes"}


class Watch:
    """Notes what the interpreter does, by its own audit events, which no code can go around."""

    def __init__(self):
        self.events = []
        self._is_on = False
        self._modules = frozenset()
        sys.addaudithook(self._hear)

    def __enter__(self):
        self.events.clear()
        self._modules = frozenset(sys.modules)
        self._is_on = True
        return self

    def __exit__(self, *_):
        self._is_on = False
        new = sorted(set(sys.modules) - self._modules)
        self.events += [f"imported {n}" for n in new if n.partition(".")[0] not in _FRAMEWORKS]

    def _hear(self, event, arguments):
        if self._is_on and self._is_bad(event, arguments):
            self._is_on = False  # to describe it may cause events
            self.events.append(f"{event}{arguments!r:.200}")
            self._is_on = True

    def _is_bad(self, event, arguments):
        if event == "open":
            if isinstance(arguments[0], int):  # what is open already: the pipe of a process
                return False
            is_writing = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
            return is_writing and not self._is_inside(arguments)
        if event == "exec":
            return sys._getframe(2).f_globals.get("__name__") not in _MAKING_CLASSES
        if event in ("pickle.find_class", "code.__new__", "function.__new__"):
            return True
        if event == "subprocess.Popen" and _is_trial(arguments):
            return False
        is_action = event.startswith(_DOING) and event not in _HARMLESS
        return is_action and not self._is_inside(arguments)

    def _is_inside(self, arguments):
        """Whether all files are in the folder for temporary ones, where Keras unpacks assets."""
        names = [one for one in arguments if isinstance(one, str) and len(one) > 3]
        fd = arguments[-1] if isinstance(arguments[-1], int) else -1
        base = os.readlink(f"/proc/self/fd/{fd}") if 2 < fd < 1000 else ""
        folder = os.environ.get("TMPDIR", "nowhere") + os.sep
        places = [os.path.realpath(os.path.join(base, name)) for name in names]
        return bool(places) and all(f"{place}{os.sep}".startswith(folder) for place in places)


def _is_trial(arguments):
    """Whether a process is begun that does nothing but read a program before this one does."""
    trial = sys.modules.get("jaxlayer_core.program.trial")  # to import is no matter of an audit
    return trial is not None and list(arguments[1]) == [
        sys.executable,
        "-c",
        trial._READ,
        *sys.path,
    ]


def limit_memory():
    """Limits the address space, in which JAX and its threads have taken their share already."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def count_builds():
    """A list to which our layers and optimizers come, from here on, once they are built."""
    import jaxlayer_optax
    from jaxlayer_core.layer import PureLayer

    built = []

    def counting(build):
        @functools.wraps(build)
        def wrapper(self, *args, **kwargs):
            outcome = build(self, *args, **kwargs)
            built.append(self.name)
            return outcome

        return wrapper

    for cls in (PureLayer, jaxlayer_optax.OptaxOptimizer):
        cls.build = counting(cls.build)
    return built


def attempt(watch, load, built):
    """What came of loading: an outcome for JSON."""
    start = time.monotonic()
    built.clear()
    outcome = {"loaded": False, "error": None, "message": "", "kinds": []}
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    with warnings.catch_warnings(record=True) as caught, watch:
        warnings.simplefilter("always")
        try:
            outcome["answer"] = load()
            outcome["loaded"] = True
        except Exception as error:
            outcome["error"] = type(error).__name__
            outcome["kinds"] = [kind.__name__ for kind in type(error).__mro__]
            outcome["message"] = str(error)
            outcome["built"] = list(built)
    faulthandler.cancel_dump_traceback_later()
    outcome["warnings"] = [str(warning.message) for warning in caught]
    outcome["seconds"] = time.monotonic() - start
    outcome["events"] = list(watch.events)
    return outcome


def load_all(folder):
    """Loads all files of a folder, and prints what came of each."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it writes files
    import keras

    import jaxlayer  # noqa: F401

    watch, built, folder = Watch(), count_builds(), pathlib.Path(folder)
    good, flax = sorted(folder.glob("good*")), folder / "good-flax.keras"
    for path in good:  # what this imports, and keeps, is no matter of a file
        _tell(path, attempt(watch, lambda path=path: load_model(path), built))
    limit_memory()
    for path in sorted(set(folder.glob("*.*")) - {*good}):
        print(json.dumps({"begins": path.name}), flush=True)
        if path.suffix == ".keras":
            outcome = attempt(watch, lambda path=path: load_model(path), built)
        else:
            outcome = attempt(watch, lambda path=path: load_weights(path, flax, watch), built)
        _tell(path, outcome)
        keras.backend.clear_session(free_memory=False)


def _tell(path, outcome):
    print(json.dumps({"name": path.name.partition(".")[0], **outcome}), flush=True)


def load_model(path):
    """What a model answers, and its optimizer holds, once it is loaded."""
    import keras
    import numpy as np

    model = keras.models.load_model(path)
    model.get_config()
    inputs = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    outputs = keras.tree.flatten(model(inputs))
    if getattr(model, "optimizer", None) is not None:
        outputs += [variable.value for variable in model.optimizer.variables]
    return "".join(np.asarray(output).tobytes().hex() for output in outputs)


def load_weights(path, good, watch):
    """The variables of a model after loading them in two ways, or as they were where that fails."""
    import keras
    import numpy as np

    import jaxlayer

    def content():
        return [np.asarray(variable.value).tobytes().hex() for variable in model.variables]

    model = keras.models.load_model(good)
    whole = content()
    for variable in model.variables:
        variable.assign(variable.value + 1)
    before = content()
    for load in (jaxlayer.load_weights, keras.Model.load_weights):
        try:
            load(model, path)
        except Exception:
            # Keras goes on with the other parts of a model; no part of ours is half loaded.
            allowed = [before] if load is jaxlayer.load_weights else [before, whole]
            if content() not in allowed:
                watch.events.append(f"{load.__qualname__} failed and changed the model")
            if load is keras.Model.load_weights:
                raise
    return content()


if __name__ == "__main__":
    load_all(sys.argv[1])
