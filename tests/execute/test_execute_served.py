"""Ops without a row of OPS: ONNX Runtime computes them inside the program, and the network around them is proven."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import bitwright as bw
from bitwright.errors import UnsupportedError
from bitwright.execute import OPS, served
from bitwright.execute.observe import float_session
from bitwright.execute.program import build
from bitwright.graph.normalise import normalise

Node = helper.make_node
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) / 3


def network(
    middle: Sequence[onnx.NodeProto], constants: Mapping[str, np.ndarray] | None = None, *, opset: int = 21,
    domains: Sequence[str] = (), channels: int = 6,
) -> ir.Model:  # fmt: skip
    """Two convolutions, `x -> a` and `b -> y`, with `middle` between `a` [N, channels, 8, 8] and `b`."""
    nodes = [Node("Conv", ["x", "w1"], ["a"]), *middle, Node("Conv", ["b", "w2"], ["y"])]
    weights = {"w1": normal(channels, 3, 3, 3), "w2": normal(5, channels, 3, 3), **(constants or {})}
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 5, None, None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))


def value(name: str, dtype: int, shape: Sequence[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def if_network() -> ir.Model:
    """Both branches read `a`, which the writer quantizes."""
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    doubled = helper.make_graph([Node("Mul", ["a", "half"], ["t"])], "then", [], [value("t", FLOAT)], [half])
    turned = helper.make_graph([Node("Neg", ["a"], ["e"])], "else", [], [value("e", FLOAT)])
    nodes = [
        Node("ReduceMean", ["x"], ["mean"], keepdims=0),
        Node("Greater", ["mean", "zero"], ["condition"]),
        Node("If", ["condition"], ["b"], then_branch=doubled, else_branch=turned),
    ]
    return network(nodes, {"zero": np.array(0, np.float32)})


def loop_network() -> ir.Model:
    """The body captures a constant of the graph around it, and turns three times."""
    body = helper.make_graph(
        [Node("Mul", ["state", "gain"], ["next"]), Node("Identity", ["go"], ["on"])], "body",
        [value("turn", INT64, []), value("go", BOOL, []), value("state", FLOAT)],
        [value("on", BOOL, []), value("next", FLOAT)],
    )  # fmt: skip
    return network(
        [Node("Loop", ["turns", "", "a"], ["b"], body=body)],
        {"turns": np.array(3), "gain": np.full((1, 6, 1, 1), 0.9, np.float32)},
    )


def scan_network() -> ir.Model:
    """Running sums over the rows: the second of two outputs goes on."""
    body = helper.make_graph(
        [Node("Add", ["sum", "row"], ["next"]), Node("Identity", ["next"], ["kept"])], "body",
        [value("sum", FLOAT), value("row", FLOAT)], [value("next", FLOAT), value("kept", FLOAT)],
    )  # fmt: skip
    over: dict[str, Any] = {"num_scan_inputs": 1, "scan_input_axes": [2], "scan_output_axes": [2]}
    nodes = [
        Node("ReduceMean", ["a", "axis"], ["start"], keepdims=0),
        Node("Scan", ["start", "a"], ["last", "b"], body=body, **over),
    ]
    return network(nodes, {"axis": np.array([2])})


def lstm_network() -> ir.Model:
    """The first output has no name, the second goes on."""
    nodes = [
        Node("Reshape", ["a", "rows"], ["sequence"]),
        Node("Transpose", ["sequence"], ["s"], perm=[1, 0, 2]),
        Node("LSTM", ["s", "W", "R"], ["", "h"], hidden_size=7),
        Node("Transpose", ["h"], ["ht"], perm=[1, 2, 0]),
        Node("Reshape", ["ht", "plane"], ["flat"]),
        Node("Expand", ["flat", "size"], ["b"]),
    ]
    sizes = {"rows": np.array([0, 6, 64]), "plane": np.array([0, 7, 1, 1]), "size": np.array([1, 7, 4, 4])}
    model = network(nodes, {**sizes, "W": normal(1, 28, 64), "R": normal(1, 28, 7)})
    model.graph.initializers["w2"].const_value = ir.tensor(normal(5, 7, 3, 3), name="w2")
    return model


def fused_matmul(opset: int = 21) -> ir.Model:
    product = Node("FusedMatMul", ["a", "w"], ["b"], domain="com.microsoft", alpha=0.5)
    return network([product], {"w": normal(8, 8)}, opset=opset, domains=["com.microsoft"])


def bias_gelu() -> ir.Model:
    nodes = [
        Node("Transpose", ["a"], ["last"], perm=[0, 2, 3, 1]),
        Node("BiasGelu", ["last", "bias"], ["gelu"], domain="com.microsoft"),
        Node("Transpose", ["gelu"], ["b"], perm=[0, 3, 1, 2]),
    ]
    return network(nodes, {"bias": normal(6)}, domains=["com.microsoft"])


def unique_network() -> ir.Model:
    """Four outputs, of sizes that depend on the data."""
    nodes = [
        Node("Unique", ["a"], ["sorted", "first", "inverse", "counts"]),
        Node("Gather", ["sorted", "inverse"], ["again"]),
        Node("Shape", ["a"], ["shape"]),
        Node("Reshape", ["again", "shape"], ["b"]),
    ]
    return network(nodes)


def affine_grid() -> ir.Model:
    """Integers that follow the batch are an argument, not a constant."""
    nodes = [
        Node("GlobalAveragePool", ["a"], ["pooled"]),
        Node("Reshape", ["pooled", "matrix"], ["theta"]),
        Node("Shape", ["a"], ["size"]),
        Node("AffineGrid", ["theta", "size"], ["grid"], align_corners=1),
        Node("GridSample", ["a", "grid"], ["b"]),
    ]
    return network(nodes, {"matrix": np.array([0, 2, 3])})


def gelus() -> ir.Model:
    """Ops of the runtime's own that have rows."""
    nodes = [
        Node("QuickGelu", ["a"], ["q"], domain="com.microsoft", alpha=1.5),
        Node("Gelu", ["q"], ["g"], domain="com.microsoft"),
        Node("FastGelu", ["g"], ["b"], domain="com.microsoft"),
    ]
    return network(nodes, domains=["com.microsoft"])


