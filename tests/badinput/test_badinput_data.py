"""Images and arrays that cannot be used, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from bitwright.cli import main

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]
Save = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve readable images of digits in two classes."""
    x = np.load(Path(__file__).parents[1] / "assets" / "digits_calib.npz")["image"]
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 * (x[i, 0] - x.min()) / np.ptp(x))).save(path)
    (tmp_path / "images" / "preprocess.yaml").write_text("color: GRAY\n")
    return tmp_path / "images"


def rows(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return arrays


def test_the_folder_is_a_good_one(folder: Path, digits: Path, quantize: Arguments) -> None:
    assert main([str(a) for a in [*quantize(digits, "--data", folder), "--quiet"]]) == 0


@pytest.mark.parametrize("command", ["quantize", "evaluate", "verify"])
def test_data_missing(command: str, refused: Refused, digits: Path) -> None:
    refused([command, digits], "--data: is missing; expected images")


def test_no_such_data(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    refused(quantize(digits, "--data", tmp_path / "gone"), "gone: does not exist; expected an image folder", "check")
    (tmp_path / "notes.txt").write_text("no data")
    refused(quantize(digits, "--data", tmp_path / "notes.txt"), r"notes.txt: is a file ending in '\.txt'; expected an")


def test_an_empty_folder(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(quantize(digits, "--data", tmp_path / "empty"), "empty: there is no image in it; expected files such as")


def test_an_empty_class(refused: Refused, quantize: Arguments, digits: Path, folder: Path) -> None:
    (folder / "c").mkdir()
    refused(quantize(digits, "--data", folder), "the class folder 'c' holds no image", "expected images in every")


def test_images_of_another_shape(refused: Refused, quantize: Arguments, digits: Path, folder: Path) -> None:
    (folder / "preprocess.yaml").unlink()
    refused(quantize(digits, "--data", folder), r"\.png: has the shape \[3, 8, 8\]", r"expected \[1, 8, 8\]", "GRAY")
    (folder / "preprocess.yaml").write_text("color: GRAY\n")
    refused(quantize(digits, "--data", folder, "--resize", "9"), r"has the shape \[1, 9, 9\]", r"expected \[1, 8, 8\]")


def test_one_image_of_another_shape(refused: Refused, quantize: Arguments, digits: Path, folder: Path) -> None:
    Image.new("L", (8, 9)).save(folder / "b" / "11.png")
    refused(
        quantize(digits, "--data", folder), r"b/11\.png: has the shape \[1, 9, 8\]", r"expected \[1, 8, 8\]", "resize"
    )


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no image",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_unreadable_images(kind: str, refused: Refused, quantize: Arguments, digits: Path, folder: Path) -> None:
    bad = folder / "b" / "05.png"
    bad.write_bytes(DAMAGE[kind](bad.read_bytes()))
    refused(quantize(digits, "--data", folder), r"b/05\.png: is no readable image", "expected a whole image", "skip")


def test_unreadable_images_are_skipped(quantize: Arguments, digits: Path, folder: Path, capfd: Any) -> None:
    for name in ("a/02.png", "b/05.png", "b/07.png"):
        (folder / name).write_bytes(b"no image")
    arguments = [str(a) for a in quantize(digits, "--data", folder, "--skip-bad")]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert re.search(r"skipped 3 unreadable images, the first is .*a/02\.png", err)
    assert re.search(r"images used +9\b", out)
    assert main([*arguments, "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["images_used"] == 9


def test_all_images_unreadable(refused: Refused, quantize: Arguments, digits: Path, folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no image")
    refused(
        quantize(digits, "--data", folder, "--skip-bad"), "none of the 12 chosen images can be read", "look at one"
    )


def test_images_for_several_inputs(refused: Refused, quantize: Arguments, save: Save, folder: Path) -> None:
    nodes = [helper.make_node("Add", ["left", "right"], ["y"])]
    path = save("two.onnx", nodes, {"left": ["N", 1, 8, 8], "right": ["N", 1, 8, 8]})
    refused(
        quantize(path, "--data", folder), r"holds images, but the model has 2 inputs \(left, right\)", "give arrays"
    )


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": (rows(picture=np.zeros((4, 1, 8, 8), np.float32)), "has picture; expected an array 'image'"),
    "another shape": (
        rows(image=np.zeros((4, 1, 9, 8), np.float32)),
        r"shape \[4, 1, 9, 8\]; expected \[\?, 1, 8, 8\]",
    ),
    "channels last": (rows(image=np.zeros((4, 8, 8, 1), np.float32)), r"expected \[\?, 1, 8, 8\]; transpose its axes"),
    "another type": (rows(image=np.zeros((4, 1, 8, 8))), r"is float64; expected float32; convert it with \.astype"),
    "no rows": (rows(image=np.zeros((0, 1, 8, 8), np.float32)), "'image' has no rows; expected at least one image"),
    "few labels": (
        rows(image=np.zeros((4, 1, 8, 8), np.float32), labels=np.zeros(3, np.int64)),
        "has 3 labels for 4 images; expected 4 labels",
    ),
    "nan": (rows(image=np.full((4, 1, 8, 8), np.nan, np.float32)), r"\['image'\]: image 0 holds NaN; expected finite"),
    "infinity": (
        rows(image=np.append(np.zeros((3, 1, 8, 8)), np.full((1, 1, 8, 8), np.inf), 0).astype(np.float32)),
        "image 3 holds infinity; expected finite numbers; remove or repair it",
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str, refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    arrays, words = ARRAYS[kind]
    np.savez(tmp_path / "data.npz", **arrays)
    refused(quantize(digits, "--data", tmp_path / "data.npz"), r"data\.npz", words)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_npz_cut_off(
    keep: float, refused: Refused, quantize: Arguments, digits: Path, images: Path, tmp_path: Path
) -> None:
    data = images.read_bytes()
    (tmp_path / "data.npz").write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    refused(quantize(digits, "--data", tmp_path / "data.npz"), r"data\.npz: is no readable \.npz", "write it again")


def test_labels_that_are_no_class(refused: Refused, digits: Path, tmp_path: Path) -> None:
    x = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", image=x, labels=np.array([0, 1, 2, 10]))
    refused(
        ["evaluate", digits, "--data", tmp_path / "data.npz"], "labels: labels from 0 to 10; expected classes 0 to 9"
    )


def test_labels_of_other_classes_do_not_hinder_calibration(
    refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path, capfd: Any
) -> None:
    """They are measured with only when they are asked for."""
    x = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "data.npz", image=x, labels=np.arange(16) + 100)
    arguments = [str(a) for a in quantize(digits, "--data", tmp_path / "data.npz")]
    assert main([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["accuracy"] is None
    assert re.search(r"note: the labels of .*data\.npz are no classes of the network", err)
    (tmp_path / "out.onnx").unlink()
    refused([*arguments, "--eval-data", tmp_path / "data.npz"], "labels from 100 to 115; expected classes 0 to 9")


@pytest.fixture
def unlabelled(tmp_path: Path, images: Path) -> Path:
    path = tmp_path / "unlabelled.npz"
    np.savez(path, image=np.load(images)["image"][:16])
    return path


def test_labels_missing(refused: Refused, quantize: Arguments, digits: Path, unlabelled: Path) -> None:
    words = [r"unlabelled\.npz: has no labels", "add an array 'labels'"]
    refused(["evaluate", digits, "--data", unlabelled, "--require-labels"], *words)
    refused(quantize(digits, "--eval-data", unlabelled), *words)


def test_evaluation_data_are_opened_before_anything_is_written(
    refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path
) -> None:
    refused(quantize(digits, "--eval-data", tmp_path / "gone"), "gone: does not exist")


MODULE = """
import numpy as np

def number():
    return 3

def raises():
    raise RuntimeError("disk gone")

def wrong_shape():
    return {"image": np.zeros((4, 3, 8, 8), np.float32)}

value = 3
"""
CALLABLES = {
    "number": "int",
    "raises": "RuntimeError: disk gone",
    "wrong_shape": r"shape \[4, 3, 8, 8\]",
    "value": "is a int; expected something to call without arguments",
    "absent": "absent",
}


@pytest.mark.parametrize("name", CALLABLES)
def test_callables(
    name: str, refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data_for_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    refused(quantize(digits, "--data", f"data_for_test:{name}"), f"data_for_test:{name}", CALLABLES[name])


def test_callables_of_modules_that_do_not_exist(refused: Refused, quantize: Arguments, digits: Path) -> None:
    refused(quantize(digits, "--data", "no_such_module:data"), "no_such_module:data: .*no_such_module")


def test_preprocessing_that_is_not_understood(
    refused: Refused, quantize: Arguments, digits: Path, folder: Path, images: Path
) -> None:
    refused(quantize(digits, "--data", folder, "--mean", "half"), "--mean: is 'half'; expected a number")
    refused(quantize(digits, "--data", folder, "--layout", "CHW"), "layout", "CHW", "NCHW")
    refused(
        quantize(digits, "--data", images, "--mean", "0.5"), r"\.npz: holds arrays, to which preprocessing does not"
    )
    (folder / "preprocess.yaml").write_text("colour: GRAY\n")
    refused(quantize(digits, "--data", folder), r"preprocess\.yaml", "colour", "color")
    (folder / "preprocess.yaml").write_text("color: [GRAY\n")
    refused(quantize(digits, "--data", folder), r"preprocess\.yaml", "YAML|yaml")
