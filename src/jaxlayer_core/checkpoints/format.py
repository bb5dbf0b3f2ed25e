"""A way to keep variables in a file: the extension point."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import jax

from jaxlayer_core.pure import PyTree
from jaxlayer_core.specs import ArraySpec


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is saved, in two forms; a format takes the one that it can keep.

    Attributes:
        named: the value of each variable by its path, such as `params/Dense_0/kernel`.
        tree: the same values in the model's own tree, as its framework takes it. Leaves that
            are no variables, such as text, are in it, too. PRNG keys are their key data.
    """

    named: Mapping[str, jax.Array]
    tree: PyTree


class Source(abc.ABC):
    """Variables that can be read. Abstract."""

    @property
    @abc.abstractmethod
    def specs(self) -> Mapping[str, ArraySpec]:
        """Shape and dtype of each array by its name, known without reading the values.

        A name is what is written there, its parts joined by `/`, or by `.` if no name has a
        `/`. Anything that is no array of numbers is left out.
        """

    @abc.abstractmethod
    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[tuple[str, Any]]:
        """Reads values, one at a time where the format allows it.

        Damage is looked for in everything that is wanted before the first value is given:
        what the format cannot tell then, it cannot tell at all.

        Args:
            wanted: names out of `specs`, with the shape that is known to be there, and with the
                dtype and sharding that the value will get. A source that cannot place values
                itself gives NumPy arrays.

        Yields:
            Names, in any order, with arrays that nobody else writes to or deletes.

        Raises:
            Exception: what the format's library raises if the file is damaged.
        """


class Format(abc.ABC):
    """One way to keep variables in a file or folder. Abstract; made without arguments.

    A package adds one by an entry point of the group `jaxlayer.formats`. The name of the entry
    point is the suffix of its files without the dot, and what `format=` takes.
    """

    label: ClassVar[str]
    """What it is called in messages."""

    markers: ClassVar[tuple[str, ...]] = ()
    """Where `write` makes a folder: files of which it has one at least. No other is replaced."""

    is_shared: ClassVar[bool] = False
    """Whether several processes write one folder together, each its parts of the arrays."""

    @abc.abstractmethod
    def open(self, path: Path) -> AbstractContextManager[Source]:
        """Opens what is at `path`, until the context ends.

        Args:
            path: a file, or a folder, that exists.

        Raises:
            MissingDependencyError: a package that this needs is not installed.
            Exception: what the format's library raises if the file is damaged.
        """

    @abc.abstractmethod
    def write(self, path: Path, contents: Contents) -> None:
        """Writes a new file or folder.

        Args:
            path: nothing is there yet; its name has the suffix that the user gave.
            contents: what to write.

        Raises:
            MissingDependencyError: a package that this needs is not installed.
            CheckpointError: the format cannot hold a leaf, which is named.
        """
