"""`--runtime`: the one that is asked for, the one that a file is for, or the fastest as measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import bitwright.deploy.benchmark as benchmark
import bitwright.verbs.serving as serving
from bitwright.deploy.runtimes.openvino import OpenVino

pytest.importorskip("openvino", reason='OpenVINO is not installed: pip install "bitwright[openvino]"')

ASSETS = Path(__file__).parents[1] / "assets"
TEST = ("--data", ASSETS / "digits.npz", "--limit", 32, "--batch", 16)


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(benchmark, "ROUNDS", 2)


@pytest.fixture(scope="module")
def openvino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import bitwright as bw

    path = tmp_path_factory.mktemp("runtime") / "digits.onnx"
    bw.quantize(ASSETS / "digits.onnx", ASSETS / "digits_calib.npz", target="openvino-cpu-avx2").save(path)
    return path


def test_a_file_runs_in_the_runtime_that_it_is_for(cli: Any, openvino_file: Path, int8_file: Path) -> None:
    own = cli("verify", openvino_file, *TEST, "--json").json
    assert own["runtime"].startswith("openvino ") and own["proven"] and own["processor"]
    assert cli("evaluate", openvino_file, *TEST, "--json").json["runtime"] == "openvino"
    assert cli("evaluate", int8_file, *TEST, "--json").json["runtime"] == "onnxruntime"


def test_the_runtime_that_is_asked_for_runs_it(cli: Any, openvino_file: Path) -> None:
    found = cli("verify", openvino_file, *TEST, "--runtime", "onnxruntime", "--json").json
    assert found["runtime"].startswith("onnxruntime ") and found["proven"]
    assert "QLinearConv" in found["kernels"]


def test_auto_says_which_it_took_and_why(cli: Any, int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        serving, "fastest", lambda *a, **k: benchmark.Fastest(runtime="openvino", ratio=0.5, slowest="x")
    )
    done = cli("evaluate", int8_file, *TEST, "--runtime", "auto", "--json")
    assert done.json["runtime"] == "openvino"
    assert "runtime openvino: 0.50 of the time that x takes for a batch of 16" in done.err


def test_auto_takes_the_smallest_median_of_ratios() -> None:
    base = benchmark.Timing(
        model="m", runtime="onnxruntime", threads=1, batch=1, median_ms=1.0, p10_ms=1.0, p90_ms=1.0, ratio=1.0
    )
    other = dataclasses.replace(base, runtime="openvino", median_ms=9.0, runtime_ratio=0.8)
    found = benchmark.fastest_of([base, other])
    assert (found.runtime, found.slowest, found.ratio) == ("openvino", "onnxruntime", 0.8)


def test_benchmark_times_every_installed_runtime(cli: Any, int8_file: Path, openvino_file: Path) -> None:
    found = cli(
        "benchmark", int8_file, openvino_file, "--runtime", "auto", "--rounds", 2, "--threads", 1, "--json"
    ).json
    assert [(row["runtime"], row["model"]) for row in found["rows"]] == [
        (runtime, str(file)) for runtime in ("onnxruntime", "openvino") for file in (int8_file, openvino_file)
    ]
    assert [row["ratio"] for row in found["rows"][::2]] == [1.0, 1.0]
    assert [row["runtime_ratio"] for row in found["rows"][:2]] == [1.0, 1.0]
    assert list(found["runtimes"]) == ["onnxruntime", "openvino"] and len(found["fastest"]) == 2
    assert all(0 < entry["ratio"] <= 1 for entry in found["fastest"])


def test_a_runtime_that_is_not_installed_is_told(cli: Any, int8_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVino, "version", "")
    done = cli("evaluate", int8_file, *TEST, "--runtime", "openvino")
    assert (
        done.code == 2
        and "runtime 'openvino': is not installed" in done.err
        and 'pip install "bitwright[openvino]"' in done.err
    )
    assert benchmark.installed() == ["onnxruntime"]


def test_slower_kernels_are_of_one_runtime_alone(cli: Any, openvino_file: Path) -> None:
    done = cli("verify", openvino_file, *TEST, "--precise")
    assert done.code == 2 and "--precise: is set for openvino; expected onnxruntime" in done.err
