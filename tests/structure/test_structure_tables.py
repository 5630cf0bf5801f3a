"""The tables of the rooms and the public names: every row can be resolved, every name says what it is."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from bitwright.lookup import Row


def packages(root: str) -> Iterator[ModuleType]:
    """The package called `root` and every package inside it, imported."""
    module = importlib.import_module(root)
    yield module
    for found in pkgutil.iter_modules(module.__path__, f"{root}."):
        if found.ispkg:
            yield from packages(found.name)


def tables(root: str) -> dict[str, Mapping[str, Row]]:
    """ "package.NAME" -> table, for every dict of rows with a name in upper case."""
    found: dict[str, Mapping[str, Row]] = {}
    for package in packages(root):
        for name, value in vars(package).items():
            rows = isinstance(value, Mapping) and any(isinstance(row, Row) for row in value.values())
            if rows and name.isupper():
                found[f"{package.__name__}.{name}"] = value
    return found


def wrong_rows(root: str) -> list[str]:
    """Rows that do not resolve, or whose help is not one line."""
    bad = []
    for table, rows in tables(root).items():
        for key, row in rows.items():
            where = f"{table}[{key!r}]"
            if not isinstance(row, Row):
                bad.append(f"{where}: {row!r} is no Row")
                continue
            if not row.help.strip() or "\n" in row.help:
                bad.append(f"{where}: help is not one line: {row.help!r}")
            try:
                row.load()
            except Exception as error:  # whatever the module raises is what is wrong with the row
                bad.append(f"{where}: {row.path}: {type(error).__name__}: {error}")
    return bad


def wrong_public_names(module: ModuleType) -> list[str]:
    """Names of `__all__` that do not resolve, or that have no docstring of their own."""
    bad = []
    for name in module.__all__:
        if not hasattr(module, name):
            bad.append(f"{name}: does not resolve")
            continue
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
            continue
        doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        generated = dataclasses.is_dataclass(value) and (doc or "").startswith(f"{name}(")
        if not doc or generated:
            bad.append(f"{name}: has no docstring")
    return bad


def test_every_row_resolves() -> None:
    assert tables("bitwright"), "no table was found"
    assert wrong_rows("bitwright") == []


def test_every_public_name_resolves_and_has_a_docstring() -> None:
    assert wrong_public_names(importlib.import_module("bitwright")) == []


# The checks, checked.


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose inner table has one good row and four bad ones, and whose public names are wrong."""
    package = tmp_path / "wrong_tables"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "__all__ = ['Told', 'Untold', 'Generated', 'Inherited', 'lost', 'told', 'untold', 'NUMBER']\n"
        "class Told:\n    'Told.'\n"
        "class Untold: pass\n"
        "class Inherited(Told): pass\n"
        "@dataclass\nclass Generated:\n    x: int\n"
        "def told():\n    'Told.'\n"
        "def untold(): pass\n"
        "NUMBER = 1\n"
    )
    (package / "room" / "__init__.py").write_text(
        "from bitwright.lookup import Row\n"
        "ROWS = {\n"
        "    'good': Row('bitwright.errors:GoalError', 'a goal failed'),\n"
        "    'module': Row('wrong_tables.nowhere:X', 'no such module'),\n"
        "    'name': Row('bitwright.errors:Nothing', 'no such name'),\n"
        "    'help': Row('bitwright.errors:GoalError', ''),\n"
        "    'row': 'bitwright.errors:GoalError',\n"
        "}\n"
        "lower = {'not a table': Row('nowhere:X', '')}\n"
        "NUMBERS = {'not a table': 1}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "wrong_tables"
    for name in [name for name in sys.modules if name.partition(".")[0] == "wrong_tables"]:
        del sys.modules[name]


def test_wrong_rows_are_found(wrong: str) -> None:
    assert list(tables(wrong)) == ["wrong_tables.room.ROWS"]
    assert wrong_rows(wrong) == [
        "wrong_tables.room.ROWS['module']: wrong_tables.nowhere:X: "
        "ModuleNotFoundError: No module named 'wrong_tables.nowhere'",
        "wrong_tables.room.ROWS['name']: bitwright.errors:Nothing: "
        "AttributeError: module 'bitwright.errors' has no attribute 'Nothing'",
        "wrong_tables.room.ROWS['help']: help is not one line: ''",
        "wrong_tables.room.ROWS['row']: 'bitwright.errors:GoalError' is no Row",
    ]


def test_wrong_public_names_are_found(wrong: str) -> None:
    assert wrong_public_names(importlib.import_module(wrong)) == [
        "Untold: has no docstring",
        "Generated: has no docstring",
        "Inherited: has no docstring",
        "lost: does not resolve",
        "untold: has no docstring",
    ]
