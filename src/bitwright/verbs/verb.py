"""What every verb is: fields that become flags, and an outcome that prints as a table or as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import RenderableType

from bitwright.verbs.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a verb found.

    Attributes:
        json: the object that `--json` prints; its keys are those of `schema.json`.
        text: what people read.
        exit_code: 0 done, 1 a goal or check failed.
    """

    json: Mapping[str, Any]
    text: RenderableType
    exit_code: int = 0


def finite(number: float | None) -> float | None:
    """None where a number is infinite: JSON has none such.

    Example:
        >>> finite(2.0), finite(float("inf"))
        (2.0, None)
    """
    return None if number is None or math.isinf(number) else number


class Verb(Protocol):
    """A frozen dataclass that runs."""

    def run(self, terminal: Terminal) -> Outcome:
        """Do it."""
        ...


def argument(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A positional argument of the command."""
    return dataclasses.field(default=default, metadata={"help": help, "argument": True})


def option(default: Any, help: str, *names: str) -> Any:
    """A flag of the command; `names` where they are not made from the field's name (`--field-name`)."""
    return dataclasses.field(default=default, metadata={"help": help, "names": names})
