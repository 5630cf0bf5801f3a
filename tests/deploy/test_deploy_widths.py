"""Every width and format of weights: packed at its true size, read back unchanged, served exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bitwright as bw
from bitwright.deploy.graph_writer import GraphWriter
from bitwright.deploy.packing import PACKINGS, plane_widths
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, products_saturate
from bitwright.errors import BitwrightError
from bitwright.placement.widths import ASYMMETRIC_WEIGHT_BITS
from bitwright.plan.spec import QSpec
from bitwright.ptq.calibrate import weight_encoding
from bitwright.ranges.minmax import MinMax
from bitwright.targets import TARGETS

ASSETS = Path(__file__).parents[1] / "assets"
WIDTHS = (
    "W=6,A=8", "W=5,A=6", "W=4,A=8", "W=4,A=4", "W=3,A=3", "W=2,A=8", "W=1,A=8", "W=2,A=1", "W=log2-4,A=8",
    "W=log2-3,A=4", "W=ternary,A=2", "W=codebook-4", "W=codebook-3", "W=codebook-1", "W=apot-5,A=5",
    "W=pow2-4,A=pow2-8",
)  # fmt: skip
STORED = [
    (target, name, bits, packing)
    for target in ("onnxruntime-x64", "onnxruntime-x64-avx2")
    for name, widths in TARGETS[target].load().weight_packing.items()
    for bits, packing in widths.items()
]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("target", ("onnxruntime-x64-avx2", "onnxruntime-x64"))
def test_every_width_is_served_exactly(width: str, target: str, tmp_path: Path) -> None:
    """0 mismatching codes, no float kernel: what is packed is folded into int8 kernels."""
    quantized = bw.quantize(
        ASSETS / "digits.onnx",
        ASSETS / "digits_calib.npz",
        target=target,
        set=[width],
        ends=0 if "log2" in width else 8,
    )
    precise = target == "onnxruntime-x64" and products_saturate()
    for batch, threads, images in ((1, 1, 8), (16, 2, 32)):
        found = quantized.verify(ASSETS / "digits.npz", batch=batch, limit=images, threads=threads, precise=precise)
        assert found.mismatches == 0, found.by_tensor
        assert found.proven
        assert found.kernels["QLinearConv"] and "Conv" not in found.kernels
    quantized.save(tmp_path / "m.onnx")
    loaded = bw.load(tmp_path / "m.onnx")
    assert loaded.plan == quantized.plan
    for site, encoding in quantized.state.encodings.items():
        if site in quantized.state.model.graph.initializers:
            read = loaded.state.encodings[site]
            assert torch.equal(read.integers(read.codes_of(torch.empty(0))), encoding.integers(
                encoding.codes_of(quantized.state.tensor(site))
            ))  # fmt: skip


def _served(writer: GraphWriter, value: ir.Value) -> np.ndarray:
    """What a session makes of a constant expression."""
    output = writer.node("Identity", [value], {}, "integers")
    output.dtype = ir.DataType.INT8
    graph = ir.Graph(
        [], [output], nodes=writer.nodes, initializers=list(writer.constants.values()), opset_imports={"": 21},
        name="packed",
    )  # fmt: skip
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return OnnxRuntime(data).run({})["integers"]


@pytest.mark.parametrize("target, name, bits, packing", STORED)
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 1), (7, 13), (1, 1, 1, 1)])
def test_what_is_written_is_what_a_session_sees(
    target: str, name: str, bits: int, packing: str, shape: tuple[int, ...]
) -> None:
    """The file's constant expression, run by the runtime, gives the integers of the encoding; so does the reader."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    symmetric = bits > ASYMMETRIC_WEIGHT_BITS
    affine = {"signed": symmetric, "symmetric": symmetric, "narrow": symmetric} if name in ("affine", "pow2") else {}
    spec = QSpec(bits=bits, format=name, axis=0, **affine)
    encoding = weight_encoding(weight, spec, MinMax(), "weight 'w'", TARGETS[target].load().largest_level)
    codes = encoding.codes_of(weight)
    writer = GraphWriter()
    made = PACKINGS[packing].write(writer, "w", codes, encoding)
    served = _served(writer, made)
    assert served.dtype == np.int8 and served.shape == shape
    expected = encoding.integers(codes)
    assert torch.equal(torch.from_numpy(served.astype(np.int32)), expected)
    assert int(expected.abs().max()) <= max(TARGETS[target].load().largest_level, 127 if bits == 8 else 0)
    stored = {n: v.const_value.numpy() for n, v in writer.constants.items() if v.const_value is not None}
    read, zero, levels = PACKINGS[packing].read(stored, "w", spec)
    integers = read - zero.reshape(-1, *[1] * (read.ndim - 1)) if levels is None else levels[read.long()]
    assert torch.equal(integers, expected)


@pytest.mark.parametrize("bits", range(1, 8))
def test_planes_take_the_bits_of_a_code(bits: int) -> None:
    assert sum(plane_widths(bits)) == bits


@pytest.mark.parametrize("bits, largest", [(6, 0.80), (4, 0.55), (3, 0.47), (2, 0.33), (1, 0.22)])
def test_a_file_is_as_small_as_its_codes(bits: int, largest: float) -> None:
    """Stored bytes of a weight of 64 x 64 x 3 x 3, against int8; tables and scales included."""
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    symmetric = bits > ASYMMETRIC_WEIGHT_BITS
    spec = (
        QSpec(bits=1, format="binary", axis=0)
        if bits == 1
        else QSpec(bits=bits, signed=symmetric, symmetric=symmetric, narrow=symmetric, axis=0)
    )
    encoding = weight_encoding(weight, spec, MinMax(), "weight 'w'")
    writer = GraphWriter()
    packing = TARGETS["onnxruntime-x64"].load().weight_packing[spec.format][bits]
    PACKINGS[packing].write(writer, "w", encoding.codes_of(weight), encoding)
    stored = sum(v.const_value.nbytes for v in writer.constants.values() if v.const_value is not None)
    assert bits / 8 <= stored / weight.numel() <= largest


@pytest.mark.parametrize(
    "width, said",
    [
        ("W=9", "9-bit weights"), ("W=log2-9", "log2 bits"), ("W=lg2-4", "log2"), ("W=codebook-7", "codebook-7"),
        ("W=ternary-3", "ternary bits"), ("A=log2-4", "log2-4-bit activations"), ("W=log2", "log2"), ("A=9", "9-bit"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(width: str, said: str) -> None:
    with pytest.raises(BitwrightError, match=said):
        bw.quantize(ASSETS / "digits.onnx", ASSETS / "digits_calib.npz", target="onnxruntime-x64", set=[width])


def test_levels_stay_where_products_of_pairs_fit() -> None:
    """A fitted table for processors without VNNI: two products with 255 fit into int16."""
    quantized: Any = bw.quantize(
        ASSETS / "digits.onnx",
        ASSETS / "digits_calib.npz",
        target="onnxruntime-x64-avx2",
        set=["W=codebook-4"],
        ends=0,
    )
    levels = [e.levels for e in quantized.state.encodings.values() if e.levels is not None]
    assert levels and all(2 * 255 * int(t.abs().max()) < 2**15 for t in levels)
