"""The examples of README.md and docs/ run: a fenced block that follows the comment `<!-- run -->` is executed.

Blocks of one page run in order, in one folder that holds nothing but copies of the files of tests/assets. `python`
blocks share their names. Of `console` blocks the lines `$ bitwright ...` run; the other lines are their output, which
is not compared.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bitwright.cli import main

ROOT = Path(__file__).parents[2]
MARK = "<!-- run -->"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and the line of its first line of text."""

    language: str
    text: str
    line: int


def marked_blocks(text: str) -> list[Block]:
    """The fenced blocks that follow a mark, with at most blank lines between; a mark without its block is an error."""
    blocks = []
    fence = language = ""
    marked = at = 0  # lines of the last mark and of the opening fence
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        opening = re.match(r" {0,3}(`{3,}|~{3,})\s*(\w*)", line)
        if fence:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                if marked:
                    blocks.append(Block(language=language, text="\n".join(inside) + "\n", line=at + 1))
                fence, marked = "", 0
            else:
                inside.append(line)
        elif opening:
            (fence, language), at, inside = opening.groups(), number, []
            assert not marked or language in ("python", "console"), f"line {number}: cannot run {language!r}"
        elif line.strip() == MARK:
            marked = number
        else:
            assert not marked or not line.strip(), f"line {marked}: no block follows the mark"
    assert not fence and not marked, f"line {max(at, marked)}: the page ends before the block does"
    return blocks


def commands(block: Block) -> list[list[str]]:
    """The commands of a console block, one list of arguments each; a backslash continues a line."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    lines = [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]
    words = [shlex.split(line, comments=True) for line in lines]
    other = [line for line, parts in zip(lines, words, strict=True) if parts[:1] != ["bitwright"]]
    assert words and not other, f"line {block.line}: only bitwright commands run, found {other or 'no command'}"
    return words


def run_blocks(page: Path, folder: Path) -> int:
    """Run the marked blocks of a page inside `folder`, and say how many there were."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = marked_blocks(page.read_text())
    for block in blocks:
        if block.language == "python":
            text = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
            exec(compile(text, str(page), "exec"), names)
            continue
        for words in commands(block):
            printed = io.StringIO()  # in this process: a new one takes seconds to import torch
            with contextlib.chdir(folder), redirect_stdout(printed), redirect_stderr(printed):
                code = main(words[1:])
            told = f"{page}:{block.line}: {shlex.join(words)}: exit code {code}\n{printed.getvalue()}"
            assert code == 0, told
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if assets.exists():
        shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page, tmp_path) == page.read_text().splitlines().count(MARK)


# The checks, checked.


def page_of(folder: Path, *lines: str) -> Path:
    """A page of these lines."""
    page = folder / "page.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def test_only_marked_blocks_run_and_they_share_names(tmp_path: Path) -> None:
    first = ["```python", "raise ValueError('not marked')", "```", MARK, "", "```python", "x = [1]", "```"]
    page = page_of(tmp_path, *first, "text", MARK, "~~~python", "assert x == [1]", "```", "~~~")
    assert [block.line for block in marked_blocks(page.read_text())] == [7, 12]
    with pytest.raises(SyntaxError):
        run_blocks(page, tmp_path)
    assert run_blocks(page_of(tmp_path, *first), tmp_path) == 1


def test_a_failing_python_block_fails(tmp_path: Path) -> None:
    page = page_of(tmp_path, "# Title", MARK, "```python", "x = 1", "assert x == 2", "```")
    with pytest.raises(AssertionError) as caught:
        run_blocks(page, tmp_path)
    assert caught.traceback[-1].lineno == 4  # counted from 0: the fifth line of the page


def test_a_failing_command_fails(tmp_path: Path) -> None:
    page = page_of(tmp_path, MARK, "```console", "$ bitwright no-such-verb", "output", "```")
    with pytest.raises(AssertionError, match=r"page\.md:3: bitwright no-such-verb: exit code [12]"):
        run_blocks(page, tmp_path)


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = "$ bitwright run 'a b.onnx' \\\n    x.png  # a comment\ntop-5\n$ bitwright recipes\n"
    block = Block(language="console", text=text, line=1)
    assert commands(block) == [["bitwright", "run", "a b.onnx", "x.png"], ["bitwright", "recipes"]]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([MARK, "no block"], "line 1: no block follows the mark"),
        (["", MARK], "line 2: the page ends"),
        ([MARK, "```python", "x = 1"], "line 2: the page ends"),
        ([MARK, "```rust", "```"], "line 2: cannot run 'rust'"),
        ([MARK, "```console", "$ rm -r x", "```"], r"line 3: only bitwright commands run, found \['rm -r x'\]"),
        ([MARK, "```console", "bitwright run", "```"], "line 3: only bitwright commands run, found no command"),
    ],
)
def test_wrong_pages_are_refused(lines: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=told):
        run_blocks(page_of(tmp_path, *lines), tmp_path)
