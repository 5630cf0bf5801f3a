"""`evaluate --metric`, and agreement with the float network of every output, against numbers worked out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

METRICS = """
import numpy as np

def margin(outputs, labels):
    assert labels is not None and len(labels) == len(outputs["logits"])
    logits = outputs["logits"].astype(np.float64)
    right = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return right - logits.mean(1)

def both(outputs, labels):
    top = np.sort(outputs["logits"], axis=1)
    return {"lead": top[:, -1] - top[:, -2], "unlabelled": [labels is None] * len(top)}

def pixels(outputs, labels):
    return (outputs["map"].argmax(1) == labels).mean((1, 2))

number = 3
"""
#: A segmentation map, class scores, an integer mask and a map of one channel.
SEVERAL = (
    "c = Conv<pads=[1, 1, 1, 1]>(x, w) map = Relu(c) p = GlobalAveragePool(map) logits = Flatten(p) "
    "mask = ArgMax<axis=1>(map) depth = ReduceMax<keepdims=1>(map, one)"
)


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of metrics in the working folder, under a name of its own."""
    name = f"metrics_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return name


def test_mean_interval_and_paired_difference(
    cli: Any, float_file: Path, int8_file: Path, test_images: Path, scores: Any, metrics: str
) -> None:
    arguments = ["evaluate", int8_file, "--data", test_images, "--metric", f"{metrics}:margin", "--batch", 50]
    found = cli(*arguments, "--against", float_file, "--json").json
    (measured,) = found["metrics"]
    every = np.arange(360)
    own, reference = (
        scores[name].astype(np.float64)[every, scores["labels"]] - scores[name].mean(1) for name in ("int8", "float")
    )
    assert (measured["name"], measured["images"]) == ("margin", 360)
    assert measured["score"]["mean"] == pytest.approx(own.mean(), rel=1e-6)
    assert measured["reference"]["mean"] == pytest.approx(reference.mean(), rel=1e-6)
    difference = measured["difference"]
    assert difference["mean"] == pytest.approx((own - reference).mean(), rel=1e-4, abs=1e-7)
    half = 1.9665925 * (own - reference).std(ddof=1) / math.sqrt(360)  # t(0.975, 359)
    assert difference["high"] - difference["mean"] == pytest.approx(half, rel=1e-4)
    assert difference["mean"] - difference["low"] == pytest.approx(half, rel=1e-4)
    # Top-1 is measured as before, and alone nothing is compared.
    assert found["top1"] == (scores["int8"].argmax(1) == scores["labels"]).mean()
    (alone,) = cli(*arguments, "--json").json["metrics"]
    assert alone["score"] == measured["score"] and alone["reference"] is None and alone["difference"] is None


def test_its_lines(cli: Any, float_file: Path, int8_file: Path, test_images: Path, metrics: str) -> None:
    ran = cli("evaluate", int8_file, "--data", test_images, "--metric", f"{metrics}:both", "--against", float_file)
    labels = [line.split("  ")[0] for line in ran.out.splitlines()]
    for name in ("lead", "lead, reference", "lead, difference", "unlabelled"):
        assert name in labels
    line = next(line for line in ran.out.splitlines() if line.startswith("lead, difference"))
    assert ", 95 % interval " in line


def test_without_labels_the_metric_gets_none(
    cli: Any, float_file: Path, test_images: Path, tmp_path: Path, metrics: str
) -> None:
    np.savez(tmp_path / "x.npz", image=np.load(test_images)["image"][:5])
    found = cli("evaluate", float_file, "--data", tmp_path / "x.npz", "--metric", f"{metrics}:both", "--json").json
    assert [(m["name"], m["images"]) for m in found["metrics"]] == [("lead", 5), ("unlabelled", 5)]
    assert found["metrics"][1]["score"] == {"mean": 1.0, "low": 1.0, "high": 1.0} and found["top1"] is None


