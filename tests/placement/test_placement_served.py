"""Networks whose placement needs care, through to the runtime: proven, and close to the float network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import bitwright as bw
from bitwright.deploy.verify import Verification

Network = Callable[..., ir.Model]
PAD = {"pads": [1, 1, 1, 1]}
IMAGES = {"x": np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)}


def served(model: ir.Model, texts: Sequence[str] = ()) -> Verification:
    """Quantized, proven, and at least 20 dB from the float network."""
    quantized = bw.quantize(model, IMAGES, target="onnxruntime-x64-avx2", set=texts)
    found, evaluation = quantized.verify(IMAGES, threads=1), quantized.evaluate(IMAGES)
    assert found.proven, found
    assert (evaluation.sqnr_db or 0) > 20 and evaluation.agreement is None, "maps are no class scores"
    return found


def test_layers_with_one_weight_and_one_bias(network: Network) -> None:
    """Their inputs have other scales, so their biases have other codes."""
    nodes = [("Conv", f"{x} s.weight s.bias", y, PAD) for x, y in (("x", "a"), ("a", "b"), ("b", "y"))]
    found = served(network(nodes, {"s.weight": (3, 3, 3, 3), "s.bias": (3,)}))
    assert found.kernels["QLinearConv"] == 3 and found.tensors == 4


def test_a_weight_for_an_integer_and_a_float_layer(network: Network) -> None:
    nodes = [("Conv", "x s.weight s.bias", "a", PAD), ("Conv", "a s.weight s.bias", "y", PAD)]
    found = served(network(nodes, {"s.weight": (3, 3, 3, 3), "s.bias": (3,)}), ["s#2:float"])
    assert found.kernels["QLinearConv"] == 1 and found.kernels["Conv"] == 1


RESIDUAL: list[tuple[Any, ...]] = [
    ("Conv", "x a.weight", "a", PAD), ("Conv", "x b.weight", "b", PAD), ("Add", "a b", "s"),
    ("Conv", "s c.weight", "c", PAD), ("MaxPool", "c", "p", {"kernel_shape": [2, 2]}),
    ("Conv", "p d.weight", "y", PAD),
]  # fmt: skip
WEIGHTS: dict[str, Any] = {f"{n}.weight": (3, 3, 3, 3) for n in "abcd"}


@pytest.mark.parametrize(("region", "kernel", "integer"), [("s", "Add", "QLinearAdd"), ("c", "Conv", None)])
def test_what_is_kept_in_float_is_served_in_float(
    region: str, kernel: str, integer: str | None, network: Network
) -> None:
    found = served(network(RESIDUAL, WEIGHTS), [f"{region}:float"])
    assert found.kernels[kernel] == 1 and integer not in found.kernels
    assert found.kernels["QLinearConv"] == (3 if region == "c" else 4)


def test_an_activation_that_bounds_nothing(network: Network) -> None:
    """The second ReLU is no node of the file; what reads it reads the first one's codes."""
    nodes = [
        ("Conv", "x a.weight", "a", PAD), ("Relu", "a", "r"), ("GlobalAveragePool", "a", "z"), ("Relu", "r", "t"),
        ("Conv", "r b.weight", "b", PAD), ("Conv", "t c.weight", "c", PAD), ("Add", "b c", "y"),
    ]  # fmt: skip
    served(network(nodes, WEIGHTS, ["y", "z"]))
