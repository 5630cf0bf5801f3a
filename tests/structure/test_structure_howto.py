"""The pages docs/add_*.md work: their steps are carried out in a copy of the project, and print what the pages say.

A step is a fenced block below a mark:

- `<!-- create PATH -->`: the block is a new file.
- `<!-- edit PATH -->`: a diff without heads, whose lines without "+" stand in the file once.
- `<!-- show -->`: `console`, where a shell runs the lines that begin with "$ " and the others are what is printed, or
  `pycon`, a doctest. `...` stands for anything, as it does in doctests.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in sorted((ROOT / "docs").glob("add_*.md"))}
BLOCK = re.compile(
    r"^(?:<!-- (?P<kind>create|edit|show)(?: (?P<path>\S+))? -->\n\n?)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {"create": ("python",), "edit": ("diff",), "show": ("console", "pycon")}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: Has imported what takes seconds.
FORKED = Path(__file__).with_name("forked.py")
#: What `.venv/bin` holds, by name.
COMMANDS = {"python": "", "pytest": "-m pytest", "bitwright": "-m bitwright"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A block that is carried out: its mark, the file it is about ("" where it is shown), language and text."""

    kind: str
    path: str
    language: str
    text: str


def steps_of(page: str) -> list[Step]:
    """The steps of a page, which are all its blocks; each numbered section has one or more."""
    steps = []
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    numbered = [section for section in sections if re.match(r"## \d", section)]
    assert [section.split(".")[0] for section in numbered] == [f"## {i + 1}" for i in range(len(numbered))] != []
    for section in sections:
        title, blocks = section.partition("\n")[0], list(BLOCK.finditer(section))
        assert len(blocks) * 2 == len(re.findall(r"^```", section, re.MULTILINE)), f"{title}: a block is not closed"
        assert blocks or section not in numbered, f"{title}: no block to carry out"
        for block in blocks:
            kind, path, language = block["kind"], block["path"] or "", block["language"]
            assert kind, f"{title}: a block without a mark"
            assert language in LANGUAGES[kind] and bool(path) == (kind != "show"), f"{title}: {kind} {path} {language}"
            steps.append(Step(kind=kind, path=path, language=language, text=block["text"]))
    return steps


def edited(text: str, diff: str) -> str:
    """A file's text with the lines of a diff."""
    lines = diff.splitlines(keepends=True)
    assert all(line[0] in " +-" for line in lines), f"neither added, removed nor kept:\n{diff}"
    before = "\n" + "".join(line[1:] for line in lines if line[0] != "+")
    after = "\n" + "".join(line[1:] for line in lines if line[0] != "-")
    whole = "\n" + text
    assert whole.count(before) == 1, f"stands in the file {whole.count(before)} times:{before}"
    return whole.replace(before, after)[1:]


def run(command: str, folder: Path) -> str:
    """What a shell command prints, in a copy of the project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**kept, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"$ {command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def carry_out(step: Step, folder: Path) -> None:
    """Do what a step says, in a copy of the project."""
    file = folder / step.path
    if step.kind == "create":
        assert not file.exists(), f"{step.path} is there already"
        file.write_text(step.text)
    elif step.kind == "edit":
        file.write_text(edited(file.read_text(), step.text))
    elif step.language == "pycon":
        (folder / "step.txt").write_text(step.text)
        run(".venv/bin/python -m doctest -o ELLIPSIS -o NORMALIZE_WHITESPACE step.txt", folder)
    else:
        head, *commands = re.split(r"^\$ ", step.text, flags=re.MULTILINE)
        assert not head and commands, f"no command:\n{step.text}"
        for text in commands:
            lines = text.splitlines(keepends=True)
            length = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\\n"))
            command, expected = "".join(lines[:length]), "".join(lines[length:])
            found = run(command, folder)
            same = doctest.OutputChecker().check_output(expected, found, FLAGS)
            assert same, f"$ {command}expected\n{expected}\nfound\n{found}"


def commands_in(folder: Path, interpreter: str) -> None:
    """The commands of `.venv/bin`."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, module in COMMANDS.items():
        (binaries / name).write_text(f'#!/bin/sh\nexec {interpreter} {module} "$@"\n')
        (binaries / name).chmod(0o755)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[str]:
    """This interpreter, which has imported the libraries already."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/socket"
        command = [sys.executable, str(FORKED), socket]
        one = os.environ | {"OMP_NUM_THREADS": "1"}  # numpy's OpenBLAS starts its threads when it is imported
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=one)
        with server:
            assert server.stdin and server.stdout and server.stdout.readline() == b"ready\n"
            yield f'"{sys.executable}" -IS "{FORKED}" "{socket}"'


@pytest.fixture
def project(tmp_path: Path, exported_folder: Path, interpreter: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the steps touch, with its compiled modules, which then need not be compiled again.

    Nor are networks exported again by the tests that a page runs.
    """
    monkeypatch.setenv("BITWRIGHT_EXPORTED", str(exported_folder))
    folder = tmp_path / "project"
    for part in ("src/bitwright", "tests", "docs"):
        # A module is compiled into a file of another name, which is gone a moment later.
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    commands_in(folder, interpreter)
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_the_steps_of_a_page_work(name: str, project: Path) -> None:
    steps = steps_of(PAGES[name].read_text())
    for step in steps:
        carry_out(step, project)
    touched = " ".join(dict.fromkeys(step.path for step in steps if step.path))
    run(f".venv/bin/python -m ruff check {touched}", project)
    run(f".venv/bin/python -m ruff format --check {touched}", project)


