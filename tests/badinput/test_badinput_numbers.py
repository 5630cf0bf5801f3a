"""Networks whose numbers cannot be quantized: the site is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]
Changed = Callable[[Callable[[onnx.ModelProto], None]], Path]


def with_value(name: str, value: float, all_of_it: bool = False) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        if all_of_it:
            array[...] = value
        else:
            array.flat[1] = value
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["residual.conv1.weight", "fc.weight"])
def test_weights(name: str, value: float, refused: Refused, quantize: Arguments, changed: Changed) -> None:
    refused(quantize(changed(with_value(name, value))), rf"weight '{name}'", "NaN|infinit", "expected|finite")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_biases(value: float, refused: Refused, quantize: Arguments, changed: Changed) -> None:
    refused(
        quantize(changed(with_value("fc.bias", value))), "bias 'fc.bias': NaN or infinity", "expected finite", "check"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("running_var", -1.0), ("running_var", np.nan), ("running_mean", np.nan), ("bias", np.inf)]
)
def test_batch_norms(name: str, value: float, refused: Refused, quantize: Arguments, changed: Changed) -> None:
    """Folding carries them into the layer before: its weight or bias is named."""
    edit = with_value(f"residual.bn1.{name}", value)
    refused(
        quantize(changed(edit)), r"(weight|bias) 'residual\.conv1\.(weight|bias)': NaN or infinity", "expected finite"
    )


def test_activations_that_overflow(refused: Refused, quantize: Arguments, changed: Changed) -> None:
    """Each weight is a finite number; what the second layer gives is not."""

    def edit(model: onnx.ModelProto) -> None:
        with_value("residual.conv1.weight", 1e25, all_of_it=True)(model)
        with_value("residual.conv2.weight", 1e25, all_of_it=True)(model)

    refused(quantize(changed(edit)), "site '.*': NaN or infinity among", "in images .*npz", "expected finite", "check")


def test_activations_that_overflow_in_float_alone(refused: Refused, quantize: Arguments, changed: Changed) -> None:
    """The written file would be finite, the network that it is compared with is not."""
    edit = with_value("fc.weight", 3e38, all_of_it=True)
    refused(quantize(changed(edit)), "NaN or infinity|infinite", "finite")


def test_evaluation_of_a_network_that_overflows(refused: Refused, changed: Changed, images: Path) -> None:
    path = changed(with_value("fc.weight", 3e38, all_of_it=True))
    refused(["evaluate", path, "--data", images], r"changed\.onnx: its output 'logits' has NaN or infinity; expected")
