"""Help, usage errors, and that commands keep stdout and stderr apart."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitwright import __version__
from bitwright.cli import own_first
from bitwright.verbs import VERBS
from bitwright.verbs.verb import argument, option

COMMANDS = sorted(VERBS)


def flag_of(field: dataclasses.Field[Any]) -> str:
    """What a field is called in a command's help."""
    if field.metadata.get("argument"):
        return field.name.upper()
    names = field.metadata["names"]
    return str(names[0]) if names else f"--{field.name.replace('_', '-')}"


def words(text: str) -> str:
    """Text without its line breaks and indents."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, cli: Any) -> None:
    ran = cli(*name.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: bitwright {name} [OPTIONS]")
    for flag in ("--json", "--quiet", "--seed", "--help"):
        assert flag in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_is_a_flag_with_help(name: str, cli: Any) -> None:
    shown = cli(*name.split(), "--help").out
    for field in dataclasses.fields(VERBS[name].load()):
        help_text = field.metadata["help"]
        assert help_text.strip() and "\n" not in help_text and not help_text.endswith("."), field.name
        assert re.search(rf"(?<![\w-]){re.escape(flag_of(field))}(?![\w-])", shown), field.name
        assert help_text[1:] in words(shown), field.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_is_frozen_and_says_what_it_does(name: str) -> None:
    verb = VERBS[name].load()
    assert verb.__dataclass_params__.frozen and all(field.kw_only for field in dataclasses.fields(verb))
    assert verb.__doc__ and not verb.__doc__.startswith(f"{verb.__name__}(")


def test_the_root_lists_every_command(cli: Any) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for name, row in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(row.help)}$", ran.out, re.MULTILINE)


def test_a_verb_shows_its_own_flags_before_shared_ones(cli: Any) -> None:
    shown = cli("verify", "--help").out
    assert shown.index("--data") < shown.index("--precise") < shown.index("--resize") < shown.index("--json")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Shared:
        batch: int = option(1, "shared")
        model: str = argument("shared")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(Shared):
        limit: int = option(2, "own")
        batch: int = option(3, "its own, too")

    assert [field.name for field in own_first(Own)] == ["batch", "limit", "model"]


def test_without_arguments_help_is_shown_and_nothing_is_done(cli: Any) -> None:
    ran = cli()
    assert ran.code == 2 and "Commands:" in ran.out


def test_a_group_lists_its_commands_and_no_others(cli: Any) -> None:
    ran = cli("plan", "--help")
    assert (ran.code, ran.err) == (0, "") and ran.out.startswith("Usage: bitwright plan [OPTIONS] COMMAND")
    listed = re.findall(r"^  (\w+)  ", ran.out.split("Commands:")[1], re.MULTILINE)
    assert [f"plan {name}" for name in listed] == [name for name in VERBS if name.startswith("plan ")]
    assert cli("plan").code == 2 and "Commands:" in cli("plan").out


def test_version(cli: Any) -> None:
    ran = cli("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quantise"], "bitwright: there is no command 'quantise'; did you mean 'quantize'?"),
        (["zzz"], "bitwright: there is no command 'zzz'; choose from auto, benchmark,"),
        (["plan", "shw"], "bitwright: there is no command 'plan shw'; did you mean 'show'?"),
        (["verify", "x.onnx", "--dat", "d"], r"bitwright: No such option.*--dat.*--data"),
        (["verify"], "bitwright: Missing argument 'MODEL'"),
        (["run", "x.onnx"], "bitwright: Missing argument 'IMAGES"),
        (["evaluate", "x.onnx", "--batch", "many"], "bitwright: Invalid value for '--batch'"),
        (["evaluate", "x.onnx", "y.onnx"], "bitwright: Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: list[str], told: str, cli: Any) -> None:
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert re.match(told, ran.err), ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect", "gone.onnx"], "gone.onnx: no such file; expected an ONNX file"),
        (["quantize", "gone.onnx", "--data", "d"], "gone.onnx: no such file"),
        (["quantize", "gone.onnx"], "--data: is missing; expected images"),
        (["evaluate", "gone.onnx"], "--data: is missing"),
        (["evaluate", "gone.onnx", "--data", "d"], "gone.onnx: no such file"),
        (["verify", "gone.onnx"], "--data: is missing"),
        (["verify", "gone.onnx", "--data", "d"], "gone.onnx: no such file"),
        (["run", "gone.onnx", "a.png"], "gone.onnx: no such file"),
        (["benchmark", "gone.onnx"], "gone.onnx: no such file"),
        (["plan", "show", "gone.json"], "gone.json: no such file; expected a plan's JSON file"),
        (["plan", "show", "gone.onnx"], "gone.onnx: no such file"),
        (["plan", "diff", "gone.json", "gone.onnx"], "gone.json: no such file"),
        (["plan", "edit", "gone.json", "-o", "new.json"], "gone.json: no such file"),
        (["methods", "step"], "kind of method 'step': there is no kind of method of this name; did you mean 'steps'"),
        (["recipes", "int9"], "recipe 'int9': there is no recipe of this name; did you mean 'int8'"),
        (["targets", "onnxruntime-x86"], "target 'onnxruntime-x86': there is no target of this name; did you mean"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: list[str], told: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for extra in ([], ["--json"]):
        ran = cli(*arguments, *extra)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"bitwright: {told}"), ran.err
        assert ran.err.count("\n") == 1


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys; from bitwright.cli import main; main(['--help'])\n"
        "sys.exit(' '.join(sorted({'torch', 'onnxruntime', 'onnx_ir', 'numpy'} & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr


def test_as_a_program(tmp_path: Path, float_file: Path, test_images: Path) -> None:
    """In a process of its own: nothing but one object on stdout, nothing at all on stderr."""
    command = [sys.executable, "-m", "bitwright"]
    wanted = [*command, "quantize", str(float_file), "--data", str(test_images), "--limit", "20", "--json", "--quiet"]
    done = subprocess.run(wanted, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["output"] == "digits.int8.onnx"
    assert (tmp_path / "digits.int8.onnx").exists()
    wrong = subprocess.run([*command, "verifi"], capture_output=True, text=True, timeout=120)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "bitwright: there is no command 'verifi'; did you mean 'verify'?\n"
