"""Branches and bodies read values of the graph around them: nothing takes those away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from bitwright.graph.captures import captured_values, has_subgraph
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import find_regions, only_consumer

Node = helper.make_node
Serve = Callable[..., list[np.ndarray]]


@pytest.fixture
def branched(make: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """`y = x + (max(x) > 0 ? relu(abs(x)) : -k)`, with the ReLU in a branch of a branch."""
    inner = helper.make_graph(
        [Node("Relu", ["h"], ["inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    branches = {
        "then_branch": [Node("If", ["c"], ["then"], then_branch=inner, else_branch=inner)],
        "else_branch": [Node("Neg", ["k"], ["n"]), Node("Identity", ["n"], ["else"])],
    }
    graphs = {
        key: helper.make_graph(nodes, key, [], [helper.make_tensor_value_info(key[:4], TensorProto.FLOAT, None)])
        for key, nodes in branches.items()
    }
    nodes = [
        Node("Abs", ["x"], ["h"]), Node("ReduceMax", ["x"], ["m"], keepdims=0), Node("Greater", ["m", "zero"], ["c"]),
        Node("If", ["c"], ["z"], name="choice", **graphs), Node("Add", ["z", "x"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": np.array(0, np.float32), "k": np.arange(3, dtype=np.float32)}
    return make(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, constants)


def test_branches_stay_as_they_are(branched: onnx.ModelProto, serve: Serve) -> None:
    model = normalise(ir.from_proto(branched))
    onnx.checker.check_model(ir.to_proto(model))
    for x in (np.ones((2, 3), np.float32), -np.ones((2, 3), np.float32)):
        np.testing.assert_array_equal(serve(model, {"x": x})[0], serve(branched, {"x": x})[0])
    assert [node.op_type for node in model.graph] == ["Abs", "ReduceMax", "Greater", "If", "Add"]
    assert {"zero", "k"} <= set(model.graph.initializers)


def test_what_branches_read_is_what_their_region_reads(branched: onnx.ModelProto) -> None:
    model = normalise(ir.from_proto(branched))
    choice = next(node for node in model.graph if node.op_type == "If")
    assert has_subgraph(choice) and not has_subgraph(model.graph[0])
    assert sorted(v.name or "" for v in captured_values(choice)) == ["c", "h", "k"]
    region = next(r for r in find_regions(model) if r.op is choice)
    assert [v.name for v in region.inputs] == ["c", "h"]


def test_a_reader_in_a_branch_is_not_absorbed(branched: onnx.ModelProto) -> None:
    absolute = next(iter(normalise(ir.from_proto(branched)).graph))
    assert len(list(absolute.outputs[0].uses())) >= 1
    assert only_consumer(absolute.outputs[0]) is None
