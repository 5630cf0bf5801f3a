"""The drawing of the rooms, as lint-imports reads it from pyproject.toml, refuses what it has to refuse.

`make lint` holds the drawing itself; here it is held against small packages that have the same rooms.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

RUN = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def layers(pyproject: Path) -> list[list[str]]:
    """The rooms of each layer, from the top down."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    (drawing,) = [contract for contract in contracts if contract["type"] == "layers"]
    return [[room.strip(" ()") for room in layer.split("|")] for layer in drawing["layers"]]


def lint_imports(imports: dict[str, str], root: Path, folder: Path) -> tuple[int, str]:
    """Exit code and output of lint-imports for a package with every room and nothing but these imports."""
    package = folder / "bitwright"
    package.mkdir()
    shutil.copy(root / "pyproject.toml", folder)
    rooms = [room for layer in layers(root / "pyproject.toml") for room in layer]
    for room in ["__init__", *rooms, *imports]:
        text = f"import bitwright.{imports[room]}\n" if room in imports else ""
        (package / f"{room}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, "-c", RUN, "--no-cache"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_the_drawing_is_the_one_of_the_design(root: Path) -> None:
    text = (root / "docs" / "design.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("`cli` >")).rstrip(".")
    drawn = [[room.strip(" `") for room in layer.split("|")] for layer in line.split(">")]
    assert layers(root / "pyproject.toml") == [["__main__"], *drawn]


def test_imports_downwards_are_kept(root: Path, tmp_path: Path) -> None:
    code, output = lint_imports(
        {"__main__": "cli", "cli": "verbs", "verbs": "graph", "plan": "errors"}, root, tmp_path
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ("imports", "told"),
    [
        ({"formats": "plan"}, "bitwright.formats is not allowed to import bitwright.plan"),
        ({"graph": "formats"}, "bitwright.graph is not allowed to import bitwright.formats"),
        ({"ptq": "qat"}, "bitwright.ptq is not allowed to import bitwright.qat"),
        ({"errors": "cli"}, "bitwright.errors is not allowed to import bitwright.cli"),
        ({"cellar": "errors"}, "bitwright.cellar"),
    ],
)
def test_other_imports_and_unknown_rooms_are_refused(
    imports: dict[str, str], told: str, root: Path, tmp_path: Path
) -> None:
    code, output = lint_imports(imports, root, tmp_path)
    assert code == 1 and told in output, output
