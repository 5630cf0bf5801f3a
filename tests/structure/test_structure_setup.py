"""What is installed: every dependency is declared and pinned, every data file of the package is shipped."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

PIN = re.compile(r"([A-Za-z0-9._-]+)==[0-9][0-9A-Za-z.]*")


def canonical(name: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: Iterable[str]) -> set[str]:
    """ "numpy>=2.0" -> "numpy"."""
    return {canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}


def wrong_pins(text: str, required: set[str]) -> list[str]:
    """Lines that are no exact pin of a release from an index, and requirements that have no pin."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pins = [match for line in lines if (match := PIN.fullmatch(line))]
    names = [canonical(match[1]) for match in pins]
    bad = [f"{line}: is not name==version" for line in lines if not PIN.fullmatch(line)]
    bad += [f"{name}: pinned {names.count(name)} times" for name in sorted(set(names)) if names.count(name) > 1]
    return bad + [f"{name}: has no pin" for name in sorted(required - set(names))]


def undeclared_imports(package: Path, declared: set[str]) -> list[str]:
    """Imports of anything that is neither the standard library, the package itself, nor declared."""
    owners = packages_distributions()
    bad = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for top in sorted({name.partition(".")[0] for name in names}):
                found = {canonical(name) for name in owners.get(top, [top])}
                if top not in sys.stdlib_module_names and top != package.name and not found & declared:
                    bad.append(f"{path.relative_to(package)}:{node.lineno}: {top}")
    return bad


def unshipped_files(package: Path, patterns: Iterable[str]) -> list[str]:
    """Files of the package that are neither Python nor matched by its package data."""
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    return sorted(str(path.relative_to(package)) for path in data - shipped)


@pytest.fixture
def project(root: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_every_dependency_is_pinned(project: dict[str, Any], root: Path) -> None:
    extras = project["project"]["optional-dependencies"]
    required = requirement_names([*project["project"]["dependencies"], *extras["demo"], *extras["dev"]])
    text = (root / "constraints.txt").read_text()
    assert wrong_pins(text, required - {"bitwright"}) == []
    assert "torch==2.13.0" in text.splitlines()


def test_every_import_is_declared(project: dict[str, Any], root: Path) -> None:
    extras = project["project"]["optional-dependencies"]
    on_demand = [requirement for name, extra in extras.items() if name != "dev" for requirement in extra]
    declared = requirement_names([*project["project"]["dependencies"], *on_demand])
    assert undeclared_imports(root / "src" / "bitwright", declared) == []


def test_every_data_file_is_shipped(project: dict[str, Any], root: Path) -> None:
    patterns = project["tool"]["setuptools"]["package-data"]["bitwright"]
    assert unshipped_files(root / "src" / "bitwright", patterns) == []


@pytest.mark.xdist_group("alone")
def test_groups_of_tests_are_kept_together(request: pytest.FixtureRequest) -> None:
    """A pytest whose names of tests xdist cannot change would take them apart without a word, and do much twice."""
    assert request.node.nodeid.endswith("@alone") == bool(request.config.getoption("loadgroup", False))


# The checks, checked.


def test_wrong_pins_are_found() -> None:
    text = "# pins\nnumpy==2.4.6\nNumPy==2.4.5\ntorch==2.13.0+cpu\nscipy>=1.0\nx @ file:///x\nPyYAML==6.0.3\n"
    assert wrong_pins(text, requirement_names(["numpy>=2", "pyyaml>=6", "typing_extensions[all]; x"])) == [
        "torch==2.13.0+cpu: is not name==version",
        "scipy>=1.0: is not name==version",
        "x @ file:///x: is not name==version",
        "numpy: pinned 2 times",
        "typing-extensions: has no pin",
    ]


def test_undeclared_imports_are_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "a.py").write_text(
        "import os, yaml\nfrom p.b import c\nfrom . import d\nfrom PIL.Image import open\n"
        "def f():\n    import torch.nn\n"
    )
    assert undeclared_imports(package, {"pyyaml"}) == ["a.py:4: PIL", "a.py:6: torch"]


def test_unshipped_files_are_found(tmp_path: Path) -> None:
    for name in ("py.typed", "a.py", "room/a.pyc", "room/x.yaml", "room/y.npz", "room/deep/z.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert unshipped_files(tmp_path, ["py.typed", "**/*.json", "room/*.yaml"]) == ["room/y.npz"]
