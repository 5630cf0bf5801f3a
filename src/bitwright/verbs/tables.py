"""How results look: labelled facts, and tables of several columns; numbers as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

#: Names of multiples of a thousand.
PREFIXES = ("", " k", " M", " G", " T", " P")


def facts(rows: Iterable[tuple[str, str]] = ()) -> Table:
    """One labelled fact a line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with a line below its heads; a head that begins with ">" is a column of numbers.

    Names are broken where they have to be, never cut; numbers stay whole.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for head in heads:
        number = head.startswith(">")
        table.add_column(
            head.removeprefix(">"), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction for people.

    Example:
        >>> percent(0.98765)
        '98.77 %'
    """
    return f"{100 * fraction:.{digits}f} %"


def points(fraction: float) -> str:
    """A signed difference of two fractions, in percentage points."""
    return f"{100 * fraction:+.2f}"


def short(number: float) -> str:
    """Four digits and a prefix.

    Example:
        >>> short(41524264960), short(268336), short(512)
        ('41.52 G', '268.3 k', '512')
    """
    step = 0
    while abs(number) >= 999.95 and step < len(PREFIXES) - 1:
        number, step = number / 1000, step + 1
    return f"{number:.4g}{PREFIXES[step]}"


def counted(counts: Mapping[str, int]) -> str:
    """How many of each, most frequent first; each stays in one piece where the line is broken.

    Example:
        >>> counted({"Add": 9, "Conv": 20})
        '20\u00d7Conv, 9\u00d7Add'
    """
    return ", ".join(f"{n}\u00d7{name}" for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def dimensions(shape: Sequence[int | None]) -> str:
    """A shape for people; N is the batch.

    Example:
        >>> dimensions([None, 3, 224, 224])
        'Nx3x224x224'
    """
    return "x".join("N" if size is None else str(size) for size in shape)


def file_labels(paths: Sequence[str]) -> list[str]:
    """Names of files without their folders, where that tells them apart.

    Example:
        >>> file_labels(["a/x.onnx", "a/y.onnx"]), file_labels(["a/x.onnx", "b/x.onnx"])
        (['x.onnx', 'y.onnx'], ['a/x.onnx', 'b/x.onnx'])
    """
    names = Counter(Path(path).name for path in set(paths))
    return [Path(path).name if names[Path(path).name] == 1 else path for path in paths]
