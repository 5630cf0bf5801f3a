"""Constants, and chains that follow the batch: each op of one form, and nothing folded that should not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from bitwright.graph.known import Known
from bitwright.graph.normalise import normalise
from bitwright.graph.overlay import initializer, set_initializer, with_overlay

Node = helper.make_node
Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
Check = Callable[..., ir.Model]
#: The batch as exporters compute it.
BATCH = [Node("Shape", ["x"], ["s"]), Node("Gather", ["s", "zero"], ["n"]), Node("Unsqueeze", ["n", "zeros"], ["n1"])]
ZERO = {"zero": np.array(0), "zeros": np.array([0])}


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("sizes", "target"),
    [(["n1", "k6", "k4"], [0, 6, 4]), (["n1", "k24"], [0, 24]), (["k2", "n1", "k12"], [2, -1, 12]),
     (["n2", "k12"], [-1, 12]), (["n1", "minus", "k4"], [0, 6, 4])],
)  # fmt: skip
def test_reshapes_become_constant(
    sizes: list[str], target: list[int], make: Make, normal: Normal, normalised: Check
) -> None:
    constants: dict[str, Any] = {**ZERO, "two": np.array([2]), "minus": np.array([-1])}
    constants |= {name: np.array([int(name[1:])]) for name in sizes if name[0] == "k"}
    nodes = [*BATCH, Node("Mul", ["n1", "two"], ["n2"]), Node("Concat", sizes, ["t"], axis=0),
             Node("Reshape", ["x", "t"], ["h"]), Node("Flatten", ["h"], ["y"], axis=0)]  # fmt: skip
    model = normalised(make(nodes, {"x": ["N", 4, 6]}, {"y": [1, None]}, constants), {"x": normal(3, 4, 6)})
    assert ops(model) == ["Reshape", "Flatten"]
    constant = model.graph[0].inputs[1].const_value  # type: ignore[union-attr]
    assert constant is not None and constant.numpy().tolist() == target


def test_a_batch_in_other_places_is_written_in_one_form(make: Make, normal: Normal, normalised: Check) -> None:
    """Expand reads `[batch, 1, 4]`: one Shape, one Concat, whatever the exporter's chain was."""
    constants = {
        **ZERO,
        "one": np.array([1]),
        "four": np.array([4]),
        "token": normal(1, 1, 4),
        "minus": np.array([-1]),
    }
    chains = {
        "plain": [Node("Concat", ["n1", "one", "four"], ["t"], axis=0)],
        "where": [
            Node("Concat", ["n1", "minus", "minus"], ["t0"], axis=0), Node("Equal", ["t0", "minus"], ["e"]),
            Node("Where", ["e", "sizes", "t0"], ["t"]),
        ],
    }  # fmt: skip
    constants["sizes"] = np.array([1, 1, 4])
    seen = []
    for chain in chains.values():
        nodes = [*BATCH, *chain, Node("Expand", ["token", "t"], ["c"]), Node("Concat", ["c", "x"], ["y"], axis=1)]
        proto = make(nodes, {"x": ["N", 5, 4]}, {"y": ["N", 6, 4]}, constants)
        model = normalised(proto, {"x": normal(1, 5, 4)}, {"x": normal(3, 5, 4)})
        seen.append(ops(model))
    assert seen[0] == seen[1] == ["Shape", "Concat", "Expand", "Concat"]


def test_a_batch_as_a_number(make: Make, normal: Normal, normalised: Check) -> None:
    """An index up to the batch: the chain's end is a scalar."""
    nodes = [*BATCH, Node("Range", ["zero", "n", "step"], ["r"]), Node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
             Node("Unsqueeze", ["f", "last"], ["u"]), Node("Add", ["x", "u"], ["y"])]  # fmt: skip
    constants = {**ZERO, "step": np.array(1), "last": np.array([1])}
    model = normalised(
        make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, constants), {"x": normal(1, 4)}, {"x": normal(3, 4)}
    )
    assert ops(model) == ["Shape", "Squeeze", "Range", "Cast", "Unsqueeze", "Add"]


