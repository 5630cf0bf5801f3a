"""Where a verb speaks: notes and progress bars on stderr; stdout belongs to the result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """How much to say.

    Attributes:
        quiet: no notes, no progress bars.
        seed: of everything random.
    """

    quiet: bool = True
    seed: int = 0

    def note(self, text: str) -> None:
        """One line for people, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar while stderr is a terminal; the callable moves it on."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda n: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)
