"""`bitwright benchmark`: every combination of conditions, files in rounds, ratios to the first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import bitwright.deploy.benchmark as benchmark


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SAMPLE_SECONDS", 0.001)


def test_every_combination_has_a_row_of_each_file(cli: Any, float_file: Path, int8_file: Path) -> None:
    flags = ["--threads", "1,2", "--batch", "1, 3", "--rounds", 3]
    found = cli("benchmark", float_file, int8_file, *flags, "--json").json
    rows = found["rows"]
    expected = [(t, b, str(m)) for t, b, m in product((1, 2), (1, 3), (float_file, int8_file))]
    assert [(row["threads"], row["batch"], row["model"]) for row in rows] == expected
    assert all(row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows)
    assert {row["ratio"] for row in rows[::2]} == {1.0}
    assert found["rounds"] == 3 and found["cores"] >= 1 and list(found["runtimes"]) == ["onnxruntime"]


def test_the_ratio_is_to_the_first_file(cli: Any, float_file: Path, int8_file: Path) -> None:
    first, second = cli("benchmark", float_file, int8_file, "--rounds", 1, "--json").json["rows"]
    assert second["ratio"] == pytest.approx(second["median_ms"] / first["median_ms"], rel=1e-9)
    assert first["p10_ms"] == first["median_ms"] == first["p90_ms"]


def test_more_images_take_longer(cli: Any, float_file: Path) -> None:
    found = cli("benchmark", float_file, "--threads", 1, "--batch", "1,64", "--rounds", 5, "--json").json
    one, many = (row["median_ms"] for row in found["rows"])
    assert many > 4 * one


def test_the_table_names_files_briefly(cli: Any, float_file: Path, int8_file: Path) -> None:
    lines = cli("benchmark", float_file, int8_file, "--threads", "0", "--rounds", 1).out.splitlines()
    assert lines[0].split() == ["file", "threads", "batch", "median", "ms", "p10", "p90", "ratio"]
    assert lines[2].split()[:3] == ["digits.onnx", "all", "1"] and lines[2].split()[-1] == "1.000"
    assert lines[3].split()[0] == "digits.int8.onnx"
    assert lines[-1] == "ratio: latency relative to digits.onnx"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rounds", "0"], "--rounds: is 0; expected a whole number from 1 on"),
        (["--threads", "two"], "--threads: is 'two'; expected a whole number from 0 on, or several with commas"),
        (["--threads", "1,-1"], "--threads: is '1,-1'"),
        (["--batch", "0"], "--batch: is '0'; expected a whole number from 1 on"),
        (
            ["--runtime", "onnxruntme"],
            "runtime 'onnxruntme': there is no runtime of this name; did you mean 'onnxruntime'?",
        ),
    ],
)
def test_wrong_flags(flags: list[str], told: str, cli: Any, float_file: Path) -> None:
    ran = cli("benchmark", float_file, *flags)
    assert ran.code == 2 and told in ran.err


def test_a_fixed_batch_has_to_be_kept(cli: Any, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file("y = Relu(x)", "(float[4, 8] x) => (float[4, 8] y)")
    assert cli("benchmark", path, "--batch", 4, "--rounds", 1).code == 0
    ran = cli("benchmark", path, "--rounds", 1)
    assert ran.code == 2 and "has a fixed batch of 4; expected --batch 4" in ran.err