def test_there_is_a_page_for_each_and_a_way_to_it() -> None:
    assert set(PAGES) == {"add_cost.md", "add_estimator.md", "add_format.md", "add_op.md", "add_target.md"}
    for page in PAGES:
        assert f"](docs/{page})" in (ROOT / "README.md").read_text()
        assert f"]({page})" in (ROOT / "docs" / "contributing.md").read_text()


# The checks, checked.


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("# Title\n", r"assert \[\]"),
        ("## 2. Two\n\n<!-- show -->\n```pycon\n>>> 1\n1\n```\n", "## 1"),
        ("## 1. One\n\nDo it.\n", "## 1. One: no block to carry out"),
        ("## 1. One\n\n```python\n1\n```\n", "## 1. One: a block without a mark"),
        ("## 1. One\n\n<!-- show -->\n```pycon\n1\n", "## 1. One: a block is not closed"),
        ("## 1. One\n\n<!-- create a.py -->\n```diff\n+1\n```\n", "## 1. One: create a.py diff"),
        ("## 1. One\n\n<!-- edit -->\n```diff\n+1\n```\n", "## 1. One: edit  diff"),
        ("## 1. One\n\n<!-- show -->\n```pycon\n```\n\n## More\n\n```sh\n```\n", "## More: a block without a mark"),
    ],
)
def test_wrong_pages_are_refused(page: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        steps_of(page)


def test_a_diff_is_put_where_its_lines_stand() -> None:
    text = "A = {\n}\nAA = {\n    1,\n    2,\n}\n"
    assert edited(text, " A = {\n+    0,\n") == text.replace("A = {\n", "A = {\n    0,\n", 1)
    assert edited(text, "     1,\n-    2,\n+    3,\n") == text.replace("2", "3")


@pytest.mark.parametrize(
    ("diff", "told"),
    [
        (" B = {\n+    0,\n", r"stands in the file 0 times:\s+B = \{"),
        (" }\n+0\n", r"stands in the file 2 times:\s+\}"),
        ("A = {\n+    0,\n", "neither added, removed nor kept"),
    ],
)
def test_a_diff_without_its_place_is_refused(diff: str, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        edited("A = {\n}\nAA = {\n}\n", diff)


def shown(language: str, text: str) -> Step:
    return Step(kind="show", path="", language=language, text=text)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (shown("console", "$ echo two words\ntwo\n"), r"expected\s+two\s+found\s+two words"),
        (shown("console", "$ echo words\n"), r"expected\s+found\s+words"),
        (shown("console", "$ exit 3\n...\n"), "exit code 3"),
        (shown("console", "words\n"), "no command"),
        (shown("pycon", ">>> 1 + 1\n3\n"), "(?s)Expected:.*3.*Got:.*2"),
        (Step(kind="create", path="a.py", language="python", text="A = 2\n"), "a.py is there already"),
    ],
)
def test_a_step_that_fails_is_noticed(step: Step, told: str, interpreter: str, tmp_path: Path) -> None:
    commands_in(tmp_path, interpreter)
    (tmp_path / "a.py").write_text("A = 1\n")
    with pytest.raises(AssertionError, match=told):
        carry_out(step, tmp_path)


def test_steps_that_work(interpreter: str, tmp_path: Path) -> None:
    commands_in(tmp_path, interpreter)
    (tmp_path / "src").mkdir()
    carry_out(Step(kind="create", path="src/a.py", language="python", text="A = 1\n"), tmp_path)
    carry_out(Step(kind="edit", path="src/a.py", language="diff", text="-A = 1\n+A = 2\n"), tmp_path)
    carry_out(shown("pycon", ">>> import a\n>>> a.A\n2\n"), tmp_path)
    carry_out(shown("console", "$ .venv/bin/python -c 'import a; print(a.A, 3)'\n2 ...\n$ true\n"), tmp_path)
    carry_out(shown("console", "$ echo two \\\n    words\ntwo words\n"), tmp_path)
