"""Figures in documents: tables out of results/*.json, written between marks."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def replace_between(path: pathlib.Path, mark: str, text: str) -> None:
    """Puts text between the marks of a document.

    Args:
        path: the document.
        mark: it has `<!-- benchmark:mark -->`, and `<!-- /benchmark -->` some lines below.
        text: what shall stand between them.

    Raises:
        ValueError: the document does not have the marks.
    """
    pattern = re.compile(rf"(<!-- benchmark:{mark} -->\n).*?(<!-- /benchmark -->)", re.S)
    document, count = pattern.subn(lambda m: f"{m[1]}{text}\n{m[2]}", path.read_text())
    if count != 1:
        raise ValueError(f"{path} has {count} places for benchmark:{mark}, not one")
    path.write_text(document)
