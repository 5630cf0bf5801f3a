"""Folding batch norm leaves the network's function as it is, and keeps the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitwright.execute.observe import float_session
from bitwright.graph.normalise import normalise
from bitwright.graph.overlay import with_overlay
from bitwright.pipeline import BatchNorm, State
from bitwright.ptq.fold_batchnorm import FoldBatchNorm, fold, scale_output_channels

Node = helper.make_node
Arrays = Mapping[str, np.ndarray]
GENERATOR = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def statistics(channels: int, path: str) -> dict[str, np.ndarray]:
    """Gamma of both signs, and one gamma of 0."""
    gamma = normal(channels)
    gamma[0], gamma[1] = 0, -abs(gamma[1])
    values = (gamma, normal(channels), normal(channels), normal(channels) ** 2 + 0.05)
    return dict(zip((f"{path}.{k}" for k in ("weight", "bias", "mean", "var")), values, strict=True))


def opened(nodes: Sequence[Any], x: Sequence[Any], outputs: Sequence[str], constants: Arrays) -> ir.Model:
    graph = helper.make_graph(
        list(nodes), "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    return normalise(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    )


def folded(model: ir.Model, overlay: Mapping[str, torch.Tensor] | None = None) -> State:
    """The state after folding; in the runtime its outputs are the old ones, within 1e-5 of the largest."""
    before = State(model=model, reference=model, overlay=dict(overlay or {}))
    snapshot = ir.to_proto(model).SerializeToString(deterministic=True)
    state = FoldBatchNorm()(before)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == snapshot, "the old state's graph was changed"
    onnx.checker.check_model(ir.to_proto(state.model), full_check=True)
    shape = [d if isinstance(d, int) else 3 for d in model.graph.inputs[0].shape or ()]
    x = {"x": normal(*shape)}
    old = float_session(with_overlay(model, before.overlay), 1).run(None, x)
    new = float_session(with_overlay(state.model, state.overlay), 1).run(None, x)
    for expected, found in zip(old, new, strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert [v.name for v in state.model.graph.outputs] == [v.name for v in model.graph.outputs]
    return state


def ops(state: State) -> list[str]:
    return [node.op_type for node in state.model.graph]


LAYERS: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "conv": ("Conv", (7, 6, 3, 3), 7, {}),
    "grouped": ("Conv", (6, 2, 3, 3), 6, {"group": 3}),
    "depthwise": ("Conv", (6, 1, 3, 3), 6, {"group": 6}),
    "depthwise, two each": ("Conv", (12, 1, 3, 3), 12, {"group": 6}),
    "transposed": ("ConvTranspose", (6, 5, 2, 2), 5, {"strides": [2, 2]}),
    "transposed, grouped": ("ConvTranspose", (6, 5, 3, 3), 10, {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "transposed, depthwise": ("ConvTranspose", (6, 1, 2, 2), 6, {"group": 6}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_convolutions(kind: str, bias: bool) -> None:
    op, shape, channels, settings = LAYERS[kind]
    norm = statistics(channels, "bn")
    constants = {"conv.weight": normal(*shape), **({"conv.bias": normal(channels)} if bias else {})}
    nodes = [
        Node(op, ["x", *constants], ["c"], **settings), Node("BatchNormalization", ["c", *norm], ["y"], epsilon=1e-3)
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 6, 8, 8], ["y"], constants | norm))
    assert ops(state) == [op]
    assert set(state.model.graph.initializers) >= {"conv.weight", "conv.bias"}
    kept = state.batchnorm["conv.weight"]
    assert kept.eps == pytest.approx(1e-3)
    for found, expected in zip((kept.gamma, kept.beta, kept.mean, kept.var), norm.values(), strict=True):
        assert torch.equal(found, torch.from_numpy(expected))


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_of_other_ranks(axes: int) -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, *[2] * axes)}
    nodes = [Node("Conv", ["x", *constants], ["c"]), Node("BatchNormalization", ["c", *norm], ["y"])]
    assert ops(folded(opened(nodes, ["N", 3, *[5] * axes], ["y"], constants | norm))) == ["Conv"]


@pytest.mark.parametrize("shape", [None, (5,), (1, 5), (1,), ()])
@pytest.mark.parametrize("transposed", [0, 1])
def test_linear_layers(transposed: int, shape: tuple[int, ...] | None) -> None:
    norm = statistics(5, "bn")
    constants = {"fc.weight": normal(5, 7) if transposed else normal(7, 5)}
    if shape is not None:
        constants["fc.bias"] = normal(*shape) if shape else np.array(0.7, np.float32)
    nodes = [
        Node("Gemm", ["x", *constants], ["h"], transB=transposed),
        Node("BatchNormalization", ["h", *norm], ["y"]),
    ]
    state = folded(opened(nodes, ["N", 7], ["y"], constants | norm))
    assert ops(state) == ["Gemm"]
    assert state.tensor("fc.bias").shape == (5,)


@pytest.mark.parametrize("settings", [{"alpha": 0.5}, {"beta": 2.0}])
def test_linear_layers_that_scale_are_left(settings: dict[str, Any]) -> None:
    norm = statistics(5, "bn")
    constants = {"fc.weight": normal(7, 5), "fc.bias": normal(5)}
    nodes = [Node("Gemm", ["x", *constants], ["h"], **settings), Node("BatchNormalization", ["h", *norm], ["y"])]
    state = folded(opened(nodes, ["N", 7], ["y"], constants | norm))
    assert ops(state) == ["Gemm", "BatchNormalization"] and not state.batchnorm


def test_a_bias_for_each_image_is_no_bias() -> None:
    norm = statistics(5, "bn")
    constants = {"fc.weight": normal(7, 5), "fc.bias": normal(5, 1)}
    nodes = [Node("Gemm", ["x", *constants], ["h"]), Node("BatchNormalization", ["h", *norm], ["y"])]
    assert ops(folded(opened(nodes, [5, 7], ["y"], constants | norm))) == ["Gemm", "BatchNormalization"]


def test_batch_norm_with_nothing_before_it_becomes_a_depthwise_convolution() -> None:
    for rank in (1, 2, 3):
        norm = statistics(4, "first.bn")
        nodes = [Node("BatchNormalization", ["x", *norm], ["n"]), Node("Relu", ["n"], ["y"])]
        state = folded(opened(nodes, ["N", 4, *[5] * rank], ["y"], norm))
        assert ops(state) == ["Conv", "Relu"]
        conv = state.model.graph[0]
        assert conv.attributes.get_int("group", 1) == 4 and conv.outputs[0].name == "n"
        (name,) = state.batchnorm
        assert name == "first.bn.depthwise_weight" and state.tensor(name).shape == (4, 1, *[1] * rank)


FORWARD: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "conv": ("Conv", (7, 6, 3, 3), 7, {}),
    "strided, dilated": ("Conv", (7, 6, 3, 2), 7, {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 0, 0, 0]}),
    "grouped": ("Conv", (9, 2, 3, 3), 9, {"group": 3}),
    "depthwise": ("Conv", (12, 1, 3, 3), 12, {"group": 6}),
    "valid": ("Conv", (7, 6, 3, 3), 7, {"auto_pad": "VALID"}),
    "1x1, same": ("Conv", (7, 6, 1, 1), 7, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORWARD)
def test_batch_norm_before_a_convolution_without_padding(kind: str, bias: bool) -> None:
    op, shape, channels, settings = FORWARD[kind]
    norm = statistics(6, "bn")
    constants = {"conv.weight": normal(*shape), **({"conv.bias": normal(channels)} if bias else {})}
    nodes = [
        Node("BatchNormalization", ["x", *norm], ["n"], epsilon=1e-3),
        Node(op, ["n", *constants], ["y"], **settings),
    ]
    state = folded(opened(nodes, ["N", 6, 8, 8], ["y"], constants | norm))
    assert ops(state) == ["Conv"] and not state.batchnorm
    kept = state.input_batchnorm["conv.weight"]
    assert kept.eps == pytest.approx(1e-3) and torch.equal(kept.mean, torch.from_numpy(norm["bn.mean"]))
    assert set(state.model.graph.initializers) >= {"conv.weight", "conv.bias"}


@pytest.mark.parametrize(
    ("op", "shape", "settings"),
    [
        ("Conv", (7, 6, 3, 3), {"pads": [0, 1, 0, 0]}),
        ("Conv", (7, 6, 2, 1), {"auto_pad": "SAME_LOWER"}),
        ("ConvTranspose", (6, 7, 2, 2), {"strides": [2, 2]}),  # its borders add fewer taps
    ],
)
def test_batch_norm_before_a_layer_with_borders_stays_before_it(
    op: str, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    norm = statistics(6, "bn")
    nodes = [Node("BatchNormalization", ["x", *norm], ["n"]), Node(op, ["n", "up.weight"], ["y"], **settings)]
    state = folded(opened(nodes, ["N", 6, 8, 8], ["y"], {"up.weight": normal(*shape)} | norm))
    assert ops(state) == ["Conv", op] and set(state.batchnorm) == {"bn.depthwise_weight"} and not state.input_batchnorm


@pytest.mark.parametrize("bias", [(), (5,), (1, 5), (1,)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_batch_norm_before_a_linear_layer(transposed: int, bias: tuple[int, ...]) -> None:
    norm = statistics(7, "bn")
    constants = {
        "fc.weight": normal(5, 7) if transposed else normal(7, 5),
        **({"fc.bias": normal(*bias)} if bias else {}),
    }
    nodes = [
        Node("BatchNormalization", ["x", *norm], ["n"]),
        Node("Gemm", ["n", *constants], ["y"], transB=transposed),
    ]
    state = folded(opened(nodes, ["N", 7], ["y"], constants | norm))
    assert ops(state) == ["Gemm"] and set(state.input_batchnorm) == {"fc.weight"}
    assert state.tensor("fc.weight").shape == constants["fc.weight"].shape and state.tensor("fc.bias").shape == (5,)


@pytest.mark.parametrize("settings", [{"alpha": 0.5}, {"transA": 1}])
def test_batch_norm_before_another_product_stays(settings: dict[str, Any]) -> None:
    norm = statistics(7, "bn")
    constants = {"fc.weight": normal(3 if "transA" in settings else 7, 5)}
    nodes = [Node("BatchNormalization", ["x", *norm], ["n"]), Node("Gemm", ["n", "fc.weight"], ["y"], **settings)]
    state = folded(opened(nodes, [3, 7], ["y"], constants | norm))
    assert ops(state) == ["BatchNormalization", "Gemm"] and not state.input_batchnorm


def test_batch_norm_that_others_read_is_not_folded_forward() -> None:
    norm = statistics(3, "bn")
    nodes = [
        Node("BatchNormalization", ["x", *norm], ["n"]), Node("Conv", ["n", "conv.weight"], ["c"]),
        Node("Concat", ["n", "c"], ["y"], axis=1),
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 3, 4, 4], ["y"], {"conv.weight": normal(4, 3, 1, 1)} | norm))
    assert ops(state) == ["Conv", "Conv", "Concat"] and not state.input_batchnorm


def test_batch_norm_on_both_sides_of_a_layer() -> None:
    """Each side has a record of its own: channels that are read, and channels that are given."""
    first, second = statistics(3, "bn1"), statistics(4, "bn2")
    nodes = [
        Node("BatchNormalization", ["x", *first], ["n"]), Node("Conv", ["n", "conv.weight"], ["c"]),
        Node("BatchNormalization", ["c", *second], ["y"]),
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 3, 6, 6], ["y"], {"conv.weight": normal(4, 3, 3, 3)} | first | second))
    assert ops(state) == ["Conv"]
    assert torch.equal(state.input_batchnorm["conv.weight"].mean, torch.from_numpy(first["bn1.mean"]))
    assert torch.equal(state.batchnorm["conv.weight"].mean, torch.from_numpy(second["bn2.mean"]))


def test_a_shared_weight_is_folded_forward_for_one_reader() -> None:
    norm = statistics(3, "bn")
    constants = {"conv.weight": normal(3, 3, 1, 1), "conv.bias": normal(3)}
    nodes = [
        Node("BatchNormalization", ["x", *norm], ["n"]), Node("Conv", ["n", *constants], ["c"]),
        Node("Conv", ["c", *constants], ["y"]),
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | norm))
    assert ops(state) == ["Conv", "Conv"] and set(state.input_batchnorm) == {"conv.folded"}
    assert torch.equal(state.tensor("conv.weight"), torch.from_numpy(constants["conv.weight"]))


def test_a_layer_that_others_read_too_keeps_its_weights() -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, 1, 1)}
    nodes = [
        Node("Conv", ["x", *constants], ["c"]), Node("BatchNormalization", ["c", *norm], ["n"]),
        Node("Add", ["n", "c"], ["y"]),
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | norm))
    assert ops(state) == ["Conv", "Conv", "Add"]
    assert torch.equal(state.tensor("conv.weight"), torch.from_numpy(constants["conv.weight"]))


def test_a_layer_whose_output_leaves_the_network_keeps_its_weights() -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, 1, 1)}
    nodes = [Node("Conv", ["x", *constants], ["c"]), Node("BatchNormalization", ["c", *norm], ["y"])]
    assert ops(folded(opened(nodes, ["N", 3, 4, 4], ["y", "c"], constants | norm))) == ["Conv", "Conv"]


def test_a_shared_weight_is_folded_for_each_reader() -> None:
    first, second = statistics(3, "bn1"), statistics(3, "bn2")
    constants = {"conv.weight": normal(3, 3, 1, 1), "conv.bias": normal(3)}
    nodes = [
        Node("Conv", ["x", *constants], ["a"]), Node("BatchNormalization", ["a", *first], ["b"]),
        Node("Conv", ["b", *constants], ["c"]), Node("BatchNormalization", ["c", *second], ["y"]),
    ]  # fmt: skip
    state = folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | first | second))
    assert ops(state) == ["Conv", "Conv"]
    assert set(state.batchnorm) == {"conv.weight", "conv.folded"}


def test_shared_statistics() -> None:
    norm = statistics(3, "bn")
    constants = {"a.weight": normal(3, 3, 1, 1), "b.weight": normal(3, 3, 1, 1)}
    nodes = [
        Node("Conv", ["x", "a.weight"], ["a"]), Node("BatchNormalization", ["a", *norm], ["b"]),
        Node("Conv", ["b", "b.weight"], ["c"]), Node("BatchNormalization", ["c", *norm], ["y"]),
    ]  # fmt: skip
    assert ops(folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | norm))) == ["Conv", "Conv"]


def test_two_batch_norms_in_a_row() -> None:
    first, second = statistics(4, "bn1"), statistics(4, "bn2")
    constants = {"conv.weight": normal(4, 3, 1, 1)}
    nodes = [
        Node("Conv", ["x", *constants], ["a"]), Node("BatchNormalization", ["a", *first], ["b"]),
        Node("BatchNormalization", ["b", *second], ["y"]),
    ]  # fmt: skip
    assert ops(folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | first | second))) == ["Conv"]


def test_weights_of_the_overlay_are_folded() -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, 1, 1), "conv.bias": normal(4)}
    nodes = [Node("Conv", ["x", *constants], ["c"]), Node("BatchNormalization", ["c", *norm], ["y"])]
    model = opened(nodes, ["N", 3, 4, 4], ["y"], constants | norm)
    changed = {"conv.weight": torch.from_numpy(normal(4, 3, 1, 1)), "bn.mean": torch.from_numpy(normal(4))}
    state = folded(model, changed)
    assert "conv.weight" not in state.overlay
    assert torch.equal(state.batchnorm["conv.weight"].mean, changed["bn.mean"])


@pytest.mark.parametrize("settings", [{"training_mode": 1}])
def test_batch_norm_that_is_being_trained_is_left(settings: dict[str, Any]) -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, 1, 1)}
    nodes = [
        Node("Conv", ["x", *constants], ["c"]),
        Node("BatchNormalization", ["c", *norm], ["y", "m", "v"], **settings),
    ]
    model = opened(nodes, ["N", 3, 4, 4], ["y", "m"], constants | norm)
    state = FoldBatchNorm()(State(model=model, reference=model))
    assert ops(state) == ["Conv", "BatchNormalization"] and not state.batchnorm


def test_computed_statistics_are_left() -> None:
    norm = statistics(4, "bn")
    constants = {"conv.weight": normal(4, 3, 1, 1), "axes": np.array([0, 2, 3])}
    inputs = ["bn.weight", "bn.bias", "m", "bn.var"]
    nodes = [
        Node("Conv", ["x", "conv.weight"], ["c"]), Node("ReduceMean", ["c", "axes"], ["m"], keepdims=0),
        Node("BatchNormalization", ["c", *inputs], ["y"]),
    ]  # fmt: skip
    assert "BatchNormalization" in ops(folded(opened(nodes, ["N", 3, 4, 4], ["y"], constants | norm)))


def test_networks_from_the_table(exported: Callable[[str], Path]) -> None:
    """Whole networks, exported with their batch norms: none is left, and the names of values stay."""
    from bitwright.models import example

    model = normalise(ir.load(exported("small_dense")))
    state = FoldBatchNorm()(State(model=model, reference=model))
    assert "BatchNormalization" not in ops(state)
    x = {v.name or "": example("small_dense", batch=3).numpy() for v in model.graph.inputs}
    (expected,), (found,) = (float_session(m, 1).run(None, x) for m in (model, state.model))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph)
    assert len(state.batchnorm) == norms > 6


def test_scaling_follows_the_layout_of_each_layer() -> None:
    k = torch.tensor([2.0, 3.0, 5.0, 7.0])
    assert scale_output_channels(torch.ones(4, 2, 1, 1), k, "Conv")[:, 0, 0, 0].tolist() == [2, 3, 5, 7]
    assert scale_output_channels(torch.ones(6, 4), k, "Gemm", trans_b=False)[0].tolist() == [2, 3, 5, 7]
    assert scale_output_channels(torch.ones(4, 6), k, "Gemm", trans_b=True)[:, 0].tolist() == [2, 3, 5, 7]
    # Six inputs in two groups: the first three feed the outputs 0 and 1, the others 2 and 3.
    grouped = scale_output_channels(torch.ones(6, 2, 1, 1), k, "ConvTranspose", group=2)
    assert grouped[:, :, 0, 0].tolist() == [[2, 3]] * 3 + [[5, 7]] * 3


def test_fold_computes_in_float64() -> None:
    """`beta - mean k` cancels: rounded once, it is exact to the last bit of the result."""
    bn = BatchNorm(
        gamma=torch.tensor([1.0]), beta=torch.tensor([16777217.0]), mean=torch.tensor([16777216.0]),
        var=torch.tensor([1.0]), eps=0.0,
    )  # fmt: skip
    bias = fold(torch.ones(1, 1, 1, 1), torch.tensor([0.25]), bn, "Conv", 1, True)[1]
    assert bias.item() == 0.25  # 16777217 is 16777216 in float32
