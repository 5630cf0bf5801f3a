"""What quantize says of its calibration images, and of what its file needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright as bw
from bitwright.ranges.audit import FEWEST_IMAGES


def test_a_good_set_is_measured_and_not_commented_on(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    ran = cli("quantize", float_file, "--data", assets / "digits_calib.npz", "-o", tmp_path / "o.onnx", "--json")
    found = ran.json["calibration"]
    assert (found["images"], found["batches"], found["classes_seen"], found["classes"]) == (256, 8, 10, 10)
    assert found["warnings"] == [] and "calibration" not in ran.err and "note:" not in ran.err
    assert 0 < found["stability"]["median"] <= found["stability"]["worst"][0]["change"] < 1 / 3
    sites = bw.load(tmp_path / "o.onnx").plan.sites
    assert {entry["site"] for entry in found["stability"]["worst"]} <= set(sites)


def test_a_weak_set_is_warned_of_with_numbers(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    data = np.load(assets / "digits_calib.npz")
    of_three = np.flatnonzero(data["labels"] < 3)[:40]
    images = data["image"][of_three].copy()
    images[7] *= 50  # an image of another brightness
    np.savez(tmp_path / "weak.npz", image=images, labels=data["labels"][of_three])
    arguments = ["quantize", float_file, "--data", tmp_path / "weak.npz", "--batch", 8, "-o", tmp_path / "o.onnx"]
    ran = cli(*arguments, "--json")
    assert ran.code == 0
    found = ran.json["calibration"]
    assert (found["images"], found["batches"], found["classes_seen"]) == (40, 5, 3) and len(found["warnings"]) == 3
    assert [f"note: {warning}" for warning in found["warnings"]] == [
        line for line in ran.err.splitlines() if line.startswith("note: ")
    ]
    assert found["warnings"][0].startswith(f"40 calibration images, fewer than {FEWEST_IMAGES}")
    assert found["warnings"][1].startswith("the calibration images are of 3 of 10 classes")
    assert found["stability"]["unstable"] > 0 and "between halves" in found["warnings"][2]
    assert cli(*arguments, "--quiet").err == ""


def test_without_labels_classes_are_unknown(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.load(assets / "digits_calib.npz")["image"])
    found = cli("quantize", float_file, "--data", tmp_path / "x.npz", "-o", tmp_path / "o.onnx", "--json").json
    assert (found["calibration"]["classes_seen"], found["calibration"]["classes"]) == (None, None)


@pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse"])
def test_the_audit_does_not_depend_on_the_estimator(estimator: str, assets: Path) -> None:
    steps = [f"calibrate.activations={estimator}"]
    found = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", steps=steps, limit=128, batch=16)
    usual = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=128, batch=16)
    assert found.calibration is not None and usual.calibration is not None
    assert found.calibration == usual.calibration and found.calibration.batches == 8


def test_the_extremes_of_each_batch_are_those_of_the_data(assets: Path) -> None:
    """Of the network's input, which needs no network to be known."""
    found = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", batch=100)
    (extremes,) = [event.facts["extremes"] for event in found.state.log if "extremes" in event.facts]
    images = np.load(assets / "digits_calib.npz")["image"]
    expected = [[part.min(), part.max()] for part in (images[:100], images[100:200], images[200:])]
    assert torch.equal(extremes["image"], torch.tensor(np.array(expected)))
    assert [event.step.partition("(")[0] for event in found.state.log] == [
        "FoldBatchNorm", "Place", "Calibrate", "Gptq",
    ]  # fmt: skip


def test_a_loaded_file_has_no_audit(int8_file: Path) -> None:
    assert bw.load(int8_file).calibration is None


def test_needs_are_told(cli: Any, float_file: Path, int8_file: Path, assets: Path, tmp_path: Path) -> None:
    arguments = ["quantize", float_file, "--data", assets / "digits_calib.npz", "-o", tmp_path / "o.onnx"]
    assert cli(*arguments, "--json").json["needs"] == {"onnxruntime": ">=1.18"}
    assert any(line.split() == ["needs", "onnxruntime", ">=1.18"] for line in cli(*arguments).out.splitlines())
    assert cli("inspect", int8_file, "--json").json["needs"] == {"onnxruntime": ">=1.18"}
    assert "onnxruntime >=1.18" in cli("inspect", int8_file).out
    found = cli("inspect", float_file)
    assert "onnxruntime >=" not in found.out and cli("inspect", float_file, "--json").json["needs"] == {}
