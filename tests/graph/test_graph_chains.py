"""Functions of one value: which chains of elementwise ops are one region, and which are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bitwright.graph.chains import elementwise_chain, is_elementwise
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import Region, find_regions

Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
Serve = Callable[..., list[np.ndarray]]
X = {"x": ["N", 4, 6]}
Y = {"y": ["N", 4, 6]}
CONSTANTS = {
    name: np.array(number, np.float32)
    for name, number in {
        "zero": 0, "half": 0.5, "one": 1, "two": 2, "three": 3, "six": 6, "root2": 2**0.5,
        "cubic": 0.044715, "inner": 0.797885,
    }.items()
}  # fmt: skip


def nodes(text: str) -> list[onnx.NodeProto]:
    """`"h = Add x three; y = Relu h"`, each node called after its output."""
    made = []
    for line in text.split(";"):
        output, _, call = line.partition("=")
        op, *inputs = call.split()
        made.append(
            helper.make_node(op, ["" if i == "-" else i for i in inputs], [output.strip()], name=output.strip())
        )
    return made


def found(make: Make, text: str, constants: dict[str, np.ndarray] | None = None, outputs: Any = None) -> list[Region]:
    graph = make(nodes(text), X, outputs or Y, {**CONSTANTS, **(constants or {})})
    model = normalise(ir.from_proto(graph))
    regions = find_regions(model)
    check_order(model, regions)
    return regions


def check_order(model: ir.Model, regions: Sequence[Region]) -> None:
    """Executed as units in this order, every region finds what it reads."""
    known = {*model.graph.inputs}
    executed: list[ir.Node] = []
    for region in regions:
        assert set(region.inputs) <= known, region.name
        known.add(region.output)
        known.update(v for v in region.op.outputs if not region.is_table)
        executed.extend(region.nodes)
    assert len(executed) == len(set(executed)) and set(executed) == set(model.graph)
    assert set(model.graph.outputs) <= known


FUNCTIONS = {
    "hard swish": "h = Add x three; c = Clip h zero six; m = Mul x c; y = Div m six",
    "hard swish, factor first": "h = Add x three; c = Clip h zero six; d = Div c six; y = Mul d x",
    "hard sigmoid": "h = Add x three; c = Clip h zero six; y = Div c six",
    "silu": "s = Sigmoid x; y = Mul x s",
    "gelu": "d = Div x root2; e = Erf d; p = Add e one; m = Mul x p; y = Mul m half",
    "gelu, factor first": "g = Mul x half; d = Div x root2; e = Erf d; p = Add e one; y = Mul g p",
    "gelu by tanh": "c = Pow x three; k = Mul c cubic; s = Add x k; t = Mul inner s; u = Tanh t; p = Add one u; "
    "m = Mul x p; y = Mul m half",
    "mish": "s = Softplus x; t = Tanh s; y = Mul x t",
    "quick gelu": "k = Mul x root2; s = Sigmoid k; y = Mul s x",
    "square": "y = Mul x x",
    "scaled": "y = Mul x half",
    "shifted": "y = Add one x",
    "relu, then more": "r = Relu x; y = Sqrt r",
    "largest": "m = Max x zero half; y = Min m six",
    "one op": "y = Tanh x",
    "slope": "y = PRelu x half",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_value_is_one_region(name: str, make: Make) -> None:
    (region,) = found(make, FUNCTIONS[name])
    assert region.kind == "Table" and region.bounds is None and region.weight is None and region.bias is None
    assert [v.name for v in region.inputs] == ["x"] and region.output.name == "y" and region.macs == 0
    assert [n.name for n in region.nodes] == [n.name for n in nodes(FUNCTIONS[name])]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_region_of_this_kind_is_a_table(name: str, make: Make, serve: Serve) -> None:
    """What the runtime gives for a tensor is what it gives for each distinct number of it, looked up."""
    graph = make(nodes(FUNCTIONS[name]), X, Y, CONSTANTS)
    codes = np.random.default_rng(5).integers(0, 256, (3, 4, 6))
    levels = np.zeros((11, 4, 6), np.float32)
    levels.reshape(-1)[:256] = (np.arange(256, dtype=np.float32) - 64) * np.float32(0.031)
    expected = serve(graph, {"x": levels.reshape(-1)[codes]})[0]
    table = serve(graph, {"x": levels})[0].reshape(-1)[:256]
    np.testing.assert_allclose(expected, table[codes], rtol=2e-6, atol=2e-7)  # the last bit depends on the position


@pytest.mark.parametrize(("text", "kind"), [("y = Relu x", "Relu"), ("y = Clip x zero six", "Clip")])
def test_what_only_bounds_is_no_table(text: str, kind: str, make: Make) -> None:
    (region,) = found(make, text)
    assert region.kind == kind and region.bounds is not None and not region.is_table


def test_bounds_and_sums_stay_in_their_parts(make: Make) -> None:
    assert [r.kind for r in found(make, "y = Add x x")] == ["Add"]
    assert [r.kind for r in found(make, "r = Relu x; y = Add x r")] == ["Relu", "Add"]
    assert [r.kind for r in found(make, "r = Relu x; s = Add x r; y = Exp s")] == ["Table"]
    assert [r.kind for r in found(make, "r = Relu x; y = Clip r - six")] == ["Relu", "Clip"]


def test_a_layer_takes_its_activation_first(make: Make, normal: Normal) -> None:
    text = "g = Gemm f w; r = Relu g; s = Sigmoid r; y = Mul r s"
    graph = make(nodes(text), {"f": ["N", 4]}, {"y": ["N", 5]}, {"w": normal(4, 5)})
    layer, table = find_regions(normalise(ir.from_proto(graph)))
    assert [n.op_type for n in layer.nodes] == ["Gemm", "Relu"] and layer.bounds == (0, float("inf"))
    assert [n.op_type for n in table.nodes] == ["Sigmoid", "Mul"] and [v.name for v in table.inputs] == ["r"]


def test_a_value_that_others_read_ends_the_chain(make: Make) -> None:
    regions = found(make, "s = Sigmoid x; p = Mul x s; q = Exp p; r = Softmax p; y = Add q r")
    assert [(r.kind, len(r.nodes)) for r in regions] == [("Table", 2), ("Table", 1), ("Softmax", 1), ("Add", 1)]


def test_an_output_of_the_network_ends_the_chain(make: Make) -> None:
    regions = found(make, "s = Sigmoid x; h = Mul x s; y = Exp h", outputs={**Y, "h": ["N", 4, 6]})
    assert [[n.name for n in r.nodes] for r in regions] == [["s", "h"], ["y"]]
    regions = found(make, "s = Sigmoid x; y = Mul x s", outputs={**Y, "s": ["N", 4, 6]})
    assert [r.kind for r in regions] == ["Table", "Mul"]


def test_two_ends_are_cut_before_them(make: Make) -> None:
    """The largest part with one value that leaves it: what both ends are computed from."""
    regions = found(make, "t = Tanh x; e = Exp t; a = Abs e; b = Neg e; c = Softmax a; y = Add b c")
    assert [[n.name for n in r.nodes] for r in regions] == [["t", "e"], ["a"], ["b"], ["c"], ["y"]]


def test_two_functions_of_one_value_are_two_regions(make: Make) -> None:
    regions = found(make, "a = Tanh x; s = Sigmoid x; b = Mul x s; c = Softmax a; y = Add b c")
    assert [[n.name for n in r.nodes] for r in regions] == [["a"], ["s", "b"], ["c"], ["y"]]


def test_parts_that_meet_are_one_function(make: Make) -> None:
    (region,) = found(make, "a = Tanh x; s = Sigmoid x; y = Mul a s")
    assert [n.name for n in region.nodes] == ["a", "s", "y"]


def test_nodes_of_others_may_stand_between(make: Make) -> None:
    regions = found(make, "s = Sigmoid x; m = Softmax x; h = Mul x s; y = Add m h")
    assert [[n.name for n in r.nodes] for r in regions] == [["s", "h"], ["m"], ["y"]]


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("y = Mul x k", {"k": np.ones((4, 1), np.float32)}),  # a factor for each row
        ("y = Mul x k", {"k": np.ones((1, 1, 1, 1), np.float32)}),  # gives the result a fourth axis
        ("y = PRelu x k", {"k": np.ones((6,), np.float32)}),
    ],
)
def test_other_constants_make_no_table(text: str, constants: dict[str, np.ndarray], make: Make) -> None:
    axes = max(3, constants["k"].ndim)
    (region,) = found(make, text, constants, {"y": [1, "N", 4, 6][-axes:]})
    assert not region.is_table


def test_computed_operands_make_no_table(make: Make) -> None:
    regions = found(make, "m = ReduceMax x; d = Div x m; y = Exp d")
    assert [r.kind for r in regions] == ["ReduceMax", "Div", "Table"]
    regions = found(make, "m = Softmax x; s = Sigmoid m; h = Neg x; y = Mul s h")
    assert [r.kind for r in regions] == ["Softmax", "Table", "Table", "Mul"]


def test_integers_make_no_table(make: Make) -> None:
    graph = make(nodes("h = Mul x k; y = Abs h"), X, Y, {"k": np.array(2)}, dtype=TensorProto.INT64)
    assert [r.kind for r in find_regions(normalise(ir.from_proto(graph)))] == ["Mul", "Abs"]


def test_the_runtimes_own_ops(make: Make) -> None:
    made = nodes("h = Mul x half; y = FastGelu h")
    made[1].domain = "com.microsoft"
    proto = make(made, X, Y, CONSTANTS, opsets={"com.microsoft": 1})
    (region,) = find_regions(normalise(ir.from_proto(proto)))
    assert region.kind == "Table" and len(region.nodes) == 2
    made[1].input.append("bias")
    proto = make(made, X, Y, {**CONSTANTS, "bias": np.ones(6, np.float32)}, opsets={"com.microsoft": 1})
    assert [r.kind for r in find_regions(normalise(ir.from_proto(proto)))] == ["Table", "com.microsoft.FastGelu"]


def test_a_shape_that_is_not_known_makes_no_table() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "Tanh", [x])
    node.outputs[0].type = x.type
    assert not is_elementwise(node) and elementwise_chain(node, {node: 0}) == []


def test_a_table_is_named_after_its_module(make: Make) -> None:
    made = nodes("s = Sigmoid x; h = Mul x s; d = Div h two; e = Erf d; y = Mul h e")
    for node, name in zip(made, ["/Sigmoid", "/Mul", "/act/Div", "/act/Erf", "/act/Mul"], strict=True):
        node.name = name
    regions = find_regions(normalise(ir.from_proto(make(made, X, Y, CONSTANTS))))
    assert [r.name for r in regions] == ["Sigmoid"] and len(regions[0].nodes) == 5
    made[1].output[0] = made[2].input[0] = made[4].input[0] = "out"  # read outside: two tables
    outputs = {**Y, "out": ["N", 4, 6]}
    regions = find_regions(normalise(ir.from_proto(make(made, X, outputs, CONSTANTS))))
    assert [r.name for r in regions] == ["Sigmoid", "act"]


def test_long_chains_take_no_more_than_their_length(make: Make) -> None:
    text = "h0 = Tanh x;" + ";".join(f"h{i + 1} = Mul h{i} half" for i in range(2000)) + "; y = Exp h2000"
    (region,) = found(make, text)
    assert len(region.nodes) == 2002
