"""Blocks: single entry, single exit, found from structure alone, the same in whoever's file."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from bitwright.graph.blocks import Block, find_blocks
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import find_regions
from bitwright.models import MODELS, build, example

Make = Callable[..., onnx.ModelProto]
Exported = Callable[[str], Path]
LARGE = {"resnet18", "resnet50", "resnet56", "resnet110", "mobilenet_v2"}


@cache
def traced(name: str) -> ir.Model:
    """From the older exporter, by TorchScript."""
    file: Any = io.BytesIO()  # the annotation of the exporter knows paths only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        torch.onnx.export(
            build(name), (example(name),), file, dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
    return normalise(ir.from_proto(onnx.load_from_string(file.getvalue())))


def checked(model: ir.Model, **settings: Any) -> list[Block]:
    """The blocks, which are a partition in an order of execution; those of several regions have one entrance."""
    blocks = find_blocks(model, **settings)
    regions = find_regions(model)
    assert sorted(r.name for b in blocks for r in b.regions) == sorted(r.name for r in regions)
    assert len({b.name for b in blocks}) == len(blocks)
    known = set(model.graph.inputs)
    for block in blocks:
        assert known.issuperset(block.inputs), block.name
        made = {v for region in block.regions for node in region.nodes for v in node.outputs}
        assert {v for region in block.regions for v in region.inputs} - made == set(block.inputs)
        assert block.output in made and block.output is block.regions[-1].output
        if len(block.regions) > 1:
            ops = {region.op for region in block.regions}
            leaving = {v for v in made if v.is_graph_output()}
            leaving |= {v for r in regions if r.op not in ops for v in r.inputs if v in made}
            assert leaving <= {block.output}
        known |= {block.output, *(v for v in made if len(block.regions) == 1)}
    assert known.issuperset(model.graph.outputs)
    return blocks


def joined(blocks: Sequence[Block]) -> dict[str, list[str]]:
    """`{name: layers with weights}` of the blocks of several regions."""
    return {b.name: [r.name for r in b.regions if r.weight is not None] for b in blocks if len(b.regions) > 1}


def shape(model: ir.Model) -> list[tuple[tuple[str, ...], str]]:
    """Layers and join of each block, which no exporter has a say in; sizes of shapes aside."""
    floating = [b for b in checked(model) if b.output.dtype == ir.DataType.FLOAT]
    return [(tuple(r.name for r in b.regions if r.weight is not None), b.regions[-1].op.op_type) for b in floating]


RESNET = {f"layer{i}.{j}": [f"layer{i}.{j}.conv1", f"layer{i}.{j}.conv2"] for i in (1, 2, 3) for j in (0, 1, 2)}
SE = ("expand", "depthwise", "gate.fc1", "gate.fc2", "project")
BRANCHES = ("branch1.0", "branch2.0.0", "branch2.1.0", "branch3.0.0", "branch3.1.0", "branch3.2.0", "branch4.1.0")
ENCODER = {"attention": [f"attention.{k}" for k in ("query", "key", "value", "out")], "mlp": ["mlp.0", "mlp.2"]}
#: Blocks of several regions, with their layers.
EXPECTED: dict[str, dict[str, list[str]]] = {
    "resnet20": RESNET,
    "small_residual": {
        "body.1": ["body.1.conv1", "body.1.conv2"],
        "body.2": [f"body.2.{k}" for k in ("conv1", "conv2", "conv3", "downsample.0")],
    },
    "small_inverted_residual": {"body.1.conv": [f"body.1.conv.{k}" for k in ("0.0", "1.0", "2")]},
    "small_squeeze_excite": {f"body.{i}": [f"body.{i}.{k}" for k in SE] for i in (1, 2)},
    "small_inception": {f"body.{i}": [f"body.{i}.{k}" for k in BRANCHES] for i in (1, 3)},
    "small_dense": {f"body.{i}.layers.{j}": [f"body.{i}.layers.{j}.2"] for i, n in ((1, 3), (3, 2)) for j in range(n)},
    "small_shuffle": {f"body.{i}.branch": [f"body.{i}.branch.{k}" for k in ("0.0", "1", "3.0")] for i in (1, 2)},
    "small_vit": ENCODER,
    "small_bert": ENCODER,
    "small_conv_transpose": {},
    "digits_cnn": {
        "residual": ["residual.conv1", "residual.conv2"],
        "inverted.conv": [f"inverted.conv.{k}" for k in ("0.0", "1.0", "2")],
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_networks(name: str) -> None:
    found = joined(checked(traced(name)))
    assert {block: sorted(layers) for block, layers in found.items()} == {
        block: sorted(layers) for block, layers in EXPECTED[name].items()
    }


def test_resnet20_has_a_stem_nine_blocks_and_a_head() -> None:
    blocks = checked(traced("resnet20"))
    assert [b.name for b in blocks] == ["conv1", *RESNET, "avgpool", "Reshape", "linear"]
    for before, after in itertools.pairwise(blocks):
        assert after.inputs == (before.output,)


def test_mobilenet_v2_has_ten_residual_blocks() -> None:
    found = joined(checked(traced("mobilenet_v2")))
    residual = [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]  # stride 1, and as many channels out as in
    assert found == {f"features.{i}.conv": [f"features.{i}.conv.{k}" for k in ("0.0", "1.0", "2")] for i in residual}


def test_a_u_net_is_one_block_from_its_first_skip_to_its_last() -> None:
    model = traced("small_unet")
    (layers,) = joined(checked(model)).values()
    assert layers == ["down2.0", "bottom.0", "up2", "join2.0", "up1.1.0"]
    (inner,) = joined(checked(model, most=4)).values()
    assert inner == ["bottom.0", "up2"], "too large: the skip within it"
    assert joined(checked(model, most=1)) == {}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("small_squeeze_excite", "small_vit")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)  # fmt: skip
def test_both_exporters_give_the_same_partition(name: str, exported: Exported) -> None:
    assert shape(normalise(ir.load(exported(name)))) == shape(traced(name))


def graph(make: Make, text: str, constants: Mapping[str, Any], inputs: Any, outputs: Any = None) -> ir.Model:
    """`"h = MatMul x w; y = Add x h"`, each node called after its output."""
    nodes = []
    for line in text.split(";"):
        output, _, call = line.partition("=")
        op, *reads = call.split()
        nodes.append(helper.make_node(op, reads, [output.strip()], name=output.strip()))
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in constants.items()
    }
    return normalise(ir.from_proto(make(nodes, inputs, outputs or {"y": ["N", 6, 4]}, arrays)))


X = {"x": ["N", 6, 4]}
WEIGHTS = {name: (4, 4) for name in ("a.weight", "b.weight", "c.weight", "d.weight")}


def names(blocks: Sequence[Block]) -> list[list[str]]:
    """Layers, and ops without weights by their value, of each block; what only reshapes is left out."""
    kept = [[r for r in block.regions if r.op.op_type != "Reshape"] for block in blocks]
    return [[r.name if r.weight else r.op.name or "" for r in regions] for regions in kept if regions]


def test_a_mask_that_all_attentions_read_is_no_entrance(make: Make) -> None:
    text = (
        "m = Sub one mask; n = Mul m low; h = MatMul x a.weight; s = Add h n; p = Softmax s; r = Add x p;"
        "i = MatMul r b.weight; t = Add i n; q = Softmax t; y = Add r q"
    )
    constants = {**WEIGHTS, "one": np.float32(1), "low": np.float32(-9), "stem": (4,)}
    model = graph(make, "x = Mul z stem;" + text, constants, {"z": ["N", 6, 4], "mask": ["N", 6, 1]})
    blocks = checked(model)
    assert names(blocks) == [["x"], ["m"], ["a", "s", "p", "r"], ["b", "t", "q", "y"]]
    assert [[v.name for v in b.inputs] for b in blocks[2:]] == [["x", "n"], ["r", "n"]]


def test_a_mask_made_from_the_input_is_no_entrance_either(make: Make) -> None:
    text = (
        "e = MatMul z a.weight; m = ReduceMax z; n = Exp m; h = MatMul e b.weight; s = Add h n; r = Add e s;"
        "i = MatMul r c.weight; t = Add i n; y = Add r t"
    )
    blocks = checked(graph(make, text, WEIGHTS, {"z": ["N", 6, 4]}))
    assert names(blocks) == [["a"], ["m"], ["n"], ["b", "s", "r"], ["c", "t", "y"]]


def test_a_residual_at_the_input_is_a_block(make: Make) -> None:
    blocks = checked(graph(make, "h = MatMul x a.weight; y = Add x h", WEIGHTS, X))
    assert names(blocks) == [["a", "y"]] and [v.name for v in blocks[0].inputs] == ["x"]


def test_a_skip_over_too_many_layers_leaves_the_blocks_within(make: Make) -> None:
    text = "h = MatMul x a.weight; i = MatMul h b.weight; r = Add h i; j = MatMul r c.weight; s = Add r j; y = Add s h"
    model = graph(make, text, WEIGHTS, X)
    assert names(checked(model)) == [["a"], ["b", "r", "c", "s", "y"]]
    assert names(checked(model, most=1)) == [["a"], ["b", "r"], ["c", "s"], ["y"]]


def test_what_is_read_elsewhere_closes_no_block(make: Make) -> None:
    """A feature pyramid: the inner value is an output too."""
    text = "h = MatMul x a.weight; i = MatMul h b.weight; y = Add h i"
    outputs = {"y": ["N", 6, 4], "i": ["N", 6, 4]}
    assert names(checked(graph(make, text, WEIGHTS, X, outputs))) == [["a"], ["b"], ["y"]]


def test_inner_values_may_meet_more_than_once(make: Make) -> None:
    """Dense connections: each join reads all values before it, so the last encloses them all."""
    text = (
        "s = MatMul x a.weight; h = MatMul s b.weight; i = Add s h; j = MatMul i c.weight; k = Add h j; "
        "l = Add k i; y = Softmax l"
    )
    assert names(checked(graph(make, text, WEIGHTS, X))) == [["a"], ["b", "i", "c", "k", "l"], ["y"]]


def test_inputs_that_meet_are_no_block(make: Make) -> None:
    text = "h = MatMul x a.weight; i = MatMul z b.weight; y = Add h i"
    assert names(checked(graph(make, text, WEIGHTS, {**X, "z": ["N", 6, 4]}))) == [["a"], ["b"], ["y"]]


def test_ops_of_several_outputs(make: Make) -> None:
    """The values of TopK are one way into the sum, its indices another: the block begins before it."""
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["h"], name="h"),
        helper.make_node("TopK", ["h", "k"], ["v", "i"], name="top"),
        helper.make_node("Cast", ["i"], ["f"], name="f", to=1),
        helper.make_node("Add", ["v", "f"], ["y"], name="y"),
    ]
    constants = {"a.weight": np.ones((4, 4), np.float32), "k": np.array([4])}
    model = normalise(ir.from_proto(make(nodes, X, {"y": ["N", 6, 4]}, constants)))
    assert names(checked(model)) == [["a"], ["top", "f", "y"]]


def test_very_deep_networks_are_no_trouble(make: Make) -> None:
    text = ";".join(f"m{i} = MatMul h{i} a.weight; h{i + 1} = Add h{i} m{i}" for i in range(300))
    model = graph(make, "h0 = MatMul x b.weight;" + text + "; y = Softmax h300", WEIGHTS, X)
    assert len(joined(checked(model))) == 300
