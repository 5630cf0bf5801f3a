"""`bitwright quantize` with steps that learn: memory, resuming, and units that diverge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

LEARNED = ["--recipe", "learned", "--set", "W=3,A=4", "--step", "qdrop.iterations=5", "--step", "qdrop.images=32"]


@pytest.fixture
def command(float_file: Path, assets: Path) -> list[Any]:
    return ["quantize", float_file, "--data", assets / "digits_calib.npz", "--limit", 64]


def test_what_is_finished_is_not_done_again(cli: Any, command: list[Any], tmp_path: Path) -> None:
    files, kept = [tmp_path / f"{i}.onnx" for i in range(2)], tmp_path / "kept"
    assert cli(*command, *LEARNED, "--memory", "6GiB", "-o", files[0]).code == 0
    assert cli(*command, *LEARNED, "--resume", kept, "-o", files[1]).code == 0
    units = sorted((kept / "qdrop").glob("unit-*.pt"))
    assert len(units) > 2 and files[0].read_bytes() == files[1].read_bytes()
    units[-1].unlink()
    times = {unit: unit.stat().st_mtime_ns for unit in units[:-1]}
    assert cli(*command, *LEARNED, "--resume", kept, "-o", files[1]).code == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert all(unit.stat().st_mtime_ns == at for unit, at in times.items()) and units[-1].exists()
    ran = cli(*command, *LEARNED, "--seed", 1, "--resume", kept, "-o", files[1])
    assert ran.code == 2 and "holds the finished units of another network, data or settings" in ran.err


def test_flags_of_no_use_and_budgets_that_are_too_small(cli: Any, command: list[Any], tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    for flags, told in (
        (["--memory", "4GiB"], "--memory: is of no use: no step of recipe fast has it"),
        (["--resume", tmp_path / "kept"], "--resume: is of no use: no step of recipe fast has it"),
        ([*LEARNED, "--memory", "4 apples"], "qdrop.memory: is '4 apples'; expected a number of bytes, as 4GiB"),
    ):
        ran = cli(*command, *flags, "-o", output)
        assert ran.code == 2 and told in ran.err and not output.exists()
    ran = cli(*command, *LEARNED, "--memory", "3MiB", "-o", output)
    # What is said counts the whole process, which may have done anything before.
    assert ran.code == 2 and not output.exists()
    least = r"qdrop\.memory: is 3MiB; expected at least \d+\.\d+GiB, which the process and 1 images"
    assert re.search(least, ran.err)


def test_a_unit_that_diverges_is_told_and_the_file_is_written(cli: Any, command: list[Any], tmp_path: Path) -> None:
    recipe, output = tmp_path / "adaquant.yaml", tmp_path / "out.onnx"
    recipe.write_text("steps: [fold_batchnorm, place, calibrate, {adaquant: {iterations: 3, bias_rate: 1.0e+38}}]")
    ran = cli(*command, "--recipe", recipe, "-o", output, "--json")
    assert ran.code == 1 and ran.json["diverged"] and output.exists()