def test_random_numbers_are_not_folded(make: Make) -> None:
    nodes = [Node("RandomNormal", [], ["r"], shape=[4]), Node("Add", ["x", "r"], ["y"])]
    assert ops(normalise(ir.from_proto(make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]})))) == ["RandomNormal", "Add"]


def test_constants_of_weights_are_folded_under_their_name(make: Make, normal: Normal, normalised: Check) -> None:
    weight = normal(5, 4)
    nodes = [Node("Transpose", ["w"], ["wt"], perm=[1, 0]), Node("Identity", ["wt"], ["fc.weight"]),
             Node("Gemm", ["x", "fc.weight"], ["y"])]  # fmt: skip
    model = normalised(make(nodes, {"x": ["N", 4]}, {"y": ["N", 5]}, {"w": weight}), {"x": normal(2, 4)})
    assert ops(model) == ["Gemm"] and list(model.graph.initializers) == ["fc.weight"]
    assert torch.equal(initializer(model, {}, "fc.weight"), torch.from_numpy(weight.T.copy()))


def test_copies_of_a_constant_are_constants_of_their_own(make: Make, normal: Normal, normalised: Check) -> None:
    """An exporter writes equal biases once, and Identity for the others: folding may change one and not the other."""
    nodes = [
        Node("Identity", ["a.bias"], ["b.bias"]), Node("Conv", ["x", "a.weight", "a.bias"], ["h"]),
        Node("Conv", ["h", "b.weight", "b.bias"], ["y"]),
    ]  # fmt: skip
    constants = {"a.weight": normal(3, 3, 1, 1), "b.weight": normal(3, 3, 1, 1), "a.bias": normal(3)}
    model = normalised(make(nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 3, 4, 4]}, constants), {"x": normal(2, 3, 4, 4)})
    assert set(model.graph.initializers) == {"a.weight", "b.weight", "a.bias", "b.bias"}


def test_a_constant_output_stays(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("Relu", ["x"], ["y"]), Node("Neg", ["k"], ["z"])]
    proto = make(nodes, {"x": ["N", 3]}, {"y": ["N", 3], "z": [3]}, {"k": normal(3)})
    assert [v.name for v in normalised(proto, {"x": normal(2, 3)}).graph.outputs] == ["y", "z"]


def test_a_network_that_passes_its_input_on(make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("Identity", ["x"], ["h"]), Node("Dropout", ["h"], ["y"])]
    model = normalised(make(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}), {"x": normal(2, 3)})
    assert [v.name for v in model.graph.inputs] == ["x"] and [v.name for v in model.graph.outputs] == ["y"]


NO_OPS = {
    "cast": (Node("Cast", ["h"], ["z"], to=TensorProto.FLOAT), {}),
    "slice": (Node("Slice", ["h", "k0", "kmax", "k2"], ["z"]),
              {"k0": np.array([0]), "kmax": np.array([2**31]), "k2": np.array([2])}),
    "expand": (Node("Expand", ["h", "ones"], ["z"]), {"ones": np.array([1, 1, 1, 1])}),
    "concat": (Node("Concat", ["h"], ["z"], axis=1), {}),
    "sum": (Node("Sum", ["h"], ["z"]), {}),
    "reshape": (Node("Reshape", ["h", "same"], ["z"]), {"same": np.array([0, 3, 4, 4])}),
    "dropout": (Node("Dropout", ["h"], ["z", "unread"]), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_OPS)
def test_what_passes_its_input_on_goes(kind: str, make: Make, normal: Normal, normalised: Check) -> None:
    node, constants = NO_OPS[kind]
    nodes = [Node("Abs", ["x"], ["h"]), node, Node("Neg", ["z"], ["y"])]
    proto = make(nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 3, 4, 4]}, constants)
    assert ops(normalised(proto, {"x": normal(2, 3, 4, 4)})) == ["Abs", "Neg"]


