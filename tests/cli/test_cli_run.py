"""`bitwright run`: the classes that score highest, and where preprocessing comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

ImageFile = Callable[..., Path]
SOFTMAX_NET = (
    "p = GlobalAveragePool(x) f = Flatten(p) s = Gemm(f, w) y = Softmax(s)",
    "(float[N, 3, H, W] x) => (float[N, 3] y) <float[3, 3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}>",
)


def by_hand(path: Path, image: Path) -> np.ndarray:
    """Logits `[10]` of a grey image, pixels divided by 255."""
    pixels = np.asarray(Image.open(image), dtype=np.float32) / np.float32(255)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": pixels[None, None]})
    return logits[0]


def test_the_five_best_by_hand(cli: Any, float_file: Path, image_file: ImageFile) -> None:
    images = [image_file(0, "a.png"), image_file(7, "b.png")]
    found = cli("run", float_file, *images, "--color", "GRAY", "--json").json
    assert [entry["image"] for entry in found["images"]] == [str(image) for image in images]
    for entry, image in zip(found["images"], images, strict=True):
        logits = by_hand(float_file, image).astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-logits)[:5]
        assert [top["class"] for top in entry["top"]] == best.tolist()
        assert [top["score"] for top in entry["top"]] == pytest.approx(logits[best].tolist(), abs=1e-4)
        assert [top["probability"] for top in entry["top"]] == pytest.approx(probabilities[best].tolist(), abs=1e-5)
        assert entry["against"] is None and entry["same_top1"] is None
        assert {top["name"] for top in entry["top"]} == {None}
    assert found["probabilities"] == {str(float_file): "softmax of the scores"}


def test_two_files_side_by_side(cli: Any, float_file: Path, int8_file: Path, image_file: ImageFile) -> None:
    image = image_file(3)
    arguments = ["run", int8_file, image, "--against", float_file, "--color", "GRAY"]
    (entry,) = cli(*arguments, "--json").json["images"]
    assert [t["class"] for t in entry["top"]] == np.argsort(-by_hand(int8_file, image), kind="stable")[:5].tolist()
    assert [t["class"] for t in entry["against"]] == np.argsort(-by_hand(float_file, image))[:5].tolist()
    assert entry["same_top1"] is True
    ran = cli(*arguments)
    lines = ran.out.splitlines()
    assert lines[0] == str(image)
    assert lines[1].split() == ["digits.int8.onnx", "score", "probability", "digits.onnx", "score", "probability"]
    assert lines[3].split()[:2] == ["class", str(entry["top"][0]["class"])]
    assert lines[-2:] == ["same top-1 in 1 of 1 images", "probability: softmax of the scores"]


def test_names_of_classes(cli: Any, float_file: Path, image_file: ImageFile, tmp_path: Path) -> None:
    image, names = image_file(0), tmp_path / "names.txt"
    spelt = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine, or café"]
    names.write_text("\n".join(spelt) + "\n\n", encoding="utf-8")
    arguments = ["run", float_file, image, "--color", "GRAY", "--labels", names]
    (entry,) = cli(*arguments, "--json").json["images"]
    assert [top["name"] for top in entry["top"]] == [spelt[top["class"]] for top in entry["top"]]
    assert f"{entry['top'][0]['class']} {entry['top'][0]['name']}" in cli(*arguments).out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"zero\none\n", r"names.txt: has 2 names; expected 10, one for each class of "),
        (b"zero\n\ntwo\n", r"names.txt: line 2: is empty; expected the name of a class"),
        (b"\xff\xfe\x00", r"names.txt: cannot be read: not UTF-8"),
        (None, r"names.txt: cannot be read: No such file"),
    ],
)
def test_names_that_do_not_fit(
    content: bytes | None, told: str, cli: Any, float_file: Path, image_file: ImageFile, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    ran = cli("run", float_file, image_file(0), "--color", "GRAY", "--labels", tmp_path / "names.txt")
    assert ran.code == 2 and told in ran.err


def test_probabilities_of_a_network_that_ends_in_softmax_are_its_own(
    cli: Any, onnx_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = onnx_file(*SOFTMAX_NET)
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    found = cli("run", path, tmp_path / "red.png", "--shape", "x=Nx3x4x4", "--json").json
    assert found["probabilities"] == {str(path): "given by the network"}
    (entry,) = found["images"]
    expected = np.exp([1, 0, 0]) / np.exp([1, 0, 0]).sum()
    assert [top["class"] for top in entry["top"]] == [0, 1, 2]
    assert [top["probability"] for top in entry["top"]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [top["score"] for top in entry["top"]] == [top["probability"] for top in entry["top"]]


def test_preprocessing_is_found_above_the_class_folder(
    cli: Any, float_file: Path, image_file: ImageFile, tmp_path: Path
) -> None:
    image = image_file(0, "set/dev/zero/a.png")
    yaml = tmp_path / "set" / "preprocess.yaml"
    yaml.write_text("color: GRAY\nscale: 51\n")  # 255 / 5: five times the usual numbers
    ran = cli("run", float_file, image, "--json")
    (entry,) = ran.json["images"]
    assert entry["preprocess"] == str(yaml)
    assert ran.err == f"preprocessing of {image}: {yaml}\n"
    brighter = cli("run", float_file, image, "--scale", "255", "--json")
    assert brighter.json["images"][0]["preprocess"] == f"{yaml}, overridden by flags: scale"
    assert brighter.json["images"][0]["top"][0]["score"] == pytest.approx(by_hand(float_file, image).max(), abs=1e-4)
    assert entry["top"][0]["score"] != brighter.json["images"][0]["top"][0]["score"]


def test_preprocessing_of_the_folder_wins_over_that_above(
    cli: Any, float_file: Path, image_file: ImageFile, tmp_path: Path
) -> None:
    image = image_file(0, "set/zero/a.png")
    for folder in (tmp_path / "set" / "zero", tmp_path / "set"):
        (folder / "preprocess.yaml").write_text("color: GRAY\n")
    found = cli("run", float_file, image, "--json").json
    assert found["images"][0]["preprocess"] == str(tmp_path / "set" / "zero" / "preprocess.yaml")


def test_what_is_assumed_is_said_once(cli: Any, onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    path = onnx_file(*SOFTMAX_NET)
    images = [tmp_path / name for name in ("a.png", "b.png")]
    for image in images:
        Image.new("RGB", (4, 4)).save(image)
    ran = cli("run", path, *images, "--shape", "x=Nx3x4x4")
    assert ran.err == "note: no preprocess.yaml for 2 images: pixels are divided by 255 and nothing else\n"
    assert cli("run", path, *images, "--shape", "x=Nx3x4x4", "--quiet").err == ""


def test_a_fixed_batch_is_filled_with_the_one_image(
    cli: Any, onnx_file: Callable[..., Path], image_file: ImageFile
) -> None:
    path = onnx_file("f = Flatten(x) y = Gemm(f, w)", "(float[3, 1, 8, 8] x) => (float[3, 2] y) <float[64, 2] w>")
    proto = onnx.load(path)
    weight = np.stack([np.ones(64), np.arange(64) / 64], axis=1).astype(np.float32)
    del proto.graph.initializer[:]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    image = image_file(0)
    (entry,) = cli("run", path, image, "--color", "GRAY", "--json").json["images"]
    pixels = np.asarray(Image.open(image), dtype=np.float32).ravel() / 255
    assert [top["class"] for top in entry["top"]] == [0, 1]
    assert [top["score"] for top in entry["top"]] == pytest.approx((pixels @ weight).tolist(), rel=1e-5)


def test_what_is_no_image_is_refused(cli: Any, float_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    told = {
        tmp_path: "is a folder; expected an image; name its files, or use `bitwright evaluate` for all of them",
        tmp_path / "gone.png": "no such file; expected an image",
        tmp_path / "notes.txt": "is a file ending in '.txt'; expected one of .jpg",
        tmp_path / "broken.png": "is no readable image",
    }
    for image, text in told.items():
        ran = cli("run", float_file, image, "--color", "GRAY")
        assert ran.code == 2 and f"bitwright: {image}: {text}" in ran.err


def test_networks_that_tell_no_classes_are_refused(
    cli: Any, onnx_file: Callable[..., Path], tmp_path: Path, float_file: Path, image_file: ImageFile
) -> None:
    path = onnx_file("y = Relu(x)", "(float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y)")
    ran = cli("run", path, image_file(0), "--color", "GRAY")
    assert ran.code == 2 and "its output has shape [1, 1, 8, 8]; expected [batch, classes]" in ran.err
    other = onnx_file("y = Flatten(image)", "(float[N, 1, 8, 8] image) => (float[N, 64] y)", "other.onnx")
    ran = cli("run", float_file, image_file(0), "--color", "GRAY", "--against", other)
    assert ran.code == 2 and "other.onnx: tells 64 classes; expected 10" in ran.err
