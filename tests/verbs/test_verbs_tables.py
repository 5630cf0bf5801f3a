"""Numbers and tables as people read them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from rich.console import Group

from bitwright.cli import rendered
from bitwright.verbs.tables import columns, counted, facts, file_labels, short

ROWS = [("layer1.0.shortcut.with.a.rather.long.name", "Conv", "1,234,567"), ("fc", "Gemm", "64")]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_keep_to_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    kernels = counted({f"SomeKernel{i}": i + 1 for i in range(20)})
    text = rendered(Group(facts([("kernels", kernels), ("site", "x" * 150)]), "", columns(("a", "b", ">n"), ROWS)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    joined = "".join(line.strip() for line in lines)
    assert "…" not in text and "x" * 150 in joined  # broken where it has to be, never cut
    assert all(f"{i + 1}×SomeKernel{i}" in text for i in range(20))  # each in one piece


def test_what_is_piped_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = rendered(columns(("a", "b", ">n"), ROWS)).splitlines()
    assert lines[2].split() == list(ROWS[0]) and lines[3].split() == list(ROWS[1])
    assert lines[2].endswith("1,234,567") and lines[3].endswith("       64")


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    odd = "a[0] [bold]b[/bold] :smile:"
    assert odd in rendered(facts([("site", odd)])) and odd in rendered(Group(odd))


def test_letters_that_the_terminal_lacks_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        encoding = "ascii"

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            return len(text.encode("ascii"))

        def flush(self) -> None: ...

    old: Any = Old()
    monkeypatch.setattr(sys, "stdout", old)
    text = rendered(Group(columns(("file", ">n"), [("café.onnx", "1")]), counted({"Conv": 3})))
    assert text.isascii() and "caf?.onnx" in text and "3?Conv" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_949, "999.9 k"),
        (999_950, "1 M"),
        (1.5e9, "1.5 G"),
        (2e18, "2000 P"),
    ],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


def test_file_labels_stay_different() -> None:
    assert file_labels(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "y"]
    assert file_labels(["a/x", "a/x"]) == ["x", "x"]
