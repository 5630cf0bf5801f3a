"""Transposed convolutions become convolutions, and in the runtime they are the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from bitwright.execute.observe import float_session
from bitwright.graph.macs import count_macs
from bitwright.graph.overlay import with_overlay
from bitwright.graph.regions import find_regions
from bitwright.placement.transposed import align, phase_weight, transposed_as_convolutions
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64 as TARGET

Network = Callable[..., ir.Model]
Overlay = Mapping[str, torch.Tensor]
GENERATOR = np.random.default_rng(17)


def rewritten(model: ir.Model, overlay: Overlay | None = None) -> tuple[ir.Model, dict[str, torch.Tensor]]:
    """The model without transposed convolutions; its outputs are the old ones, within 1e-5 of the largest."""
    overlay = dict(overlay or {})
    snapshot = ir.to_proto(model).SerializeToString(deterministic=True)
    found, changed, _ = transposed_as_convolutions(model, overlay, TARGET)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == snapshot, "the old graph was changed"
    onnx.checker.check_model(ir.to_proto(found), full_check=True)
    assert [v.name for v in found.graph.outputs] == [v.name for v in model.graph.outputs]
    x = model.graph.inputs[0]
    data = GENERATOR.standard_normal([d if isinstance(d, int) else 3 for d in x.shape or ()]).astype(np.float32)
    old = float_session(with_overlay(model, overlay), 1).run(None, {"x": data})
    new = float_session(with_overlay(found, changed), 1).run(None, {"x": data})
    for expected, got in zip(old, new, strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    for node in found.graph:
        for value in node.outputs:
            assert value.shape is not None and value.dtype == ir.DataType.FLOAT
    return found, changed


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def up(
    network: Network, weight: tuple[int, ...], *, bias: bool = True, x: tuple[int, ...] = (6, 5, 7), **settings: Any
) -> ir.Model:
    constants: dict[str, Any] = {"up.weight": weight}
    if bias:
        constants["up.bias"] = (weight[1] * settings.get("group", 1),)
    return network([("ConvTranspose", f"x {' '.join(constants)}", "y", settings)], constants, inputs={"x": ["N", *x]})


def squares(stride: int, **settings: Any) -> dict[str, Any]:
    return {"strides": [stride, stride], **settings}


PLAIN = ["Conv", "DepthToSpace"]
CROPPED = ["Conv", "DepthToSpace", "Slice"]
#: weight, settings, the ops that it becomes, taps of an axis.
FORMS: dict[str, tuple[tuple[int, ...], dict[str, Any], list[str], list[int]]] = {
    "2x2 by 2": ((6, 4, 2, 2), squares(2), PLAIN, [1, 1]),
    "3x3 by 2": ((6, 4, 3, 3), squares(2), CROPPED, [2, 2]),
    "3x3 by 2, padded to double": (
        (6, 4, 3, 3), squares(2, pads=[1, 1, 1, 1], output_padding=[1, 1]), PLAIN, [2, 2],
    ),
    "3x3 by 2, padded": ((6, 4, 3, 3), squares(2, pads=[1, 1, 1, 1]), CROPPED, [2, 2]),
    "4x4 by 2, padded": ((6, 4, 4, 4), squares(2, pads=[1, 1, 1, 1]), CROPPED, [2, 2]),
    "4x4 by 2": ((6, 4, 4, 4), squares(2), PLAIN, [2, 2]),
    "5x5 by 2": ((6, 4, 5, 5), squares(2, pads=[2, 1, 1, 2]), PLAIN, [3, 3]),
    "5x5 by 3": ((6, 4, 5, 5), squares(3, pads=[1, 1, 1, 1], output_padding=[2, 0]), CROPPED, [2, 2]),
    "3x3 by 1": ((6, 4, 3, 3), {"pads": [1, 1, 1, 1]}, ["Conv"], [3, 3]),
    "1x1 by 2": ((6, 4, 1, 1), squares(2), CROPPED, [1, 1]),
    "2x2 by 3": ((6, 4, 2, 2), squares(3, output_padding=[1, 2]), CROPPED, [1, 1]),
    "3x3 by 2, grouped": ((6, 2, 3, 3), squares(2, group=3, pads=[1, 1, 1, 1]), CROPPED, [2, 2]),
    "4x4 by 2, depthwise": ((6, 1, 4, 4), squares(2, group=6, pads=[1, 1, 1, 1]), CROPPED, [2, 2]),
    "16x16 by 8": ((6, 2, 16, 16), squares(8, pads=[4, 4, 4, 4]), CROPPED, [2, 2]),
    "all cut off but the middle": ((6, 4, 3, 3), squares(2, pads=[3, 4, 4, 3]), CROPPED, [2, 3]),
    "dilated": ((6, 4, 3, 3), squares(2, dilations=[2, 3], pads=[1, 1, 1, 1]), CROPPED, [3, 4]),
    "strides that differ": (
        (6, 4, 3, 3), {"strides": [2, 3]}, ["Conv", "Reshape", "Transpose", "Reshape", "Slice"], [2, 1],
    ),
    "one stride": ((6, 4, 3, 2), {"strides": [1, 2]}, ["Conv", "Reshape", "Transpose", "Reshape"], [3, 1]),
    "valid": ((6, 4, 3, 3), squares(2, auto_pad="VALID"), CROPPED, [2, 2]),
    "same, upper": ((6, 4, 3, 3), squares(2, auto_pad="SAME_UPPER"), PLAIN, [2, 2]),
    "same, lower": ((6, 4, 3, 3), squares(2, auto_pad="SAME_LOWER"), PLAIN, [2, 2]),
    "size given": ((6, 4, 4, 4), squares(2, output_shape=[9, 14]), CROPPED, [2, 2]),
    "size given, longer than there is": ((6, 4, 2, 2), squares(3, output_shape=[15, 21]), PLAIN, [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, bias: bool, network: Network) -> None:
    weight, settings, expected, kernel = FORMS[name]
    model, _ = rewritten(up(network, weight, bias=bias, **settings))
    assert ops(model) == expected
    conv = next(r for r in find_regions(model) if r.weight is not None)
    assert conv.name == "up" and conv.weight is not None and conv.weight.name == "up.weight#phases"
    phases = int(np.prod(settings.get("strides", [1, 1])))
    channels = weight[1] * settings.get("group", 1) * phases
    assert list(conv.weight.shape or ()) == [channels, 6 // settings.get("group", 1), *kernel]
    assert (conv.bias is not None) == bias
    assert "up.weight" not in model.graph.initializers


@pytest.mark.parametrize(
    ("weight", "settings", "expected"),
    [
        ((6, 4, 4), {"strides": [2], "pads": [1, 1]}, ["Conv", "Reshape", "Transpose", "Reshape", "Slice"]),
        ((6, 4, 2), {"strides": [2]}, ["Conv", "Reshape", "Transpose", "Reshape"]),
        ((6, 4, 2, 2, 2), {"strides": [2, 2, 2]}, ["Conv", "Reshape", "Transpose", "Reshape"]),
    ],
)
def test_other_ranks(weight: tuple[int, ...], settings: dict[str, Any], expected: list[str], network: Network) -> None:
    model, _ = rewritten(up(network, weight, x=(6, 5, 3, 4)[: len(weight) - 1], **settings))
    assert ops(model) == expected


@pytest.mark.parametrize(("op", "high"), [("Relu", float("inf")), ("Clip", 6.0)])
def test_a_bound_that_follows_is_absorbed(op: str, high: float, network: Network) -> None:
    reads = "a" if op == "Relu" else "a low high"
    nodes = [("ConvTranspose", "x up.weight up.bias", "a", squares(2)), (op, reads, "r"), ("Sigmoid", "r", "y")]
    constants = {"up.weight": (3, 4, 3, 3), "up.bias": (4,), "low": np.float32(0), "high": np.float32(6)}
    model, _ = rewritten(network(nodes, constants))
    assert ops(model) == ["Conv", op, *CROPPED[1:], "Sigmoid"]
    conv, shuffle, crop, last = find_regions(model)
    assert (conv.name, conv.bounds) == ("up", (0, high)) and crop.output.name == "r"
    assert shuffle.inputs == (conv.output,) and last.inputs == (crop.output,)


def test_a_bound_that_others_pass_by_is_not(network: Network) -> None:
    nodes = [
        ("ConvTranspose", "x up.weight", "a", squares(2)),
        ("Relu", "a", "r"),
        ("Concat", "a r", "y", {"axis": 1}),
    ]
    model, _ = rewritten(network(nodes, {"up.weight": (3, 4, 2, 2)}))
    assert ops(model) == ["Conv", "DepthToSpace", "Relu", "Concat"]


def test_names_and_modules_stay(network: Network) -> None:
    model = up(network, (6, 4, 3, 3), **squares(2))
    model.graph[0].name = "/decoder/up/ConvTranspose"
    found, _ = rewritten(model)
    assert [r.name for r in find_regions(found)] == ["up", "decoder.up.DepthToSpace", "decoder.up.Slice"]
    assert found.graph.outputs[0].name == "y" and len({n.name for n in found.graph}) == 3


def test_nodes_without_names_are_known_by_their_weight(network: Network) -> None:
    nodes = [("ConvTranspose", "x kernel", "a", squares(2)), ("ConvTranspose", "a kernel", "y", squares(2))]
    model = network(nodes, {"kernel": (3, 3, 2, 2)})
    for node in model.graph:
        node.name = ""
    before = [r.name for r in find_regions(model)]
    found, _ = rewritten(model)
    assert before == ["kernel", "kernel#2"] == [r.name for r in find_regions(found) if r.kind == "Conv"]


def test_weights_of_the_overlay_are_taken(network: Network) -> None:
    model = up(network, (6, 4, 3, 3), **squares(2))
    overlay = {"up.weight": torch.randn(6, 4, 3, 3), "up.bias": torch.randn(4), "other": torch.ones(1)}
    found, changed = rewritten(model, {k: v for k, v in overlay.items() if k != "other"})
    assert changed == {}, "the values stand in the graph, under the new names"
    assert found.graph.initializers.keys() >= {"up.weight#phases", "up.bias#phases"}


def test_a_weight_of_two_layers(network: Network) -> None:
    nodes = [("ConvTranspose", "x up.weight", "a", squares(2)), ("ConvTranspose", "a up.weight", "y", squares(3))]
    model = network(nodes, {"up.weight": (3, 3, 2, 2)})
    rewritten(model)
    _, _, names = transposed_as_convolutions(model, {}, TARGET)
    assert names == {"up.weight#phases": ("up.weight", 4), "up.weight#phases_1": ("up.weight", 9)}


def test_what_is_not_known_is_left(network: Network) -> None:
    nodes = [("GlobalAveragePool", "x", "p"), ("Mul", "p w", "v"), ("ConvTranspose", "x v", "y", squares(2))]
    model = network(nodes, {"w": (3, 1, 2, 2)}, inputs={"x": [1, 3, 8, 8]})
    assert transposed_as_convolutions(model, {}, TARGET)[0] is model


def test_targets_that_have_a_kernel_keep_it(network: Network) -> None:
    import dataclasses

    from bitwright.targets.target import OpRule

    target = dataclasses.replace(TARGET, rules=(*TARGET.rules, OpRule(kind="ConvTranspose", how="kernel")))
    model = up(network, (6, 4, 2, 2), **squares(2))
    assert transposed_as_convolutions(model, {}, target)[0] is model


def test_multiply_accumulates_are_those_of_the_convolution(network: Network) -> None:
    """A kernel that the stride divides costs the same; otherwise the zeros among the taps are counted too."""
    model = up(network, (6, 4, 2, 2), **squares(2))
    assert count_macs(rewritten(model)[0]) == count_macs(model) == 6 * 4 * 4 * 35
    model = up(network, (6, 4, 3, 3), **squares(2, pads=[1, 1, 1, 1], output_padding=[1, 1]))
    assert count_macs(model) == 6 * 4 * 9 * 35 and count_macs(rewritten(model)[0]) == 6 * 4 * 16 * 35


def test_alignment_by_hand() -> None:
    """A kernel of 4, stride 2, padding 1: aligned without cropping it would take 3 taps; one row cut off, 2."""
    axis = align(inputs=5, outputs=10, kernel=4, stride=2, start=1)
    assert (axis.kernel, axis.crop, axis.size, axis.pads) == (2, (1, 11), 12, (1, 1))
    assert axis.taps == ({1: 0, 0: 2}, {1: 1, 0: 3})


def test_phases_by_hand() -> None:
    """One input channel, one output channel, `[a b c]`, stride 2: even outputs get c, a and odd ones b."""
    axis = align(inputs=3, outputs=7, kernel=3, stride=2, start=0)
    found = phase_weight(torch.tensor([[[5.0, 7.0, 11.0]]]), [axis])
    assert found.tolist() == [[[11.0, 5.0]], [[0.0, 7.0]]]
