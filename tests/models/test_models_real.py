"""The trained networks of ../shared fit our definitions: same names, same output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bitwright.models import example
from bitwright.models.initialise import Network
from bitwright.models.mobilenetv2 import mobilenet_v2
from bitwright.models.resnet import resnet18, resnet20

SHARED = Path(__file__).parents[2].parent / "shared"
pytestmark = pytest.mark.real_data


@pytest.mark.parametrize(
    ("file", "make", "classes", "size"),
    [
        ("resnet20_cifar10", resnet20, 10, 32),
        ("resnet18_tiny_imagenet", resnet18, 200, 64),
        ("mobilenetv2_tiny_imagenet", mobilenet_v2, 200, 64),
    ],
)
def test_a_trained_network_fits(file: str, make: Callable[..., Network], classes: int, size: int) -> None:
    path = SHARED / "data" / "models" / f"{file}.onnx"
    model = make(classes=classes)
    model.input_shape = (3, size, size)
    found = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(path).graph.initializer}
    # equal numbers are stored once in a file, the second name is an Identity of the first
    for node in onnx.load(path).graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    keys = model.state_dict().keys()
    missing = model.load_state_dict({k: v for k, v in found.items() if k in keys}, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing)
    x = example(model, batch=4)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"image": x.numpy()})
    with torch.no_grad():
        y = model(x).numpy()
    assert np.abs(y - expected).max() < 2e-4 * np.abs(expected).max()
