"""Quantizing without images, and with images made from batch norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright as bw
from bitwright.errors import InputError


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_image_is_needed(inside: Path, cli: Any, float_file: Path, test_images: Path) -> None:
    """Digits are pixels from 0 to 1, which one can say."""
    ran = cli(
        "quantize", float_file, "--recipe", "datafree", "--step", "calibrate.input_low=0.0", "--step",
        "calibrate.input_high=1.0", "--eval-data", test_images, "-o", "out.onnx", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json
    assert (found["images_used"], found["calibration"], found["recipe"]) == (0, None, "datafree")
    assert found["accuracy"]["drop"] <= 0.015 and found["accuracy"]["images"] == 360
    proof = cli("verify", inside / "out.onnx", "--data", test_images, "--limit", 40, "--json").json
    assert proof["proven"] and proof["mismatches"] == 0


def test_without_any_image_nothing_is_measured(inside: Path, cli: Any, float_file: Path) -> None:
    ran = cli("quantize", float_file, "--recipe", "datafree", "-o", "out.onnx", "--json")
    assert ran.code == 0 and ran.json["accuracy"] is None and ran.json["agreement"] is None
    assert (inside / "out.onnx").stat().st_size == ran.json["bytes_after"]
    told = cli("quantize", float_file, "--recipe", "datafree", "-o", "out.onnx").out
    assert "not measured; give --eval-data" in told and "calibration images" not in told


def test_recipes_that_need_images_say_so_in_one_line(inside: Path, cli: Any, float_file: Path) -> None:
    ran = cli("quantize", float_file)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert ran.err.startswith("bitwright: --data: is missing; expected images to set the ranges from: a folder")
    assert "recipe fast needs some (Calibrate, Gptq); --recipe datafree needs none" in ran.err
    with pytest.raises(InputError, match=r"--data: is missing; .* recipe fast needs some \(Calibrate, Gptq\)"):
        bw.quantize(float_file, None)
    with pytest.raises(InputError, match=r"recipe datafree needs some \(CorrectBias\)"):
        bw.quantize(float_file, None, recipe="datafree", steps=["correct_bias.method=empirical"])


def test_distilled_images_serve_any_recipe(inside: Path, cli: Any, float_file: Path, test_images: Path) -> None:
    ran = cli(
        "quantize", float_file, "--data", "distilled", "--step", "distill.iterations=20", "--limit", 8,
        "--eval-data", test_images, "-o", "out.onnx",
    )  # fmt: skip
    assert ran.code == 0 and "distilled 8 images: the mismatch of batch-norm statistics fell from " in ran.err
    again = cli(
        "quantize", float_file, "--data", "distilled", "--step", "distill.iterations=20", "--limit", 8, "-o",
        "again.onnx", "--json",
    )  # fmt: skip
    assert again.json["accuracy"] is None and again.json["agreement"] is None, "nobody measures on made images"
    assert again.json["images_used"] == 8 and again.json["calibration"]["images"] == 8
    assert (inside / "out.onnx").read_bytes() == (inside / "again.onnx").read_bytes()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--data", "distilled", "--step", "distill.iteration=3"],
            "distill: there is no setting 'iteration'; did you",
        ),
        (["--data", "distilled", "--step", "distill.lr=high"], "distill.lr: is 'high' (str); expected a float"),
        (["--recipe", "datafree", "--step", "distill.iterations=3"], "recipe datafree: has no step 'distill'"),
        (["--recipe", "datafree", "--step", "calibrate.activations=mse"], "recipe datafree needs some (Calibrate)"),
        (["--recipe", "datafree", "--step", "place.granularity=row"], "place.granularity: is 'row'; expected channel"),
    ],
)
def test_what_it_refuses(inside: Path, flags: list[str], told: str, cli: Any, float_file: Path) -> None:
    ran = cli("quantize", float_file, *flags)
    assert ran.code == 2 and told in ran.err and not list(inside.iterdir()), ran.err


def test_a_network_without_batch_norm(inside: Path, cli: Any, onnx_file: Any) -> None:
    path = onnx_file("y = Conv <kernel_shape = [1, 1]> (x, w)", "(float[N,1,4,4] x) => (float[N,1,4,4] y) "
                     "<float[1,1,1,1] w = {0.5}>")  # fmt: skip
    ran = cli("quantize", path, "--data", "distilled")
    assert ran.code == 2 and "the network has no batch norm to make images from" in ran.err
    ran = cli("quantize", path, "--recipe", "datafree")
    assert ran.code == 2 and "correct_bias: the network has no batch norm to tell its means from" in ran.err


# One scale for a whole weight.


@pytest.mark.parametrize("width", ["W=8", "W=4", "W=3", "W=log2-4", "W=ternary"])
def test_one_scale_for_a_weight_is_served_exactly(width: str, inside: Path, assets: Path) -> None:
    q = bw.quantize(
        assets / "digits.onnx", assets / "digits_calib.npz", target="onnxruntime-x64-avx2",
        set=[] if width == "W=8" else [width], ends=0 if "log2" in width else None, steps=["place.granularity=tensor"],
    )  # fmt: skip
    weights = [s for s in q.state.encodings if s in q.state.model.graph.initializers]
    assert weights and all(q.state.encodings[s].scale.ndim == 0 for s in weights)
    found = q.verify(assets / "digits.npz", limit=32)
    assert found.proven and found.mismatches == 0
    q.save(inside / "m.onnx")
    loaded = bw.load(inside / "m.onnx")
    assert loaded.plan == q.plan
    assert all(np.array_equal(loaded.state.encodings[s].scale, q.state.encodings[s].scale) for s in weights)


def test_a_plan_with_one_scale_a_weight_can_be_given_and_edited(inside: Path, cli: Any, assets: Path) -> None:
    q = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=4, steps=["place.granularity=tensor"])
    (inside / "plan.json").write_text(q.plan.dumps())
    again = bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz", limit=4, plan="plan.json")
    assert again.plan == q.plan
    region = next(name for name, sites in q.plan.regions.items() if sites[0] in q.state.model.graph.initializers)
    edited = bw.quantize(
        assets / "digits.onnx", assets / "digits_calib.npz", limit=4, plan="plan.json", set=[f"{region}:W=4"]
    )
    spec = edited.plan.qspec(q.plan.regions[region][0])
    assert spec is not None and spec.bits == 4 and spec.axis is None
    with pytest.raises(InputError, match=r"place\.granularity: is tensor, but the plan says every weight's scales"):
        bw.quantize(
            assets / "digits.onnx", assets / "digits_calib.npz", plan="plan.json", steps=["place.granularity=tensor"]
        )
