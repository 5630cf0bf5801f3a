"""What the benchmark scripts share: results as JSON lines that a second run appends to, and tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


class Record:
    """Rows measured so far, by key; rows in the file are not measured again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):  # a run that was killed while it wrote
                path.write_text("".join(lines := lines[:-1]))
            self.rows = [json.loads(line) for line in lines]

    def known(self, **key: Any) -> bool:
        """Whether a row with this key is there."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, to the file at once."""
        self.rows.append(dict(row))
        if self.path is not None:
            with self.path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    def show(self, columns: Iterable[str]) -> None:
        """Print the rows."""
        names = list(columns)
        table = Table(*names)
        for row in self.rows:
            table.add_row(*(_cell(row.get(name)) for name in names))
        Console(width=160).print(table)


def write_page(page: Path, mark: str, title: str, lines: Iterable[str]) -> None:
    """Write lines below the mark of a page; what stands above it, by hand, stays."""
    head = page.read_text().split(mark)[0] if page.exists() else f"# {title}\n\n"
    page.write_text(head + mark + "\n" + "\n".join(lines))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parser(text: str) -> argparse.ArgumentParser:
    """Flags of every script."""
    made = argparse.ArgumentParser(description=text)
    made.add_argument("--output", type=Path, default=None, help="JSON lines; rows in it are not measured again")
    made.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/")
    return made
