"""The images and networks of ../shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitwright.data import open_data
from bitwright.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared"
pytestmark = pytest.mark.real_data
Specs = dict[str, tuple[tuple[int | None, ...], str]]

CIFAR: Specs = {"image": ((None, 3, 32, 32), "float32")}
TINY: Specs = {"image": ((None, 3, 64, 64), "float32")}


def test_cifar_folder() -> None:
    batches = open_data(SHARED / "data/cifar10/calib", CIFAR)
    assert len(batches) == 1000 and batches.class_names is not None
    assert batches.class_names[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(batches.require_labels()).tolist() == [100] * 10
    assert batches.preprocess_source == str(SHARED / "data/cifar10/preprocess.yaml")
    x = np.concatenate([batch.inputs["image"] for batch in batches])
    # mean 0 and std 1, roughly: CIFAR-10 is close to the ImageNet statistics of its preprocess.yaml
    assert np.abs(x.mean((0, 2, 3))).max() < 0.2 and np.abs(x.std((0, 2, 3)) - 1).max() < 0.25


def test_cifar_zip_is_listed_not_read() -> None:
    batches = open_data(SHARED / "data/cifar10/train.zip", CIFAR, limit=64, seed=3)
    assert len(open_data(SHARED / "data/cifar10/train.zip", CIFAR)) == 50_000
    assert sorted(np.bincount(batches.require_labels()).tolist()) == [6] * 6 + [7] * 4
    assert batches.names[0].startswith("train/")
    assert sum(batch.valid for batch in batches) == 64


def test_calibration_images_are_those_in_the_zip() -> None:
    folder = open_data(SHARED / "data/cifar10/calib", CIFAR, limit=20)
    archive = open_data(SHARED / "data/cifar10/train.zip", CIFAR)
    row = {name: i for i, name in enumerate(archive.names)}
    for name, x in zip(folder.names, next(iter(folder)).inputs["image"], strict=True):
        ((_, same),) = archive.source.rows([row[f"train/{name}"]], 1)
        np.testing.assert_array_equal(same["image"], x)


def test_tiny_imagenet_has_grey_jpegs_and_200_classes() -> None:
    batches = open_data(SHARED / "data/tiny-imagenet/calib", TINY, limit=400)
    assert np.bincount(batches.require_labels()).tolist() == [2] * 200
    assert sum(batch.valid for batch in batches) == 400


def test_the_wrong_network_says_which_size() -> None:
    with pytest.raises(InputError, match=r"\[3, 32, 32\] after preprocessing; expected \[3, 64, 64\]"):
        open_data(SHARED / "data/cifar10/calib", TINY)
    with pytest.raises(InputError, match="choose one data set"):
        open_data(SHARED / "data/cifar10", CIFAR)


def test_the_accuracy_of_the_shared_network() -> None:
    """Preprocessing and labels are those that the network was trained with: 0.8772 on the 5,000 images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(SHARED / "data/models/resnet20_cifar10.onnx", options)
    batches = open_data(SHARED / "data/cifar10/dev", CIFAR, batch_size=100)
    correct = sum(int((session.run(None, b.inputs)[0].argmax(1) == b.labels).sum()) for b in batches)
    assert correct == 4386
