"""The Keras layer over a stored program."""

from __future__ import annotations

import functools
from typing import Any

import keras

from jaxlayer_core.errors import ProgramError
from jaxlayer_core.layer import PureLayer
from jaxlayer_core.program import Program
from jaxlayer_core.pure import PyTree


class ProgramLayer(PureLayer):
    """Keras layer that runs a model whose source is gone.

    It is what a layer becomes that was saved with its program. It predicts, is trained and is
    saved again like that layer, and takes the calls that were made before it was saved, with
    other batch sizes and with other sizes of dimensions that were unknown then. It can be
    differentiated once, in reverse mode.

    Args:
        program: the program.
        params: initial params. Without them, and if the program has no initialisation, all
            variables are zeros until weights are loaded.
        state: initial state, likewise.
        seed: integer seed for the initial weights and all draws; None for a random one.
        **options: see `PureLayer`.
    """

    def __init__(
        self,
        program: Program,
        *,
        params: PyTree = None,
        state: PyTree = None,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        self.program = program
        if program.init is None:
            zeros = program.zeros()
            params = zeros.params if params is None else params
            state = zeros.state if state is None else state
        super().__init__(program.module, params=params, state=state, seed=seed, **options)

    def get_config(self) -> dict[str, Any]:
        """Config with the whole program."""
        return self.config_of(type(self).__name__, super().get_config(), self.program)

    @staticmethod
    def config_of(name: str, options: dict[str, Any], program: Program) -> dict[str, Any]:
        """The config of a layer that runs a program in place of another layer.

        Args:
            name: the other layer's class.
            options: what `PureLayer.get_config()` gives for it.
            program: its model.
        """
        return {**options, "stands_for": name, "program": program.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ProgramLayer:
        """Rebuilds the layer from `get_config()`.

        Raises:
            ProgramError: the program is broken, or contains what is not known to be harmless.
        """
        config = dict(config)
        named = _named(str(config.pop("stands_for", cls.__name__)))
        program = Program.from_config(config.get("program"))
        options = {**config, "program": program}
        layer: ProgramLayer = super(ProgramLayer, named).from_config(options)
        return layer


_register = keras.saving.register_keras_serializable(package="jaxlayer", name="ProgramLayer")
_register(ProgramLayer)


@functools.cache
def _named(name: str) -> type[ProgramLayer]:
    """The class with another name; Keras stores the weights of a layer under its class's name."""
    if name == ProgramLayer.__name__:
        return ProgramLayer
    if not name.isidentifier():
        raise ProgramError(f"A saved program stands for {name!r:.80}, which is no name of a class.")
    other = type(name, (ProgramLayer,), {"__module__": __name__})
    _register(other)  # both are saved as a `ProgramLayer` ...
    _register(ProgramLayer)  # ... and this is what is loaded
    return other
