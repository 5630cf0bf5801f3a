"""Regions: what a runtime executes as one, under one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from bitwright.graph.macs import count_macs, count_parameters, node_macs
from bitwright.graph.names import SCOPES, fresh_name, module_path, weight_path
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import Region, activation_bounds, find_regions, only_consumer, region_names

Node = helper.make_node
Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
X = {"x": ["N", 4, 6, 6]}
INF = float("inf")


@pytest.fixture
def regions(make: Make) -> Callable[..., dict[str, Region]]:
    """`regions(nodes, inputs, outputs, constants)`: by name."""

    def find(*arguments: Any, **settings: Any) -> dict[str, Region]:
        model = normalise(ir.from_proto(make(*arguments, **settings)))
        found = find_regions(model)
        assert [node for region in found for node in region.nodes] == sorted(
            model.graph, key=[n for region in found for n in region.nodes].index
        )
        assert len({region.name for region in found}) == len(found)
        return {region.name: region for region in found}

    return find


Find = Callable[..., dict[str, Region]]


def batchnorm(normal: Normal, channels: int, path: str) -> tuple[list[str], dict[str, np.ndarray]]:
    names = [f"{path}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    return names, dict(zip(names, [normal(channels) for _ in range(3)] + [normal(channels) ** 2 + 0.1], strict=True))


def test_convolution_batch_norm_relu(regions: Find, normal: Normal) -> None:
    names, constants = batchnorm(normal, 5, "bn1")
    constants |= {"conv1.weight": normal(5, 4, 3, 3), "conv1.bias": normal(5)}
    nodes = [
        Node("Conv", ["x", "conv1.weight", "conv1.bias"], ["c"]), Node("BatchNormalization", ["c", *names], ["n"]),
        Node("Relu", ["n"], ["y"]),
    ]  # fmt: skip
    (region,) = regions(nodes, X, {"y": ["N", 5, 4, 4]}, constants).values()
    assert region.name == "conv1" and region.kind == "Conv" and region.bounds == (0, INF)
    assert [n.op_type for n in region.nodes] == ["Conv", "BatchNormalization", "Relu"]
    assert [v.name for v in region.inputs] == ["x"] and region.output.name == "y"
    assert region.weight is not None and region.weight.name == "conv1.weight"
    assert region.bias is not None and region.bias.name == "conv1.bias"
    assert region.macs == 5 * 4 * 9 * 16


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 1.0), (None, 2.0), (0.5, None)])
def test_relu6_is_a_clip(bounds: tuple[float | None, float | None], regions: Find, normal: Normal) -> None:
    given = {name: np.array(b, np.float32) for name, b in zip(("lo", "hi"), bounds, strict=True) if b is not None}
    inputs = [name if name in given else "" for name in ("lo", "hi")]
    constants = {"conv.weight": normal(4, 4, 1, 1), **given}
    nodes = [Node("Conv", ["x", "conv.weight"], ["c"]), Node("Clip", ["c", *inputs], ["y"])]
    (region,) = regions(nodes, X, {"y": ["N", 4, 6, 6]}, constants).values()
    low, high = bounds
    assert region.bounds == (-INF if low is None else low, INF if high is None else high)


def test_a_clip_with_computed_bounds_is_its_own_region(regions: Find, normal: Normal) -> None:
    nodes = [
        Node("Conv", ["x", "conv.weight"], ["c"]), Node("ReduceMax", ["x"], ["m"], keepdims=0),
        Node("Clip", ["c", "", "m"], ["y"], name="clip"),
    ]  # fmt: skip
    found = regions(nodes, X, {"y": ["N", 4, 6, 6]}, {"conv.weight": normal(4, 4, 1, 1)})
    assert found["conv"].bounds is None and len(found["conv"].nodes) == 1
    assert activation_bounds(found["clip"].op) is None


def test_residual_addition_absorbs_relu(regions: Find, normal: Normal) -> None:
    nodes = [
        Node("Conv", ["x", "block.conv.weight"], ["c"], name="/block/conv/Conv"),
        Node("Add", ["c", "x"], ["s"], name="/block/Add"), Node("Relu", ["s"], ["y"], name="/block/relu/Relu"),
    ]  # fmt: skip
    found = regions(nodes, X, {"y": ["N", 4, 6, 6]}, {"block.conv.weight": normal(4, 4, 1, 1)})
    assert list(found) == ["block.conv", "block.Add"]
    addition = found["block.Add"]
    assert [n.op_type for n in addition.nodes] == ["Add", "Relu"] and addition.bounds == (0, INF)
    assert {v.name for v in addition.inputs} == {"c", "x"} and addition.macs == 0 and addition.weight is None


def test_what_others_read_too_is_not_absorbed(regions: Find, normal: Normal) -> None:
    names, constants = batchnorm(normal, 4, "bn")
    constants["conv.weight"] = normal(4, 4, 1, 1)
    nodes = [
        Node("Conv", ["x", "conv.weight"], ["c"]), Node("BatchNormalization", ["c", *names], ["n"], name="bn"),
        Node("Relu", ["n"], ["r"], name="relu"), Node("Add", ["r", "c"], ["y"], name="sum"),
    ]  # fmt: skip
    found = regions(nodes, X, {"y": ["N", 4, 6, 6]}, constants)
    assert {name: len(region.nodes) for name, region in found.items()} == {"conv": 1, "bn": 2, "sum": 1}


def test_an_output_of_the_network_is_not_absorbed(regions: Find, normal: Normal) -> None:
    nodes = [Node("Conv", ["x", "conv.weight"], ["c"]), Node("Relu", ["c"], ["y"], name="relu")]
    outputs = {"y": ["N", 4, 6, 6], "c": ["N", 4, 6, 6]}
    assert list(regions(nodes, X, outputs, {"conv.weight": normal(4, 4, 1, 1)})) == ["conv", "relu"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int, regions: Find, normal: Normal) -> None:
    constants = {"fc.weight": normal(5, 7) if transposed else normal(7, 5), "fc.bias": normal(5)}
    nodes = [Node("Gemm", ["x", *constants], ["y"], transB=transposed)]
    (region,) = regions(nodes, {"x": ["N", 7]}, {"y": ["N", 5]}, constants).values()
    assert (region.name, region.kind, region.macs) == ("fc", "Gemm", 35)
    assert region.bias is not None and region.bias.name == "fc.bias"


@pytest.mark.parametrize(
    ("weight", "group", "kind", "macs"),
    [((8, 1, 3, 3), 4, "DepthwiseConv", 8 * 9 * 16), ((6, 2, 3, 3), 2, "Conv", 6 * 2 * 9 * 16)],
)
def test_groups(weight: tuple[int, ...], group: int, kind: str, macs: int, regions: Find, normal: Normal) -> None:
    nodes = [Node("Conv", ["x", "w.weight"], ["y"], group=group)]
    (region,) = regions(nodes, X, {"y": ["N", weight[0], 4, 4]}, {"w.weight": normal(*weight)}).values()
    assert (region.kind, region.macs) == (kind, macs)


def test_macs_of_transposed_convolutions_count_the_input(regions: Find, normal: Normal) -> None:
    nodes = [Node("ConvTranspose", ["x", "up.weight"], ["y"], strides=[2, 2], group=2)]
    (region,) = regions(nodes, X, {"y": ["N", 6, 12, 12]}, {"up.weight": normal(4, 3, 2, 2)}).values()
    assert region.macs == 4 * 3 * 4 * 36


def test_a_matrix_product_and_its_bias_are_a_gemm(make: Make, normal: Normal, normalised: Any) -> None:
    constants = {"dense.kernel": normal(7, 5), "dense.bias": normal(5)}
    for order in (["h", "dense.bias"], ["dense.bias", "h"]):
        nodes = [Node("MatMul", ["x", "dense.kernel"], ["h"], name="dense/MatMul"), Node("Add", order, ["y"])]
        model = normalised(make(nodes, {"x": ["N", 7]}, {"y": ["N", 5]}, constants), {"x": normal(3, 7)})
        (region,) = find_regions(model)
        assert (region.kind, region.name, region.macs) == ("Gemm", "dense", 35)
        assert region.bias is not None and region.output.name == "y"


def test_products_with_more_axes_count_all_rows(make: Make, normal: Normal) -> None:
    """Tokens and windows: `[N * 6, 4] x [4, 5]` are six products for each image."""
    constants = {"head.weight": normal(4, 5), "rows": np.array([-1, 4]), "images": np.array([-1, 6, 5])}
    nodes = [
        Node("Reshape", ["x", "rows"], ["r"]), Node("Gemm", ["r", "head.weight"], ["g"]),
        Node("Reshape", ["g", "images"], ["y"]),
    ]  # fmt: skip
    for batch in ("N", 3):
        model = normalise(ir.from_proto(make(nodes, {"x": [batch, 6, 4]}, {"y": [batch, 6, 5]}, constants)))
        assert count_macs(model) == 6 * 4 * 5
        plain = make([Node("MatMul", ["x", "head.weight"], ["y"])], {"x": [batch, 6, 4]}, {"y": [batch, 6, 5]},
                     {"head.weight": normal(4, 5)})  # fmt: skip
        assert count_macs(normalise(ir.from_proto(plain))) == 6 * 4 * 5


def test_products_of_activations_are_counted(make: Make) -> None:
    nodes = [Node("MatMul", ["a", "b"], ["y"])]
    proto = make(nodes, {"a": ["N", 2, 3, 4], "b": ["N", 2, 4, 5]}, {"y": ["N", 2, 3, 5]})
    model = normalise(ir.from_proto(proto))
    assert count_macs(model) == 2 * 3 * 4 * 5 and count_parameters(model) == 0
    assert node_macs(ir.Node("", "Relu", [None])) == 0


def test_parameters_are_what_training_changes(make: Make, normal: Normal) -> None:
    names, constants = batchnorm(normal, 4, "bn")
    constants |= {"conv.weight": normal(4, 4, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)}
    constants |= {"half": np.array(0.5, np.float32), "unread": normal(1000)}
    nodes = [
        Node("Conv", ["x", "conv.weight"], ["c"]), Node("BatchNormalization", ["c", *names], ["n"]),
        Node("Resize", ["n", "", "scales"], ["r"], mode="nearest"), Node("Mul", ["r", "half"], ["y"]),
    ]  # fmt: skip
    model = normalise(ir.from_proto(make(nodes, X, {"y": ["N", 4, 8, 8]}, constants)))
    assert count_parameters(model) == 4 * 4 * 9 + 2 * 4


def test_a_shared_weight_gives_two_regions(regions: Find, normal: Normal) -> None:
    nodes = [
        Node("Conv", ["x", "head.weight"], ["a"], name="/head/Conv"),
        Node("Conv", ["a", "head.weight"], ["y"], name="/head_1/Conv"),
    ]
    found = regions(nodes, X, {"y": ["N", 4, 6, 6]}, {"head.weight": normal(4, 4, 1, 1)})
    assert list(found) == ["head", "head#2"]


def named(op: str, name: str = "", scopes: str = "") -> ir.Node:
    return ir.Node("", op, [], name=name or None, metadata_props={SCOPES: scopes} if scopes else {})


def test_names_of_modules_and_of_what_they_call() -> None:
    traced = [
        named("Conv", "/stem/stem.0/Conv"), named("MaxPool", "/pool/MaxPool"), named("Add", "/block/Add"),
        named("Add", "/block/Add_1"), named("Conv", "/block/conv/Conv"), named("Reshape", "/Reshape"),
        named("Div", "/act/Div"), named("Erf", "/act/Erf"),
    ]  # fmt: skip
    exported = [
        named("Conv", "n1", "['', 'stem', 'stem.0', 'conv2d']"), named("MaxPool", "n2", "['', 'pool', 'max_pool2d']"),
        named("Add", "n3", "['', 'block', 'add']"), named("Add", "n4", "['', 'block', 'add_1']"),
        named("Conv", "n5", "['', 'block', 'block.conv', 'conv2d_1']"), named("Reshape", "n6", "['', 'view']"),
        named("Div", "n7", "['', 'act', 'div']"), named("Erf", "n8", "['', 'act', 'erf']"),
    ]  # fmt: skip
    expected = ["stem.0", "pool", "block.Add", "block.Add#2", "block.conv", "Reshape", "act.Div", "act.Erf"]
    assert region_names(traced) == region_names(exported) == expected


def test_names_where_the_file_says_nothing_of_modules() -> None:
    output = ir.Value(name="pool1_1")
    nodes = [named("Conv", "resnetv17_conv0_fwd"), named("Conv", "resnetv17_conv0_fwd")]
    nodes.append(ir.Node("", "MaxPool", [], outputs=[output]))
    assert region_names(nodes) == ["resnetv17_conv0_fwd", "resnetv17_conv0_fwd#2", "MaxPool:pool1_1"]
    assert module_path(named("Add", scopes="not a list")) is None
    assert module_path(named("Shape", scopes="['_empty_nn_module_stack_from_metadata_hook', 'sym_size']")) == ""


@pytest.mark.parametrize(
    ("weight", "path"),
    [("features.0.0.weight", "features.0.0"), ("weight", ""), ("onnx::MatMul_12", ""), ("a/b.c/kernel:0", "")],
)
def test_the_module_of_a_weight(weight: str, path: str) -> None:
    assert weight_path(weight) == path


def test_fresh_names(make: Make, normal: Normal) -> None:
    nodes = [Node("Relu", ["x"], ["r"]), Node("Add", ["r", "r_1"], ["y"])]
    model = ir.from_proto(make(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, {"r_1": normal(3)}))
    assert [fresh_name(model, wish) for wish in ("z", "x", "y", "r")] == ["z", "x_1", "y_1", "r_2"]


def test_the_only_consumer(make: Make) -> None:
    nodes = [Node("Relu", ["x"], ["r"]), Node("Add", ["r", "r"], ["s"]), Node("Relu", ["s"], ["y"])]
    model = ir.from_proto(make(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}))
    relu, add, last = model.graph
    assert only_consumer(relu.outputs[0]) is None  # read twice, by one node
    assert only_consumer(add.outputs[0]) is last
    assert only_consumer(last.outputs[0]) is None
