"""The digits network learns, and the files made of it are what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bitwright.data.digits import digits_split
from bitwright.models import build
from bitwright.models.digits_cnn import DigitsCNN, digits_cnn, train_digits


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Training is repeatable for a given number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_has_what_quantization_meets() -> None:
    model = digits_cnn()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 7 and sum(conv.groups > 1 for conv in convs) == 1
    assert sum(isinstance(m, nn.ReLU6) for m in model.modules()) == 2
    assert sum(p.numel() for p in model.parameters()) == 32_242


def test_it_learns_in_seconds_and_ends_in_eval_mode() -> None:
    train, test = digits_split()
    model = digits_cnn()
    accuracy = train_digits(model, train, test)
    assert accuracy >= 0.97
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        predicted = model(torch.from_numpy(test[0])).argmax(1).numpy()
    assert accuracy == (predicted == test[1]).mean()


def test_training_is_repeatable() -> None:
    train, test = digits_split()

    def trained(seed: int) -> DigitsCNN:
        model = digits_cnn()
        train_digits(model, (train[0][:256], train[1][:256]), test, seed=seed, epochs=2)
        return model

    first, again, other = (list(trained(seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# The files of tests/assets.


def test_the_file_keeps_batch_norm_and_has_a_free_batch(assets: Path) -> None:
    path = assets / "digits.onnx"
    proto = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(proto, full_check=True)
    ops = [node.op_type for node in proto.graph.node]
    assert ops.count("BatchNormalization") == ops.count("Conv") == 7
    assert not any(initializer.external_data for initializer in proto.graph.initializer)
    assert path.stat().st_size < 400_000
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(path)
    assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [("image", [1, 8, 8], "tensor(float)")]
    for n in (1, 5):
        (logits,) = session.run(["logits"], {"image": np.zeros((n, 1, 8, 8), np.float32)})
        assert logits.shape == (n, 10)


def test_the_file_holds_the_trained_network(assets: Path) -> None:
    proto = onnx.load(assets / "digits.onnx")
    found = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in proto.graph.initializer}
    model = build("digits_cnn")
    missing = model.load_state_dict(found, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = np.load(assets / "digits.npz")["image"]
    (logits,) = onnxruntime.InferenceSession(assets / "digits.onnx").run(None, {"image": images})
    with torch.no_grad():
        y = model(torch.from_numpy(images)).numpy()
    assert np.abs(y - logits).max() < 1e-4 * np.abs(logits).max()


def test_the_data_are_the_digits_and_the_accuracy_is_high(assets: Path) -> None:
    train, test = digits_split()
    with np.load(assets / "digits.npz") as dev, np.load(assets / "digits_calib.npz") as calib:
        np.testing.assert_array_equal(dev["image"], test[0])
        np.testing.assert_array_equal(dev["labels"], test[1])
        rows = {image.tobytes(): label for image, label in zip(*train, strict=True)}
        assert calib["image"].shape == (256, 1, 8, 8)
        assert [rows[image.tobytes()] for image in calib["image"]] == calib["labels"].tolist()
        assert np.bincount(calib["labels"]).min() >= 15
    (logits,) = onnxruntime.InferenceSession(assets / "digits.onnx").run(None, {"image": test[0]})
    assert (logits.argmax(1) == test[1]).sum() == 357


def test_the_assets_name_no_machine(assets: Path) -> None:
    raw = (assets / "digits.onnx").read_bytes()
    assert b"site-packages" not in raw and b".py" not in raw
