"""What a training step of a decoder costs each device: the formulas of docs/scaling.md.

The blocks are one loop (`Decoder.scan`); what the mesh splits it splits into equal parts.
"""

from __future__ import annotations

import dataclasses

from decoder import Size

NUMBER = 4
"""Bytes of a float32."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Bytes per device and step, with Adam.

    Attributes:
        size: of the decoder.
        sequences: in a step, of all devices together.
        length: tokens in a sequence.
        batch: devices along the axis `batch`, which splits the sequences.
        model: devices along the axis `model`, which splits the projections.
        sharded: whether the axis `batch` splits the kernels, too.
        remat: whether blocks compute their intermediate values again in the backward pass.
    """

    size: Size
    sequences: int
    length: int
    batch: int = 1
    model: int = 1
    sharded: bool = False
    remat: bool = True

    @property
    def state(self) -> float:
        """Params and Adam's two slots."""
        return 3 * self.gradients

    @property
    def gradients(self) -> float:
        """As many as the device has params."""
        return NUMBER * (self._kernels / self._parts + self._scales)

    @property
    def stream(self) -> float:
        """The residual stream of the device's sequences."""
        return NUMBER * self._tokens * self.size.width

    @property
    def block(self) -> float:
        """What XLA keeps of a block for its backward pass."""
        size = self.size
        split = 4 * size.width + 6 * size.hidden + 2 * size.heads * self.length
        return NUMBER * self._tokens * (8 * size.width + split / self.model)

    @property
    def kept(self) -> float:
        """What is kept of a block until the backward pass comes to it."""
        return self.stream if self.remat else self.block

    @property
    def between(self) -> float:
        """All between the arguments and the results of the step, at its peak; an estimate.

        The block that the backward pass is at takes its values, if they are computed again, and
        half as much for their gradients; else what is kept of it can be reused.
        """
        working = 1.5 if self.remat else 1
        return self.gradients + self.size.layers * self.kept + working * self.block

    @property
    def communicated(self) -> float:
        """What collective operations give the device, as the sizes of their results."""
        return self.activations + self.gradients_summed + self.params_gathered

    @property
    def activations(self) -> float:
        """Partial sums of projections that are split, and looked up rows of a split table."""
        found = 0.0
        if self.model > 1:
            # Two per block forward, one per projection that reads the stream backward: there are
            # five. One is computed again. One more each for the embedding and the head.
            found += ((8 if self.remat else 7) * self.size.layers + 2) * self.stream
        if self._is_gathering:
            found += 2 * self.stream
        return found

    @property
    def gradients_summed(self) -> float:
        """Gradients of the params that the device computes with."""
        return NUMBER * (self._kernels / self.model + self._scales) if self.batch > 1 else 0.0

    @property
    def params_gathered(self) -> float:
        """Kernels whose other parts come from the devices along `batch`.

        Those of blocks come for the forward and for the backward pass, the head's once.
        """
        return NUMBER * (2 * self._blocks + self._table) / self.model if self._is_gathering else 0.0

    @property
    def _is_gathering(self) -> bool:
        return self.sharded and self.batch > 1

    @property
    def _parts(self) -> int:
        return self.model * (self.batch if self.sharded else 1)

    @property
    def _tokens(self) -> float:
        return self.sequences * self.length / self.batch

    @property
    def _table(self) -> int:
        """Of the embedding; the head has as many."""
        return self.size.vocabulary * self.size.width

    @property
    def _blocks(self) -> int:
        return self._kernels - 2 * self._table

    @property
    def _kernels(self) -> int:
        return self.size.params - self._scales

    @property
    def _scales(self) -> int:
        """Params that nothing splits."""
        return (2 * self.size.layers + 1) * self.size.width