def test_what_changes_its_input_stays(make: Make, normal: Normal, normalised: Check) -> None:
    constants = {"start": np.array([-1]), "end": np.array([-9]), "axis": np.array([2]), "step": np.array([-1])}
    nodes = [
        Node("Slice", ["x", *constants], ["z"]), Node("Cast", ["z"], ["i"], to=TensorProto.INT64),
        Node("Cast", ["i"], ["f"], to=TensorProto.FLOAT), Node("Concat", ["f", "z"], ["y"], axis=1),
    ]  # fmt: skip
    proto = make(nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 6, 4, 4]}, constants)
    assert ops(normalised(proto, {"x": normal(2, 3, 4, 4)})) == ["Slice", "Cast", "Cast", "Concat"]


POOLS: dict[str, tuple[dict[str, Any], str]] = {
    "whole": ({"kernel_shape": [6, 4]}, "GlobalAveragePool"),
    "valid": ({"kernel_shape": [6, 4], "auto_pad": "VALID"}, "GlobalAveragePool"),
    "part": ({"kernel_shape": [3, 4]}, "AveragePool"),
    "padded": ({"kernel_shape": [6, 4], "pads": [0, 1, 0, 1]}, "AveragePool"),
    "same": ({"kernel_shape": [6, 4], "auto_pad": "SAME_UPPER"}, "AveragePool"),
}


@pytest.mark.parametrize("kind", POOLS)
def test_pooling_of_the_whole_plane(kind: str, make: Make, normal: Normal, normalised: Check) -> None:
    settings, op = POOLS[kind]
    proto = make([Node("AveragePool", ["x"], ["y"], **settings)], {"x": ["N", 3, 6, 4]}, {"y": ["N", 3, None, None]})
    assert ops(normalised(proto, {"x": normal(2, 3, 6, 4)})) == [op]


@pytest.mark.parametrize(("axes", "keep", "expected"), [
    ([2, 3], 1, ["GlobalAveragePool"]), ([-1, -2], 0, ["GlobalAveragePool", "Reshape"]), ([1, 2], 1, ["ReduceMean"]),
    ([3], 1, ["ReduceMean"]),
])  # fmt: skip
def test_means(axes: list[int], keep: int, expected: list[str], make: Make, normal: Normal, normalised: Check) -> None:
    nodes = [Node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)]
    proto = make(nodes, {"x": ["N", 3, 6, 4]}, {"y": None}, {"axes": np.array(axes)}, check=False)
    assert ops(normalised(proto, {"x": normal(2, 3, 6, 4)})) == expected


def test_a_bias_of_zeros_is_none(make: Make, normal: Normal, normalised: Check) -> None:
    constants = {"w": normal(4, 3, 1, 1), "zeros": np.zeros(4, np.float32)}
    proto = make([Node("Conv", ["x", *constants], ["y"])], {"x": ["N", 3, 4, 4]}, {"y": ["N", 4, 4, 4]}, constants)
    model = normalised(proto, {"x": normal(2, 3, 4, 4)})
    assert len(model.graph[0].inputs) == 2 and list(model.graph.initializers) == ["w"]


def test_dimensions_that_follow_the_batch() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    known = Known(model=model)
    assert [known.dimension(row) for row in [(7, 7), (3, 5), (36, 60), (4, 6), (0, 0), (1, 2)]] == [
        7, "batch", "12*batch", None, 0, None
    ]  # fmt: skip


def test_overlays_change_values_and_nothing_else(make: Make, normal: Normal) -> None:
    constants = {"w": normal(4, 3, 1, 1), "b": normal(4)}
    model = ir.from_proto(
        make([Node("Conv", ["x", "w", "b"], ["y"])], {"x": ["N", 3, 4, 4]}, {"y": ["N", 4, 4, 4]}, constants)
    )
    new = torch.full((4, 3, 1, 1), 2.0)
    laid = with_overlay(model, {"w": new})
    assert torch.equal(initializer(laid, {}, "w"), new)
    assert torch.equal(initializer(model, {"w": new}, "w"), new)
    assert torch.equal(initializer(model, {}, "w"), torch.from_numpy(constants["w"]))
    assert laid.graph.initializers["b"].const_value is model.graph.initializers["b"].const_value
    added = set_initializer(laid, "extra", torch.arange(3))
    assert added.dtype == ir.DataType.INT64 and "extra" not in model.graph.initializers
