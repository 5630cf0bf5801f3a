"""Products with a constant matrix become Gemm, whatever the rank of what they multiply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bitwright.graph.macs import count_macs, count_parameters
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import find_regions

Node = helper.make_node
Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
#: A normalised model that ONNX Runtime finds to be the same function, to a millionth of the largest value.
Check = Callable[..., ir.Model]
TOLERANCE = 1e-6


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def target(node: ir.Node) -> list[int]:
    assert node.inputs[1] is not None and node.inputs[1].const_value is not None
    return node.inputs[1].const_value.numpy().tolist()


@pytest.mark.parametrize("order", [["h", "mlp.bias"], ["mlp.bias", "h"], None])
@pytest.mark.parametrize(
    ("shape", "back"),
    [(["N", 6, 7], [-1, 6, 5]), (["N", 2, 3, 7], [-1, 2, 3, 5]), ([4, 6, 7], [4, 6, 5]), ([1, 4, 7], [1, 4, 5])],
)
def test_more_axes(
    shape: list[Any], back: list[int], order: list[str] | None, make: Make, normal: Normal, normalised: Check
) -> None:
    constants = {"mlp.weight": normal(7, 5), "mlp.bias": normal(5)}
    nodes = [Node("MatMul", ["x", "mlp.weight"], ["h" if order else "y"], name="/mlp/MatMul")]
    nodes += [Node("Add", order, ["y"], name="/mlp/Add")] if order else []
    proto = make(nodes, {"x": shape}, {"y": [*shape[:-1], 5]}, constants)
    sizes = [3 if d == "N" else d for d in shape]
    model = normalised(proto, {"x": normal(*sizes)}, tolerance=TOLERANCE)
    assert ops(model) == ["Reshape", "Gemm", "Reshape"]
    flat, gemm, last = model.graph
    assert target(flat) == [-1, 7] and target(last) == back
    assert [r.name for r in find_regions(model)] == ["mlp.Reshape", "mlp", "mlp.Reshape#2"]
    assert [v.name for v in gemm.inputs[1:] if v] == ["mlp.weight", "mlp.bias"][: 2 if order else 1]
    assert [v.name for v in model.graph.outputs] == ["y"] and gemm.outputs[0].name == "y/rows"
    rows = int(np.prod([d for d in shape[1 if shape[0] in ("N", 4, 1) else 0 : -1]]))
    assert count_macs(model) == rows * 7 * 5 and count_parameters(model) == 35 + (5 if order else 0)


def test_several_layers_read_the_same_rows(make: Make, normal: Normal, normalised: Check) -> None:
    constants = {f"{name}.weight": normal(4, 4) for name in "qkv"}
    nodes = [Node("MatMul", ["x", f"{name}.weight"], [name]) for name in "qkv"]
    outputs: dict[str, Sequence[Any]] = {name: ["N", 6, 4] for name in "qkv"}
    model = normalised(
        make(nodes, {"x": ["N", 6, 4]}, outputs, constants), {"x": normal(2, 6, 4)}, tolerance=TOLERANCE
    )
    assert ops(model).count("Reshape") == 4 and ops(model).count("Gemm") == 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_an_activation_stays_with_its_layer(
    kind: str, bias: bool, make: Make, normal: Normal, normalised: Check
) -> None:
    constants = {"w": normal(7, 5), "b": normal(5), "low": np.array(0, np.float32), "high": np.array(1, np.float32)}
    nodes = [Node("MatMul", ["x", "w"], ["h"]), *([Node("Add", ["h", "b"], ["s"])] if bias else [])]
    bounds = ["low", "high"] if kind == "Clip" else []
    nodes.append(Node(kind, ["s" if bias else "h", *bounds], ["y"]))
    model = normalised(
        make(nodes, {"x": ["N", 6, 7]}, {"y": ["N", 6, 5]}, constants), {"x": normal(3, 6, 7)}, tolerance=TOLERANCE
    )
    assert ops(model) == ["Reshape", "Gemm", kind, "Reshape"]
    layer = find_regions(model)[1]
    assert layer.kind == "Gemm" and layer.bounds == (0, float("inf") if kind == "Relu" else 1)
    assert layer.output.name == "y/rows" and model.graph.outputs[0].name == "y"


def test_what_others_read_too_is_kept(make: Make, normal: Normal, normalised: Check) -> None:
    """The product itself, and the sum before an activation, leave the network: each has its value."""
    constants = {"w": normal(7, 5), "b": normal(5)}
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("Add", ["h", "b"], ["s"]), Node("Relu", ["s"], ["y"])]
    for outputs, expected in (
        (["h", "y"], ["Reshape", "Gemm", "Reshape", "Add", "Relu"]),
        (["s", "y"], ["Reshape", "Gemm", "Reshape", "Relu"]),
    ):
        shapes: dict[str, Sequence[Any]] = {name: ["N", 6, 5] for name in outputs}
        proto = make(nodes, {"x": ["N", 6, 7]}, shapes, constants)
        assert ops(normalised(proto, {"x": normal(3, 6, 7)}, tolerance=TOLERANCE)) == expected


def test_the_batch_may_be_another_axis(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), Node("MatMul", ["t", "w"], ["y"])]
    proto = make(nodes, {"x": ["N", 6, 7]}, {"y": [6, "N", 5]}, {"w": normal(7, 5)})
    model = normalised(proto, {"x": normal(3, 6, 7)}, tolerance=TOLERANCE)
    assert ops(model) == ["Transpose", "Reshape", "Gemm", "Reshape"] and target(list(model.graph)[-1]) == [6, -1, 5]


def test_windows_of_each_image(make: Make, normal: Normal, normalised: Check) -> None:
    """`[4 * batch, 3, 7]`: twelve rows for each image."""
    nodes = [Node("Reshape", ["x", "windows"], ["t"]), Node("MatMul", ["t", "w"], ["y"])]
    constants = {"w": normal(7, 5), "windows": np.array([-1, 3, 7])}
    proto = make(nodes, {"x": ["N", 12, 7]}, {"y": ["M", 3, 5]}, constants)
    model = normalised(proto, {"x": normal(3, 12, 7)}, tolerance=TOLERANCE)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert gemm.outputs[0].shape == ir.Shape(["12*batch", 5])
    assert count_macs(model) == 12 * 7 * 5


@pytest.mark.parametrize(
    ("nodes", "constants", "y"),
    [
        ([Node("MatMul", ["x", "x"], ["y"])], {}, ["N", 6, 6]),  # of two activations
        ([Node("MatMul", ["w", "x"], ["y"])], {"w": (5, 6)}, ["N", 5, 6]),  # the constant is on the left
        ([Node("MatMul", ["x", "w"], ["y"])], {"w": (2, 6, 5)}, [2, 6, 5]),  # a matrix for each of a batch
        ([Node("MatMul", ["x", "w"], ["y"])], {"w": (6,)}, ["N", 6]),  # a vector
    ],
)
def test_other_products_are_left(
    nodes: list[onnx.NodeProto], constants: dict[str, tuple[int, ...]], y: list[Any], make: Make, normal: Normal
) -> None:
    arrays = {name: normal(*shape) for name, shape in constants.items()}
    batch = 2 if y[0] == 2 else "N"
    model = normalise(ir.from_proto(make(nodes, {"x": [batch, 6, 6]}, {"y": y}, arrays)))
    assert ops(model) == ["MatMul"]


def test_integers_are_left(make: Make) -> None:
    nodes = [Node("MatMul", ["x", "w"], ["y"])]
    constants = {"w": np.ones((7, 5), np.int64)}
    proto = make(nodes, {"x": ["N", 6, 7]}, {"y": ["N", 6, 5]}, constants, dtype=TensorProto.INT64)
    assert ops(normalise(ir.from_proto(proto))) == ["MatMul"]


@pytest.mark.parametrize("shape", [(6, 5), (1, 1, 5), (1,)])
def test_what_is_added_to_each_token_is_no_bias(
    shape: tuple[int, ...], make: Make, normal: Normal, normalised: Check
) -> None:
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("Add", ["h", "p"], ["y"])]
    proto = make(nodes, {"x": ["N", 6, 7]}, {"y": ["N", 6, 5]}, {"w": normal(7, 5), "p": normal(*shape)})
    model = normalised(proto, {"x": normal(3, 6, 7)}, tolerance=TOLERANCE)
    assert ops(model) == ["Reshape", "Gemm", "Reshape", "Add"]


def test_a_vector_of_one_column_is_a_bias_once(make: Make, normal: Normal, normalised: Check) -> None:
    """`h + h` and a sum that reads the product twice are no bias."""
    nodes = [Node("MatMul", ["x", "w"], ["h"]), Node("Add", ["h", "h"], ["y"])]
    proto = make(nodes, {"x": ["N", 7]}, {"y": ["N", 5]}, {"w": normal(7, 5)})
    assert ops(normalised(proto, {"x": normal(3, 7)}, tolerance=TOLERANCE)) == ["Gemm", "Add"]


def test_names_where_the_file_says_nothing_of_modules(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("MatMul", ["x", "kernel:0"], ["y"], name="dense")]
    model = normalised(make(nodes, {"x": ["N", 6, 7]}, {"y": ["N", 6, 5]}, {"kernel:0": normal(7, 5)}))
    assert [r.name for r in find_regions(model)] == ["dense_rows", "dense", "dense_back"]
