"""Weights alone in few bits, ranges found at run time, and widths for one use of a value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, kernels
from bitwright.errors import BitwrightError
from bitwright.execute.kernels.dynamic import DynamicGemm, dynamic_range
from bitwright.models import example
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import plan_from_json
from bitwright.plan.spec import QSpec

ASSETS = Path(__file__).parents[1] / "assets"


def digits(*texts: str, **more: Any) -> bw.Quantized:
    return bw.quantize(ASSETS / "digits.onnx", ASSETS / "digits_calib.npz", set=texts, **more)


def served_and_simulated(quantized: bw.Quantized, path: Path, images: int = 16) -> tuple[np.ndarray, np.ndarray]:
    quantized.save(path)
    x = np.load(ASSETS / "digits.npz")["image"][:images]
    served = OnnxRuntime(path).run({"image": x})["logits"]
    (simulated,) = bw.load(path).torch("integer")(torch.from_numpy(x))
    (before,) = quantized.torch("integer")(torch.from_numpy(x))
    assert torch.equal(simulated, before), "what is read back computes as what was written"
    return served, simulated.detach().numpy()


@pytest.mark.parametrize("width, share", [("4", 0.18), ("log2-4", 0.18), ("3", 0.19), ("1", 0.13)])
def test_weights_alone(width: str, share: float, tmp_path: Path) -> None:
    """The file holds b bits a weight; the session folds them, and computes in float with what they mean."""
    quantized = digits(f"W={width},A=float")
    served, simulated = served_and_simulated(quantized, tmp_path / "m.onnx")
    assert np.abs(served - simulated).max() <= 1e-4 * np.abs(served).max()
    assert set(kernels(tmp_path / "m.onnx")) == {"Conv", "Gemm", "GlobalAveragePool"}
    assert (tmp_path / "m.onnx").stat().st_size <= share * (ASSETS / "digits.onnx").stat().st_size + 2_000
    assert set(quantized.plan.modes.values()) == {"weights"} and quantized.integer_mac_share() == 0.0
    bits = {e.spec.bits for e in quantized.state.encodings.values()}
    assert bits == {int(width[-1]), 7} or bits == {int(width[-1]), 8}, "the ends keep their widths"
    assert plan_from_json(quantized.plan.to_json()) == quantized.plan
    x = torch.from_numpy(np.load(ASSETS / "digits.npz")["image"][:16])
    (exact,) = quantized.torch("float")(x)
    assert np.abs(served - exact.detach().numpy()).max() > 1e-3, "few bits do not give the float network"


def test_nothing_to_compare_code_by_code_is_said(tmp_path: Path) -> None:
    quantized = digits("W=4,A=float")
    with pytest.raises(BitwrightError, match="no quantized activation"):
        quantized.verify(ASSETS / "digits.npz", limit=8)
    assert quantized.evaluate(ASSETS / "digits.npz", limit=64).top1 is not None


def test_dynamic_ranges(tmp_path: Path) -> None:
    """The linear layer finds its range in each run; everything else keeps its codes, and is still proven."""
    quantized = digits("A=dynamic")
    served, simulated = served_and_simulated(quantized, tmp_path / "m.onnx")
    assert np.abs(served - simulated).max() <= 1e-5 * np.abs(served).max()
    assert quantized.plan.modes == {"fc": "dynamic"}
    counted = kernels(tmp_path / "m.onnx")
    assert counted["DynamicQuantizeMatMul"] == 1 and "QGemm" not in counted and "Gemm" not in counted
    found = quantized.verify(ASSETS / "digits.npz", limit=32)
    assert found.mismatches == 0 and not found.float_kernels, found


@pytest.mark.parametrize("name", ("small_vit", "small_bert"))
def test_dynamic_ranges_in_transformers(name: str, tmp_path: Path, exported: Callable[[str], Path]) -> None:
    inputs = example(name, 8)
    quantized = bw.quantize(exported(name), inputs, set=["A=dynamic"])
    quantized.save(tmp_path / "m.onnx")
    runtime = OnnxRuntime(tmp_path / "m.onnx")
    (served,) = runtime.run({runtime.inputs[0]: inputs.numpy()}).values()
    (simulated,) = quantized.torch("integer")(inputs)
    # A code of the run-time range may differ by one where the input comes from float ops: a step of one product.
    assert np.abs(served - simulated.detach().numpy()).max() <= 0.02 * np.abs(served).max()
    counted = kernels(tmp_path / "m.onnx")
    assert counted.get("DynamicQuantizeMatMul", 0) + counted.get("MatMulIntegerToFloat", 0) >= 5


def test_the_formula_of_a_dynamic_layer() -> None:
    x = torch.tensor([[-1.0, 0.25, 1.55], [0.0, 0.5, 1.0]])
    scale, zero_point = dynamic_range(x)
    assert float(scale) == pytest.approx(2.55 / 255) and int(zero_point) == 100
    assert [float(t) for t in dynamic_range(torch.zeros(2, 2))] == [1.0, 0.0]
    spec = QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0)
    weight = Encoding(spec=spec, scale=torch.tensor([0.5, 0.25]), zero_point=torch.zeros(2, dtype=torch.int32))
    codes = torch.tensor([[1, 2, 3], [-4, 5, -6]])
    layer = DynamicGemm(weight, codes, torch.tensor([1.0, -1.0]), transposed=True)
    q = torch.round(x / scale)
    expected = (q @ codes.T.float()) * (scale * weight.scale) + torch.tensor([1.0, -1.0])
    assert torch.equal(layer(x), expected)


def test_one_use_in_another_width(tmp_path: Path, exported: Callable[[str], Path]) -> None:
    """A shortcut of 8 bits and a convolution of 4 read the same value; both are served as simulated."""
    data = {"x": example("small_residual", 16, seed=3).numpy()}
    quantized = bw.quantize(exported("small_residual"), data, set=["* -> *conv1:0:A=4"])
    uses = [s for s in quantized.plan.sites if " -> " in s]
    assert uses and all(quantized.plan.qspec(s) == QSpec(bits=4) for s in uses)
    for use in uses:
        whole = quantized.plan.qspec(use.split(" -> ")[0])
        assert whole is not None and whole.bits == 8
    for batch, threads in ((1, 1), (16, 2)):
        found = quantized.verify(data, batch=batch, threads=threads)
        assert found.proven and found.mismatches == 0, found.by_tensor
    quantized.save(tmp_path / "m.onnx")
    assert bw.load(tmp_path / "m.onnx").plan == quantized.plan
    again = bw.quantize(exported("small_residual"), data, plan=quantized.plan)
    assert again.plan == quantized.plan


@pytest.mark.parametrize(
    "texts, said",
    [
        (["conv1:A=dynamic"], "matches no region|names no linear layer"),
        (["stem*:A=dynamic"], "matches no region|names no linear layer"),
        (["nobody -> fc:0:A=4"], "matches no use of a value"),
        (["* -> fc:7:A=4"], "matches no use of a value"),
        (["A=float,A=8"], "is not understood"),
        (["A=floot"], "no number of bits"),
    ],
)
def test_what_cannot_be_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(BitwrightError, match=said):
        digits(*texts)


def test_a_later_width_takes_a_mode_back() -> None:
    quantized = digits("A=dynamic", "fc:A=8")
    assert quantized.plan.modes == {} and quantized.integer_mac_share() == 1.0
