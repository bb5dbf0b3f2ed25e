"""A model as a serialised program: everything but its source and its weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import export

from jaxlayer_core.errors import NotExpressibleError, ProgramError, SignatureError
from jaxlayer_core.program import exporting, running, shortcomings, signatures, trees
from jaxlayer_core.program.arrays import Form
from jaxlayer_core.program.calls import Call, show
from jaxlayer_core.program.initializing import Init
from jaxlayer_core.program.library import Library
from jaxlayer_core.program.method import Method, method_name
from jaxlayer_core.program.owned import Owned
from jaxlayer_core.program.reading import Reader, broken
from jaxlayer_core.program.trees import Node
from jaxlayer_core.program.versions import Versions
from jaxlayer_core.pure import Arguments, Outcome, PureModule, PyTree, Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A model whose source is not needed any more.

    Attributes:
        owner: the model's name, for errors.
        methods: its methods by name; None is the usual one.
        params: its params.
        state: its state.
        calls: the calls that it holds.
        init: its initialisation, or None if it has none.
        library: the blobs that compute.
        gaps: what could not be stored, and why.
    """

    owner: str
    methods: Mapping[str | None, Method]
    params: Owned
    state: Owned
    calls: tuple[Call, ...]
    init: Init | None
    library: Library
    gaps: tuple[str, ...]

    def zeros(self) -> Variables:
        """Variables to load weights into."""
        return Variables(self.params.zeros(), self.state.zeros())

    def module(self, method: Any) -> PureModule:
        """One of the model's methods in canonical form.

        Args:
            method: its name; None for the usual one.

        Raises:
            SignatureError: the program does not hold it.
        """
        name = method_name(method)
        if name not in self.methods:
            raise signatures.not_held(self.owner, f"the method {name!r}", self._shown())
        own = self.methods[name]
        init = functools.partial(self._run_init, own) if self.init else None
        return own.module(init, functools.partial(self._run_call, name))

    def _shown(self) -> list[str]:
        return [*map(str, self.calls), *(f"not: {gap}" for gap in self.gaps)]

    def _read(self, own: Method, arguments: Arguments, init: bool = False) -> Any:
        """The arrays of arguments, and the structure around them."""
        signature = (own.init_signature if init else None) or own.signature
        try:
            return trees.split(signatures.named(signature, arguments), numbers=False)
        except NotExpressibleError as error:
            shown = self._shown()
            wanted = f"a call with an argument that no data can express ({error})"
            raise signatures.not_held(self.owner, wanted, shown) from error

    def _find(self, name: str | None, training: bool, node: Node, arrays: Any) -> Call:
        """The stored call that a call is like."""
        alike = [call for call in self.calls if call.is_like(name, training, node)]
        fitting = [call for call in alike if call.takes(call.ordered(node, arrays))]
        exact = [call for call in fitting if call.is_exact(call.ordered(node, arrays))]
        if found := exact or fitting:
            # The open one is the first of them.
            return next((call for call in found if call.no_gradient is None), found[0])
        wanted = _shown_call(name, training, node, arrays)
        if not alike:
            raise signatures.not_held(self.owner, wanted, self._shown())
        expected = "".join(f"\n  {call}{_at_least(call)}" for call in alike)
        raise SignatureError(
            f"{self.owner} was loaded from a saved program, and got arrays of other shapes or "
            f"dtypes than that takes. Expected (None is any size):{expected}\nGot:\n  {wanted}"
        )

    def _run_call(
        self,
        name: str | None,
        params: PyTree,
        state: PyTree,
        rng: jax.Array,
        arguments: Arguments,
        training: bool,
    ) -> Outcome:
        arrays, node = self._read(self.methods[name], arguments)
        call = self._find(name, training, node, arrays)
        own = [*self.params.values(params, self.owner), *self.state.values(state, self.owner)]
        inputs = call.read_inputs(call.ordered(node, arrays))
        results = self._run(call, own, rng, inputs)
        parts = call.results.join(iter(results))
        parts["state"] = self.state.updated(state, parts["state"])
        return Outcome(**parts)

    def _run_init(self, own: Method, rng: jax.Array, arguments: Arguments) -> Variables:
        assert self.init is not None
        arrays, node = self._read(own, arguments, init=True)
        inputs = self.init.inputs(node, arrays)
        if inputs is None:
            got = _shown_call(None, True, node, arrays)
            raise SignatureError(
                f"{self.owner} was loaded from a saved program, and can only be initialised as it "
                f"was then: for {self.init.call}. Got {got}. Load "
                "weights instead, or build the layer from the model itself."
            )
        return self.init.variables(self._run(self.init.call, [], rng, inputs))

    def _run(self, call: Call, own: list[Any], rng: jax.Array, inputs: list[Any]) -> Any:
        platform = export.default_export_platform()
        if platform not in call.platforms:
            raise ProgramError(
                f"The saved program of {self.owner} runs on {', '.join(call.platforms)}, and this "
                f"is {platform}: the model had operations that JAX does not have for all of these. "
                "Save it again here, or build the layer from the model itself."
            )
        key = [jax.random.key_data(rng)] if call.draws else []
        exported = self.library.exported(call.blob)
        function = running.function(exported, self.owner, call.no_gradient)
        return function(*own, *key, *inputs)

    def shortcomings(self) -> list[str]:
        """What it cannot do that the model could: modes, gradients, sizes, platforms, calls.

        Returns:
            One sentence for each; none for a program that answers all calls that were made, for
            any number of examples, on all platforms.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from jaxlayer_core import as_layer
            >>> layer = as_layer(nn.Dense(2))
            >>> outputs = layer(jnp.ones((4, 3)))
            >>> layer.to_program().shortcomings()
            []
        """
        return shortcomings.of(self.calls, self.gaps)

    def with_gaps(self, *gaps: str) -> Program:
        """The program, with more to tell of what is not in it."""
        return dataclasses.replace(self, gaps=(*self.gaps, *gaps))

    def get_config(self) -> dict[str, Any]:
        """The program as JSON data."""
        named = [{"name": name, **m.get_config()} for name, m in self.methods.items()]
        return {
            "versions": self.library.versions.get_config(),
            "owner": self.owner,
            "methods": named,
            "params": self.params.get_config(),
            "state": self.state.get_config(),
            "calls": [call.get_config() for call in self.calls],
            "init": None if self.init is None else self.init.get_config(),
            "blobs": self.library.get_config(),
            "gaps": list(self.gaps),
        }

    @classmethod
    def from_config(cls, config: Any) -> Program:
        """The program of `get_config()`, which may come from anywhere.

        Raises:
            ProgramError: it is broken, or contains what is not known to be harmless.
            MissingDependencyError: a package that reading needs is not installed.
        """
        exporting.require_serializer()
        reader = Reader(config, "program")
        versions = Versions.read(reader.reader("versions"))
        params, state = Owned.read(reader.reader("params")), Owned.read(reader.reader("state"))
        owner = reader.text("owner")
        program = cls(
            owner=owner,
            methods={r.optional_text("name"): Method.read(r) for r in reader.readers("methods")},
            params=params,
            state=state,
            calls=tuple(map(Call.read, reader.readers("calls"))),
            init=Init.read(reader.reader("init"), params, state) if reader.has("init") else None,
            library=Library.read(reader, "blobs", owner, versions),
            gaps=tuple(reader.texts("gaps")),
        )
        program._verify()
        return program

    def _verify(self) -> None:
        """Checks that the parts belong together, before anything is compiled.

        Raises:
            ProgramError: they do not.
        """
        if None not in self.methods:
            raise broken("program.methods", "lack the usual one")
        own = [*self.params.forms(), *self.state.forms()]
        for number, call in enumerate(self.calls):
            where = f"program.calls[{number}]"
            if call.method not in self.methods:
                raise broken(where, f"is of the unknown method {call.method!r:.40}")
            if not call.results.has_names("captured", "outputs", "sown", "state"):
                raise broken(where, "does not return what a call does")
            state = [path for path in call.results.arrays if path[0] == "state"]
            if state != [("state", str(index)) for index in range(len(self.state.arrays))]:
                raise broken(where, "does not return the state of the program")
            self.library.verify(call, own, where)
        if self.init is not None:
            self.library.verify(self.init.call, [], "program.init")


def _shown_call(name: str | None, training: bool, node: Node, arrays: Sequence[Any]) -> str:
    forms = iter(map(Form.of, arrays))
    return show(name, training, node, [next(forms) for _ in node.arrays])


def _at_least(call: Call) -> str:
    return f", open sizes at least {call.least}" if call.is_open and call.least > 1 else ""
