"""The sources as text and syntax: short files, no import cycles, no vague names, no path of one machine.

Each check is a function that returns what is wrong, and is itself tested with a package that is wrong on purpose.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

MAX_LINES = 500
VAGUE = re.compile("manager|factory|helper|util", re.IGNORECASE)
# Absolute paths only: "some/home/x" and "https://host/home/x" are not.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|home|opt)/[\w.-]*")
TEXT = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".html", ".cfg", ".sh", ""}


def long_files(folders: Iterable[Path], limit: int = MAX_LINES) -> list[str]:
    """Python files of more than `limit` lines, as "path: n lines"."""
    counts = {path: len(path.read_text().splitlines()) for folder in folders for path in sorted(folder.rglob("*.py"))}
    return [f"{path}: {lines} lines, at most {limit}" for path, lines in counts.items() if lines > limit]


def folders_without_init(package: Path) -> list[str]:
    """Folders of modules without `__init__.py`: such a room would be invisible to the check of import directions."""
    folders = {path.parent for path in package.rglob("*.py")}
    return sorted(str(folder) for folder in folders if not (folder / "__init__.py").exists())


def module_files(package: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package in this folder."""
    files = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def executed_at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported: not those of functions, nor those for type checkers only."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from executed_at_import(statement.orelse)
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from executed_at_import(getattr(statement, field, []))
        for branch in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
            yield from executed_at_import(branch.body)


def imported_modules(name: str, path: Path, known: Iterable[str]) -> set[str]:
    """The modules of `known` that module `name` imports while it is itself imported."""
    known = set(known)
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for statement in executed_at_import(ast.parse(path.read_text(), str(path)).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = base.split(".")[: len(base.split(".")) - statement.level + 1] if statement.level else []
            origin = ".".join([*above, *([statement.module] if statement.module else [])])
            names = {f"{origin}.{alias.name}" for alias in statement.names}
            found |= (names & known) | ({origin} if names - known else set())
    return found & known


def import_cycles(package: Path) -> list[str]:
    """Groups of modules that reach each other through module-level imports, as "a <-> b"."""
    files = module_files(package)
    edges = {name: imported_modules(name, path, files) for name, path in files.items()}
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = list(edges[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(edges[name])
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in reach if a in reach[a]}
    return [" <-> ".join(group) for group in sorted(groups)]


def vague_names(package: Path) -> list[str]:
    """Modules, packages and classes called after nothing that they do."""
    bad = []
    for name, path in module_files(package).items():
        if VAGUE.search(name.rpartition(".")[2]):
            bad.append(f"module {name}")
        nodes = ast.walk(ast.parse(path.read_text()))
        classes = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
        bad += [f"class {name}:{class_name}" for class_name in classes if VAGUE.search(class_name)]
    return bad


def machine_paths(places: Iterable[Path]) -> list[str]:
    """Text that names an absolute path of one machine, as "file:line: path"."""
    bad = []
    for place in places:
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        for path in files:
            hidden = any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)
            if path.suffix not in TEXT or hidden:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                bad += [f"{path}:{number}: {match}" for match in MACHINE_PATH.findall(line)]
    return bad


def test_no_file_is_longer_than_its_limit(root: Path) -> None:
    assert long_files(root / folder for folder in ("src", "tests", "benchmarks")) == []


def test_every_room_is_a_package(root: Path) -> None:
    assert folders_without_init(root / "src" / "bitwright") == []


def test_no_import_cycle(root: Path) -> None:
    assert import_cycles(root / "src" / "bitwright") == []


def test_no_vague_name(root: Path) -> None:
    assert vague_names(root / "src" / "bitwright") == []


def test_no_path_of_one_machine(root: Path) -> None:
    folders = [root / name for name in ("src", "docs", "benchmarks", "tests", ".ci")]
    files = [root / name for name in ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "constraints.txt")]
    assert machine_paths([*folders, *files]) == []


# The checks, checked.


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A package with a cycle of three, a cycle of two through a package, and harmless imports beside them."""
    package = tmp_path / "wrong"
    checking = "from typing import TYPE_CHECKING\n"
    files = {
        "__init__.py": "",
        "a.py": "from wrong import b\n",
        "b.py": "try:\n    import wrong.c\nexcept ImportError:\n    pass\n",
        "c.py": "class C:\n    from .a import b\n",
        "room/__init__.py": "from wrong.room.part import x\ny = 1\n",
        "room/part.py": "from wrong.room import y\nx = 2\n",
        "late.py": "def f():\n    from wrong import early\n",
        "early.py": f"{checking}import wrong.late\nif TYPE_CHECKING:\n    from wrong import late\n",
        "typed.py": f"{checking}if TYPE_CHECKING:\n    from wrong import typed_too\n",
        "typed_too.py": "import wrong.typed\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_cycles_are_found_and_late_imports_are_none(wrong: Path) -> None:
    assert import_cycles(wrong) == ["wrong.a <-> wrong.b <-> wrong.c", "wrong.room <-> wrong.room.part"]


def test_a_module_that_imports_itself_is_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "self.py").write_text("import one.self\n")
    assert import_cycles(tmp_path / "one") == ["one.self"]


def test_a_long_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "fits.py").write_text("x = 1\n" * 500)
    (tmp_path / "long.py").write_text("x = 1\n" * 501)
    assert long_files([tmp_path]) == [f"{tmp_path / 'long.py'}: 501 lines, at most 500"]


def test_a_folder_without_init_is_found(tmp_path: Path) -> None:
    for name in ("__init__.py", "room/part.py", "other/__init__.py", "data/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert folders_without_init(tmp_path) == [str(tmp_path / "room")]


def test_vague_names_are_found(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "graph_utils").mkdir(parents=True)
    (package / "graph_utils" / "__init__.py").write_text("")
    (package / "steps.py").write_text("class StepManager:\n    class NodeFactory: ...\nclass Step: ...\n")
    assert vague_names(package) == ["module p.graph_utils", "class p.steps:StepManager", "class p.steps:NodeFactory"]


def test_machine_paths_are_found_and_urls_are_not(tmp_path: Path) -> None:
    path = "/" + "work/main"
    (tmp_path / "a.md").write_text(f"see https://example.org{path}\n\nrun `{path}/x`, not some{path}\n")
    (tmp_path / "weights.bin").write_bytes(b"\xff" + path.encode())
    assert machine_paths([tmp_path]) == [f"{tmp_path / 'a.md'}:3: {path}"]
