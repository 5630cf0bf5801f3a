"""Ops of two operands, softmax, constants among activations, and what moves codes: no code may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright import quantize
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.verbs.quantized import Quantized, load

GENERATOR = np.random.default_rng(11)
Nodes = list[tuple[Any, ...]]
#: Two convolutions of the input ([N, 6, 11, 13] -> [N, 5, 11, 13]) whose values are what the others read.
FIRST: Nodes = [("Conv", "x w", "a"), ("Conv", "x v", "b")]
LAST: tuple[Any, ...] = ("Conv", "m u", "y")


def numbers(*shape: int) -> np.ndarray:
    return (GENERATOR.standard_normal(shape) * 0.4).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def network(
    nodes: Nodes, constants: dict[str, Any], shape: tuple[int, ...] = (6, 11, 13), batch: int | str = "batch"
) -> ir.Model:
    """Nodes are op, inputs ("-" for none), outputs and attributes."""
    every = {"w": numbers(5, 6, 1, 1), "v": numbers(5, 6, 1, 1), "u": numbers(4, 5, 1, 1), **constants}
    read = {name for _, reads, *_ in nodes for name in reads.split()}
    made = [
        helper.make_node(
            op, ["" if n == "-" else n for n in reads.split()], gives.split(), name=gives.split()[0],
            **(settings[0] if settings else {}),
        )
        for op, reads, gives, *settings in nodes
    ]  # fmt: skip
    graph = helper.make_graph(
        made, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in every.items() if name in read],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


TWO = {
    "mul": network([*FIRST, ("Mul", "a b", "m"), LAST], {}),
    "mul, one number a channel": network(
        [*FIRST, ("GlobalAveragePool", "b", "g"), ("Mul", "a g", "m"), LAST], {}
    ),
    "mul, the other way": network([*FIRST, ("GlobalAveragePool", "b", "g"), ("Mul", "g a", "m"), LAST], {}),
    "mul relu": network([*FIRST, ("Mul", "a b", "r"), ("Relu", "r", "m"), LAST], {}),
    "mul, a constant a channel": network([FIRST[0], ("Mul", "a k", "m"), LAST], {"k": numbers(5, 1, 1)}),
    "mul, a constant on the left": network([FIRST[0], ("Mul", "k a", "m"), LAST], {"k": numbers(11, 13)}),
    "add, one number a channel": network(
        [*FIRST, ("GlobalAveragePool", "b", "g"), ("Add", "a g", "m"), LAST], {}
    ),
    "add, the other way": network([*FIRST, ("GlobalAveragePool", "b", "g"), ("Add", "g a", "m"), LAST], {}),
    "add, a constant": network([FIRST[0], ("Add", "a k", "m"), LAST], {"k": numbers(1, 5, 11, 13)}),
    "add, a constant a channel on the left": network(
        [FIRST[0], ("Add", "k a", "r"), ("Relu", "r", "m"), LAST], {"k": numbers(5, 1, 1)}
    ),
    "concat with a constant": network(
        [FIRST[0], ("Concat", "a k", "m", {"axis": 2}), LAST], {"k": 3 * numbers(1, 5, 2, 13)}, batch=1
    ),
    "concat with constants around": network(
        [FIRST[0], ("Concat", "k a k", "m", {"axis": 3}), LAST], {"k": numbers(1, 5, 11, 1)}, batch=1
    ),
    "matmul": network([*FIRST, ("Transpose", "b", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "a t", "y")], {}),
    "matmul, heads of one": network(
        [*FIRST, ("Slice", "b from to axis", "t"), ("Transpose", "t", "s", {"perm": [0, 1, 3, 2]}),
         ("MatMul", "a s", "y")],
        {"from": ints(0), "to": ints(1), "axis": ints(1)},
    ),
    "matmul by itself": network(
        [FIRST[0], ("Transpose", "a", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "a t", "y")], {}
    ),
    "attention": network(
        [*FIRST, ("Transpose", "b", "t", {"perm": [0, 1, 3, 2]}), ("MatMul", "a t", "s"), ("Mul", "s k", "r"),
         ("Softmax", "r", "p", {"axis": -1}), ("MatMul", "p a", "y")],
        {"k": np.array(0.3, np.float32)},
    ),
    "softmax over channels": network([FIRST[0], ("Softmax", "a", "m", {"axis": 1}), LAST], {}),
    "softmax over columns": network([FIRST[0], ("Softmax", "a", "m", {"axis": 3}), LAST], {}),
    "softmax of one": network(
        [FIRST[0], ("GlobalAveragePool", "a", "g"), ("Softmax", "g", "m", {"axis": 2}), LAST], {}
    ),
}  # fmt: skip
MOVES = {
    "global max pool": network([FIRST[0], ("GlobalMaxPool", "a", "m"), LAST], {}),
    "gather": network([FIRST[0], ("Gather", "a i", "m", {"axis": 2}), LAST], {"i": ints(4, 0, -1, 4)}),
    "gather a token": network(
        [FIRST[0], ("Gather", "a i", "g", {"axis": 1}), ("Transpose", "g", "t", {"perm": [0, 2, 1]}),
         ("MatMul", "g t", "y")],
        {"i": np.array(-1, np.int64)},
    ),
    "expand": network(
        [FIRST[0], ("GlobalAveragePool", "a", "g"), ("Expand", "g s", "m"), LAST], {"s": ints(1, 5, 3, 2)}
    ),
    "tile": network([FIRST[0], ("Tile", "a s", "m"), LAST], {"s": ints(1, 1, 2, 3)}),
    "depth to space": network(
        [("Conv", "x big", "a"), ("DepthToSpace", "a", "m", {"blocksize": 2}), LAST], {"big": numbers(20, 6, 1, 1)}
    ),
    "depth to space, columns first": network(
        [("Conv", "x big", "a"), ("DepthToSpace", "a", "m", {"blocksize": 2, "mode": "CRD"}), LAST],
        {"big": numbers(20, 6, 1, 1)},
    ),
    "space to depth": network(
        [FIRST[0], ("Slice", "a from to axis", "s"), ("SpaceToDepth", "s", "m", {"blocksize": 2}), LAST],
        {"from": ints(0, 0), "to": ints(10, 12), "axis": ints(2, 3), "u": numbers(4, 20, 1, 1)},
    ),
}  # fmt: skip
for coordinates, rounding, scale in (
    ("asymmetric", "floor", 2.0), ("half_pixel", "round_prefer_floor", 2.0), ("half_pixel", "round_prefer_ceil", 1.7),
    ("align_corners", "ceil", 2.3), ("pytorch_half_pixel", "floor", 0.6),
):  # fmt: skip
    MOVES[f"resize, {coordinates}, {rounding}, {scale}"] = network(
        [FIRST[0], ("Resize", "a - s", "m", {"coordinate_transformation_mode": coordinates,
                                             "nearest_mode": rounding, "mode": "nearest"}), LAST],
        {"s": np.array([1, 1, scale, scale], np.float32)},
    )  # fmt: skip


def prove(model: ir.Model, settings: tuple[str, ...] = ()) -> Quantized:
    """Quantize for both targets and verify with one image and with sixteen; nothing but codes between kernels."""
    dims = list(model.graph.inputs[0].shape or ())
    batch, shape = dims[0], [d for d in dims[1:] if isinstance(d, int)]
    # Values far apart in scale, so that both saturation and rounding happen.
    data = {"x": (GENERATOR.standard_normal((16, *shape)) * 1.7 + 0.3).astype(np.float32)}
    served = {"x": data["x"] * 1.2}
    for target in ("onnxruntime-x64-avx2", "onnxruntime-x64"):
        quantized = quantize(model, data, target=target, set=settings, ends=0)
        assert quantized.plan.refused == {} and quantized.plan.float_sites() == {}
        precise = target == "onnxruntime-x64" and products_saturate()
        for images, threads in ((1, 1), (1 if batch == 1 else 16, 2)):
            found = quantized.verify(served, batch=images, threads=threads, precise=precise)
            assert found.mismatches == 0, found.by_tensor
            assert found.float_kernels == {} and found.unplanned_kernels == {}
            assert found.codes > 0
    return quantized


@pytest.mark.parametrize("name", [*TWO, *MOVES])
def test_formula_equals_the_kernel(name: str) -> None:
    prove((TWO | MOVES)[name])


@pytest.mark.parametrize(
    "name", ["mul, one number a channel", "add, a constant", "attention", "concat with a constant"]
)
def test_formula_equals_the_kernel_in_five_bits(name: str) -> None:
    prove(TWO[name], ("A=5",))


def test_products_of_extreme_codes_do_not_saturate() -> None:
    """uint8 by uint8 has no products that are added in pairs: 2049 products of 255 and 255 are exact everywhere."""
    wide = network(
        [("Relu", "x", "a"), ("Transpose", "a", "t", {"perm": [0, 2, 1]}), ("MatMul", "a t", "y")], {}, (3, 2049)
    )
    data = {"x": np.full((4, 3, 2049), 1.0, np.float32)}
    data["x"][:, 0] = 0
    quantized = quantize(wide, data, ends=0)
    assert float(quantized.state.encoding("a").zero_point) == 0
    found = quantized.verify(data)
    assert found.proven and found.float_kernels == {}


def test_constants_have_sites_of_their_own_and_come_back(tmp_path: Path) -> None:
    """A constant operand is uint8 in the file; what is read back is what its codes stand for."""
    quantized = prove(TWO["add, a constant"])
    assert quantized.plan.regions["m"] == ("k", "m")
    quantized.save(tmp_path / "m.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert stored["k/codes"].dtype == np.uint8 and "k" not in stored
    read = load(tmp_path / "m.onnx").state
    encoding = quantized.state.encoding("k")
    expected = encoding.dequantize(encoding.quantize(quantized.state.tensor("k")))
    assert read.tensor("k").equal(expected)


def test_a_constant_in_a_concat_shares_the_range_of_its_group() -> None:
    state = prove(TWO["concat with a constant"]).state
    encoding, k = state.encoding("k"), state.tensor("k")
    assert state.plan is not None and state.plan.resolve("k") == state.plan.resolve("a")
    assert float((encoding.dequantize(encoding.quantize(k)) - k).abs().max()) <= float(encoding.scale) * 0.5001
