"""Targets that nothing here executes: the file is written, its accuracy is simulated, and every command says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import bitwright as bw

OPS = {"tensorrt": "QuantizeLinear", "anybits": "Quant", "paper": "Quant"}


@pytest.fixture(scope="module")
def written(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("simulated")
    paths = {target: folder / f"{target}.onnx" for target in OPS}
    for target, path in paths.items():
        widths = [] if target == "tensorrt" else ["W=3,A=5"]
        bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", target=target, set=widths).save(path)
    return paths


def simulated_top1(path: Path, images: Path) -> float:
    data = np.load(images)
    with torch.no_grad():
        scores = bw.load(path).torch()(torch.from_numpy(data["image"]))[0].numpy()
    return float((scores.argmax(1) == data["labels"]).mean())


@pytest.mark.parametrize("target", OPS)
def test_quantize(cli: Any, float_file: Path, assets: Path, tmp_path: Path, target: str, test_images: Path) -> None:
    output = tmp_path / "out.onnx"
    data = ["--data", assets / "digits_calib.npz", "--eval-data", test_images]
    arguments = ["quantize", float_file, *data, "--target", target, "-o", output]
    found = cli(*arguments, "--json").json
    assert (found["target"], found["simulated"], found["bytes_after"]) == (target, True, output.stat().st_size)
    assert found["accuracy"]["accuracy"] == pytest.approx(simulated_top1(output, test_images))
    assert OPS[target] in {node.op_type for node in onnx.load(str(output)).graph.node}
    said = " ".join(cli(*arguments).out.split())
    assert f"simulated: no runtime here executes files for {target}; the file itself was not run" in said
    assert "%, simulated" in said and "in its runtime" not in said


def test_quantize_for_a_runtime_is_not_simulated(cli: Any, float_file: Path, assets: Path, tmp_path: Path) -> None:
    arguments = ["quantize", float_file, "--data", assets / "digits_calib.npz", "-o", tmp_path / "out.onnx"]
    assert cli(*arguments, "--json").json["simulated"] is False
    assert "simulated" not in cli(*arguments).out


@pytest.mark.parametrize("target", OPS)
def test_evaluate(cli: Any, written: dict[str, Path], target: str, test_images: Path) -> None:
    arguments = ["evaluate", written[target], "--data", test_images]
    found = cli(*arguments, "--json").json
    assert found["simulated"] is True and found["top1"] == pytest.approx(simulated_top1(written[target], test_images))
    assert "no runtime here executes the file; it was not run" in cli(*arguments).out


@pytest.mark.parametrize("target", OPS)
def test_run(cli: Any, written: dict[str, Path], target: str, image_file: Any, float_file: Path) -> None:
    arguments = ["run", written[target], image_file(0), "--against", float_file, "--color", "GRAY"]
    ran = cli(*arguments, "--json")
    assert ran.json["simulated"] == [str(written[target])], "the float file runs"
    assert "is simulated: no runtime here executes it" in " ".join(cli(*arguments).err.split())


@pytest.mark.parametrize("target", OPS)
def test_what_needs_a_runtime_is_refused(cli: Any, written: dict[str, Path], target: str, test_images: Path) -> None:
    ran = cli("verify", written[target], "--data", test_images)
    assert (ran.code, ran.out) == (2, "") and len(ran.err.strip().splitlines()) == 1
    assert f"is for {target}, which is simulated here, not run" in ran.err


def test_a_file_that_the_runtime_cannot_load_is_not_timed(cli: Any, written: dict[str, Path]) -> None:
    ran = cli("benchmark", written["anybits"], "--rounds", 1)
    assert ran.code == 2 and "Quant(-1) is not a registered function" in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_targets_says_it(cli: Any) -> None:
    found = {entry["name"]: entry for entry in cli("targets", "--json").json["targets"]}
    assert {name: entry["simulated"] for name, entry in found.items() if entry["simulated"]} == dict.fromkeys(
        OPS, True
    )
    assert (found["tensorrt"]["form"], found["anybits"]["form"]) == ("qdq-float", "qonnx")
    assert found["tensorrt"]["bias_bits"] is None
    said = " ".join(cli("targets", "tensorrt").out.split())
    assert "tensorrt: not here, so simulated" in said and "biases float" in said


def test_the_placement_is_said(cli: Any, float_file: Path, assets: Path, tmp_path: Path, test_images: Path) -> None:
    """By quantize, by evaluate and by plan show, as text and as JSON."""
    output, data = tmp_path / "out.onnx", assets / "digits_calib.npz"
    arguments = ["quantize", float_file, "--data", data, "--placement", "paper", "--set", "W=4,A=4", "-o", output]
    found = cli(*arguments, "--json").json
    assert (found["placement"], found["target"], found["simulated"]) == ("paper", "paper", True)
    assert found["integer_mac_share"] < 1, "the first layer reads the image itself"
    assert any(entry["site"] == "image" and "the network's input" in entry["reason"] for entry in found["float_sites"])
    assert "placement paper: network input, logits" in " ".join(cli(*arguments).out.split())
    evaluated = cli("evaluate", output, "--data", test_images, "--json").json
    assert (evaluated["placement"], evaluated["simulated"]) == ("paper", True)
    assert "placement paper: network input" in " ".join(cli("evaluate", output, "--data", test_images).out.split())
    assert cli("plan", "show", output, "--json").json["placement"] == "paper"
    assert "placement paper" in " ".join(cli("plan", "show", output).out.split())
    assert cli("evaluate", float_file, "--data", test_images, "--json").json["placement"] is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--placement", "papre"], "placement 'papre': there is no placement of this name; did you mean 'paper'?"),
        (["--placement", "paper", "--target", "anybits"], "--placement paper: beside the target 'anybits'"),
        (["--placement", "deployable", "--target", "paper"], "leave --target out, or --placement"),
    ],
)
def test_placements_that_do_not_fit(cli: Any, float_file: Path, assets: Path, flags: list[str], told: str) -> None:
    ran = cli("quantize", float_file, "--data", assets / "digits_calib.npz", *flags)
    assert (ran.code, ran.out) == (2, "") and told in ran.err and len(ran.err.strip().splitlines()) == 1