def scaler() -> ir.Model:
    nodes = [
        Node("Reshape", ["a", "flat"], ["rows"]),
        Node("Scaler", ["rows"], ["scaled"], domain="ai.onnx.ml", offset=[0.1], scale=[0.7]),
        Node("Reshape", ["scaled", "plane"], ["b"]),
    ]
    sizes = {"flat": np.array([0, 384]), "plane": np.array([0, 6, 8, 8])}
    return network(nodes, sizes, domains=["ai.onnx.ml"])


NETWORKS: dict[str, Any] = {
    "If": if_network, "Loop": loop_network, "Scan": scan_network, "LSTM": lstm_network, "Unique": unique_network,
    "AffineGrid": affine_grid, "com.microsoft.FusedMatMul": fused_matmul, "com.microsoft.BiasGelu": bias_gelu,
    "ai.onnx.ml.Scaler": scaler,
}  # fmt: skip


def images(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 10, 10)).astype(np.float32)


@pytest.mark.parametrize("what", NETWORKS)
def test_a_network_with_the_op_is_proven(what: str, caplog: pytest.LogCaptureFixture) -> None:
    served._announce.cache_clear()
    data = {"x": images()}
    with caplog.at_level(logging.WARNING, logger="bitwright"):
        quantized = bw.quantize(NETWORKS[what](), data, target="onnxruntime-x64-avx2")
        found = quantized.verify(data, batch=4)
    assert found.proven and found.mismatches == 0
    assert quantized.integer_mac_share() == 1.0
    assert (quantized.evaluate(data).sqnr_db or 0) > 15, "the file computes something else than the float network"
    told = f"{what} has no row in the op table: it runs in ONNX Runtime, without gradients"
    assert [r.message for r in caplog.records if "no row" in r.message] == [told]