@pytest.fixture
def several(onnx_file: Callable[..., Path], tmp_path: Path, cli: Any) -> tuple[Path, Path, np.ndarray]:
    """A float network with several outputs, its integer file, and images without labels."""
    rng = np.random.default_rng(0)
    weights = ", ".join(f"{v:.4f}" for v in rng.standard_normal(54))
    path = onnx_file(
        SEVERAL,
        "(float[N, 2, 6, 6] x) => "
        "(float[N, 3, 6, 6] map, float[N, 3] logits, int64[N, 1, 6, 6] mask, float[N, 1, 6, 6] depth) "
        f"<float[3, 2, 3, 3] w = {{{weights}}}, int64[1] one = {{1}}>",
    )  # fmt: skip
    images = rng.standard_normal((20, 2, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    integer = tmp_path / "several.int8.onnx"
    ran = cli("quantize", path, "--data", tmp_path / "x.npz", "--set", "W=4,A=4", "--ends", 0, "-o", integer)
    assert ran.code == 0, ran.err
    return path, integer, images


def test_every_output_beside_the_float_network(
    cli: Any, several: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    path, integer, images = several
    arguments = ["evaluate", integer, "--data", tmp_path / "x.npz", "--against", path, "--batch", 8]
    found = cli(*arguments, "--json").json
    rows = {row["output"]: row for row in found["outputs"]}
    assert list(rows) == ["map", "logits", "mask", "depth"]
    assert [row["of"] for row in rows.values()] == ["positions", "images", "elements", None]
    own, reference = (
        onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": images})
        for p in (integer, path)
    )
    assert 0 < rows["map"]["agreement"] < 1, "4 bits change some pixels, not all"
    assert rows["map"]["agreement"] == (own[0].argmax(1) == reference[0].argmax(1)).mean()
    assert rows["logits"]["agreement"] == (own[1].argmax(1) == reference[1].argmax(1)).mean()
    assert rows["mask"]["agreement"] == (own[2] == reference[2]).mean() and rows["depth"]["agreement"] is None
    for row, y, r in zip(found["outputs"], own, reference, strict=True):
        noise = ((r.astype(np.float64) - y) ** 2).sum()
        assert row["sqnr_db"] == pytest.approx(10 * math.log10((r.astype(np.float64) ** 2).sum() / noise), rel=1e-6)
    # Agreement is of the first output: it is no list of class scores, so that nothing is said of images.
    assert found["agreement"] is None
    noise = [10 ** (-rows[name]["sqnr_db"] / 10) for name in ("map", "logits", "depth")]  # a mask has no noise
    assert found["sqnr_db"] == pytest.approx(-10 * math.log10(sum(noise) / 3))
    text = cli(*arguments).out
    for line in ("same positions as the reference of map", "same top-1 as the reference of logits",
                 "same elements as the reference of mask", "signal to noise of depth"):  # fmt: skip
        assert line in text


def test_labels_that_are_maps_go_to_the_metric_alone(
    cli: Any, several: tuple[Path, Path, np.ndarray], tmp_path: Path, metrics: str
) -> None:
    path, integer, images = several
    (truth,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["map"], {"x": images})
    np.savez(tmp_path / "labelled.npz", x=images, labels=truth.argmax(1))
    arguments = ["evaluate", integer, "--data", tmp_path / "labelled.npz", "--against", path, "--json"]
    (measured,) = cli(*arguments, "--metric", f"{metrics}:pixels").json["metrics"]
    assert measured["reference"]["mean"] == 1.0 and 0 < measured["score"]["mean"] < 1
    assert measured["difference"]["mean"] == pytest.approx(measured["score"]["mean"] - 1)
    assert measured["difference"]["high"] < 0


def test_outputs_of_another_network_are_refused(
    cli: Any, several: tuple[Path, Path, np.ndarray], onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, _, _ = several
    other = onnx_file("y = Relu(x)", "(float[N, 2, 6, 6] x) => (float[N, 2, 6, 6] y)", name="other.onnx")
    ran = cli("evaluate", path, "--data", tmp_path / "x.npz", "--against", other)
    assert ran.code == 2 and "has 4 outputs; expected the reference's 1" in ran.err
