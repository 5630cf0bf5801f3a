"""Gates, shuffles, transposed convolutions and attention: whole networks in integers, every code proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.models import build, example
from bitwright.verbs.quantized import Quantized

TARGETS = ("onnxruntime-x64-avx2", "onnxruntime-x64")
CNNS = (
    "small_squeeze_excite", "small_shuffle", "small_unet", "small_conv_transpose", "small_dense", "small_inception",
)  # fmt: skip
#: Integer kernels of attention: the two products, what stands between them, and the residual sums.
ATTENTION = {"QLinearMatMul": 2, "QLinearSoftmax": 1}


Made = Callable[[str, str], tuple[Quantized, dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def quantized(exported: Callable[[str], Path]) -> Made:
    def made(name: str, target: str) -> tuple[Quantized, dict[str, np.ndarray]]:
        images = example(name, batch=16, seed=3).numpy()
        data = {"x" if build(name).vocabulary is None else "tokens": images}
        return bw.quantize(exported(name), data, target=target), data

    return made


def prove(made: Quantized, data: dict[str, np.ndarray], target: str) -> dict[str, int]:
    precise = target == "onnxruntime-x64" and products_saturate()
    for batch, threads in ((1, 1), (16, 2)):
        found = made.verify(data, batch=batch, threads=threads, precise=precise)
        assert found.mismatches == 0, found.by_tensor
        assert found.proven
    return dict(found.kernels)


@pytest.mark.parametrize("name", CNNS)
@pytest.mark.parametrize("target", TARGETS)
def test_convolutional_network(name: str, target: str, quantized: Made) -> None:
    made, data = quantized(name, target)
    assert made.integer_mac_share() == 1.0
    assert made.plan.refused == {} and made.plan.float_sites() == {}
    prove(made, data, target)


@pytest.mark.parametrize("target", TARGETS)
def test_vision_transformer(target: str, quantized: Made) -> None:
    """Layer norms stay float, and the class token's repetition for the batch, which is no arithmetic."""
    made, data = quantized("small_vit", target)
    assert made.integer_mac_share() == 1.0
    assert {reason.split(" ")[0].rstrip(":") for reason in made.plan.refused.values()} == {
        "Shape", "Concat", "Expand", "LayerNormalization",
    }  # fmt: skip
    kernels = prove(made, data, target)
    assert kernels.items() >= (ATTENTION | {"QLinearConv": 1, "QGemm": 7, "QLinearAdd": 3}).items()


@pytest.mark.parametrize("target", TARGETS)
def test_bert(target: str, quantized: Made) -> None:
    """Layer norms stay float, and what stands before the first: the look-up of words and the sum with positions."""
    made, data = quantized("small_bert", target)
    assert made.integer_mac_share() == 1.0
    assert sorted(reason.split(" ")[0].rstrip(":") for reason in made.plan.refused.values()) == [
        "Add", "Gather", *["LayerNormalization"] * 3,
    ]  # fmt: skip
    kernels = prove(made, data, target)
    assert kernels.items() >= (ATTENTION | {"QGemm": 8, "QLinearAdd": 2}).items()