@pytest.mark.parametrize("what", NETWORKS)
def test_the_program_gives_what_the_runtime_gives(what: str) -> None:
    model = normalise(NETWORKS[what]())
    program = build(model, {})
    for count in (1, 3):
        x = images(count)
        with torch.no_grad():
            found = program.run({"x": torch.from_numpy(x)})["y"].numpy()
        (expected,) = float_session(model).run(None, {"x": x})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_ops_of_other_domains_that_have_rows_are_trained() -> None:
    module = build(normalise(gelus()), {}).module
    first = next(p for p in module.parameters() if p.shape == (6, 3, 3, 3))
    first.requires_grad_(True)
    module(torch.from_numpy(images(2)))[0].square().sum().backward()
    assert first.grad is not None and float(first.grad.abs().sum()) > 0
    assert not any(isinstance(m, served.Served) for m in module.modules())


@pytest.mark.parametrize("opset", [9, 13, 17])
def test_operator_sets_are_converted_around_ops_of_other_domains(opset: int) -> None:
    model = normalise(fused_matmul(opset))
    assert [node.op_type for node in model.graph] == ["Conv", "FusedMatMul", "Conv"]
    assert str(model.graph[1].outputs[0].shape) == "[batch,6,8,8]"


def test_an_overlay_reaches_weights_that_the_runtime_reads() -> None:
    model = normalise(bias_gelu())
    x = torch.from_numpy(images(2))
    before = build(model, {}).run({"x": x})["y"]
    after = build(model, {"bias": torch.ones(6)}).run({"x": x})["y"]
    assert not torch.allclose(before, after)


def test_a_copy_of_the_program_computes_the_same() -> None:
    module = build(normalise(if_network()), {}).module
    x = torch.from_numpy(images(2))
    assert torch.equal(copy.deepcopy(module)(x)[0], module(x)[0])


def test_a_gradient_is_refused_with_the_nodes_name() -> None:
    module = build(normalise(fused_matmul()), {}).module
    weights = {name: p for name, p in module.named_parameters() if p.ndim == 4}
    for p in weights.values():
        p.requires_grad_(True)
    (y,) = module(torch.from_numpy(images(2)))
    with pytest.raises(
        UnsupportedError,
        match=r"the node of 'b': com\.microsoft\.FusedMatMul runs in ONNX Runtime, which gives no grad",
    ):
        y.square().sum().backward()


def test_what_is_after_the_op_can_be_trained() -> None:
    """Only weights before the op lose their gradient."""
    model = normalise(fused_matmul())
    module = build(model, {}).module
    last = next(p for p in module.parameters() if p.shape == (5, 6, 3, 3))
    last.requires_grad_(True)
    module(torch.from_numpy(images(2)))[0].square().sum().backward()
    assert last.grad is not None and float(last.grad.abs().sum()) > 0


def test_an_op_that_the_runtime_does_not_know_is_refused_by_name() -> None:
    nope = Node("Nope", ["a"], ["b"], domain="com.microsoft", name="/head/Nope")
    with pytest.raises(
        UnsupportedError,
        match=r"node '/head/Nope': ONNX Runtime .* does not run com\.microsoft\.Nope: .*; export the network without",
    ):
        normalise(network([nope], domains=["com.microsoft"]))
    other = Node("Nope", ["a"], ["b"], domain="mmcv", name="/head/Nope")
    with pytest.raises(UnsupportedError, match="node '/head/Nope' is Nope of the domain 'mmcv'"):
        normalise(network([other], domains=["mmcv"]))


def test_an_op_without_a_kernel_is_refused_by_name() -> None:
    """Of ONNX's own domain, but the runtime has no kernel for these types."""
    nodes = [
        Node("Cast", ["a"], ["whole"], to=TensorProto.INT16),
        Node("CumProd", ["whole", "axis"], ["product"], name="/head/CumProd"),
        Node("Cast", ["product"], ["b"], to=FLOAT),
    ]
    assert "CumProd" not in OPS
    model = normalise(network(nodes, {"axis": np.array(1)}, opset=26))
    with pytest.raises(
        UnsupportedError, match=r"node '/head/CumProd': CumProd has no row in the op table, and ONNX Runtime .* cannot"
    ):
        build(model, {})
