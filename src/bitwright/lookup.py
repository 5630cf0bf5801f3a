"""Rows of the rooms' tables, and the one way to find a row by its name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bitwright.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of a table: where the object lives, and what it is, in one line.

    Resolved when used, so that a list of names costs no import.

    Example:
        >>> Row("bitwright.errors:GoalError", "a goal failed").load().__name__
        'GoalError'
    """

    path: str
    help: str

    def load(self) -> Any:
        """Import the object that the row names."""
        module, _, attribute = self.path.partition(":")
        return getattr(importlib.import_module(module), attribute)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known names, or all of them.

    Example:
        >>> did_you_mean("min-mx", ["min-max", "mse"])
        "did you mean 'min-max'?"
        >>> did_you_mean("zzz", ["min-max", "mse"])
        'choose from min-max, mse'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "choose from " + ", ".join(known) if known else "there is nothing to choose from"


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The row called `name`, or an InputError that names the nearest ones.

    Example:
        >>> lookup({"int8": 1}, "int8", "recipe")
        1
    """
    if name not in table:
        raise InputError(f"{kind} {name!r}", f"there is no {kind} of this name", fix=did_you_mean(name, table))
    return table[name]
