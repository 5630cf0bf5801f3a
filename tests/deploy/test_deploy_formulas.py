"""Every integer formula against ONNX Runtime's own kernel, on awkward shapes and random scales: no code may differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright import quantize
from bitwright.deploy.runtimes.onnxruntime import products_saturate

GENERATOR = np.random.default_rng(7)


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((GENERATOR.standard_normal(shape) * 0.3).astype(np.float32), name)


def ints(name: str, values: list[int]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def network(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    shape: tuple[int, ...] = (6, 11, 13),
    inputs: tuple[str, ...] = ("x",),
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def conv(x: str, y: str, weight: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight, f"{weight}.b"], [y], **attributes)


def conv_network(out: int, group: int, kernel: tuple[int, int], **attributes: Any) -> ir.Model:
    node = conv("x", "y", "w", group=group, **attributes)
    return network([node], [constant("w", out, 6 // group, *kernel), constant("w.b", out)])


def after_conv(op: str, *arguments: str, constants: tuple[onnx.TensorProto, ...] = (), **attributes: Any) -> ir.Model:
    """A convolution, then the op: what the op reads has been quantized by a kernel."""
    nodes = [conv("x", "h", "w", pads=[1] * 4), helper.make_node(op, ["h", *arguments], ["y"], **attributes)]
    return network(nodes, [constant("w", 10, 6, 3, 3), constant("w.b", 10), *constants])


NETWORKS = {
    "conv": lambda: conv_network(7, 1, (3, 3)),
    "conv, asymmetric pads, strides": lambda: conv_network(5, 1, (3, 2), pads=[1, 0, 2, 1], strides=[2, 3]),
    "conv, dilated": lambda: conv_network(5, 1, (3, 3), dilations=[2, 1], pads=[2, 1, 2, 1]),
    "conv, grouped": lambda: conv_network(9, 3, (3, 3), pads=[1] * 4),
    "conv, depthwise": lambda: conv_network(6, 6, (3, 3), pads=[1] * 4),
    "conv, depthwise 5x5 strided": lambda: conv_network(6, 6, (5, 5), pads=[2] * 4, strides=[2, 2]),
    "conv, depthwise multiplier": lambda: conv_network(12, 6, (3, 3)),
    "conv, 1x1": lambda: conv_network(33, 1, (1, 1)),
    "conv, no bias": lambda: network([helper.make_node("Conv", ["x", "w"], ["y"])], [constant("w", 5, 6, 3, 3)]),
    "conv 1d": lambda: network(
        [conv("x", "y", "w", pads=[1, 1])], [constant("w", 5, 7, 3), constant("w.b", 5)], (7, 19)
    ),
    "conv relu": lambda: network(
        [conv("x", "h", "w"), helper.make_node("Relu", ["h"], ["y"])], [constant("w", 5, 6, 3, 3), constant("w.b", 5)]
    ),
    "conv relu6 that bites": lambda: network(
        [conv("x", "h", "w"), helper.make_node("Clip", ["h", "low", "high"], ["y"])],
        [
            constant("w", 5, 6, 3, 3),
            constant("w.b", 5),
            numpy_helper.from_array(np.array(-0.31, dtype=np.float32), "low"),
            numpy_helper.from_array(np.array(0.77, dtype=np.float32), "high"),
        ],
    ),
    "gemm": lambda: network(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], [constant("w", 5, 37), constant("b", 5)], (37,)
    ),
    "gemm, not transposed": lambda: network(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [constant("w", 37, 5), constant("b", 5)], (37,)
    ),
    "gemm, no bias": lambda: network(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], [constant("w", 5, 37)], (37,)
    ),
    "add": lambda: network([helper.make_node("Add", ["x", "z"], ["y"])], [], inputs=("x", "z")),
    "add to itself": lambda: network([helper.make_node("Add", ["x", "x"], ["y"])], []),
    "add relu": lambda: network(
        [helper.make_node("Add", ["x", "z"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], [], inputs=("x", "z")
    ),
    "global average pool": lambda: after_conv("GlobalAveragePool"),
    "average pool": lambda: after_conv("AveragePool", kernel_shape=[3, 2], strides=[2, 1]),
    "average pool, padded": lambda: after_conv("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 2], strides=[2, 2]),
    "average pool, padding counted": lambda: after_conv(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "max pool": lambda: after_conv("MaxPool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
    "max pool, dilated": lambda: after_conv("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    "max pool, rounded up": lambda: after_conv("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "transpose": lambda: after_conv("Transpose", perm=[0, 2, 3, 1]),
    "flatten": lambda: after_conv("Flatten"),
    "reshape": lambda: after_conv("Reshape", "to", constants=(ints("to", [0, 5, -1]),)),
    "slice": lambda: after_conv(
        "Slice",
        "from",
        "to",
        "axes",
        "steps",
        constants=(ints("from", [1, 0]), ints("to", [9, 11]), ints("axes", [1, 2]), ints("steps", [2, 3])),
    ),
    "pad": lambda: after_conv("Pad", "pads", constants=(ints("pads", [0, 3, 1, 0, 0, 2, 0, 1]),)),
    "pad, reflected": lambda: after_conv(
        "Pad", "pads", constants=(ints("pads", [0, 0, 1, 2, 0, 0, 2, 1]),), mode="reflect"
    ),
    "squeeze": lambda: after_conv("Unsqueeze", "axes", constants=(ints("axes", [2]),)),
    "relu alone": lambda: network(
        [conv("x", "h", "w"), helper.make_node("Relu", ["h"], ["r"]), helper.make_node("Add", ["h", "r"], ["y"])],
        [constant("w", 5, 6, 3, 3), constant("w.b", 5)],
    ),
    "concat": lambda: network(
        [
            conv("x", "a", "w", pads=[1] * 4),
            conv("x", "b", "v"),
            helper.make_node("MaxPool", ["x"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Concat", ["a", "b", "c"], ["y"], axis=1),
        ],
        [constant("w", 5, 6, 3, 3), constant("w.b", 5), constant("v", 3, 6, 1, 1), constant("v.b", 3)],
    ),
}


@pytest.mark.parametrize(
    "settings", [(), ("A=5",), ("W=4,A=8",)], ids=["8 bits", "5-bit activations", "4-bit weights"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_formula_equals_the_kernel(name: str, settings: tuple[str, ...]) -> None:
    model = NETWORKS[name]()
    if settings == ("W=4,A=8",) and not any(n.op_type in ("Conv", "Gemm") for n in model.graph):
        pytest.skip("has no weight")
    # Values far apart in scale, so that both saturation and rounding happen.
    data = {}
    for i, value in enumerate(model.graph.inputs):
        shape = [d for d in value.shape or () if isinstance(d, int)]
        data[value.name or ""] = (GENERATOR.standard_normal((16, *shape)) * (i + 1) * 1.7 + 0.3 * i).astype(np.float32)
    served = {name: array * 1.2 for name, array in data.items()}
    for target in ("onnxruntime-x64-avx2", "onnxruntime-x64"):
        quantized = quantize(model, data, target=target, set=settings, ends=0)
        assert quantized.plan.float_sites() == {}
        precise = target == "onnxruntime-x64" and products_saturate()
        for batch, threads in ((1, 1), (16, 2)):
            found = quantized.verify(served, batch=batch, threads=threads, precise=precise)
            assert found.mismatches == 0, found.by_tensor
            assert found.float_kernels == {}
            assert found.codes > 0


def test_eight_bit_weights_saturate_where_there_is_no_vnni() -> None:
    """The reason for two targets: on such a machine the proof of the other target's file fails, and says so."""
    weight = numpy_helper.from_array(np.full((4, 64, 1, 1), 1.0, dtype=np.float32), "w")
    model = network([helper.make_node("Conv", ["x", "w"], ["y"])], [weight], (64, 4, 4))
    data = {"x": np.linspace(0, 1, 2 * 64 * 16, dtype=np.float32).reshape(2, 64, 4, 4)}
    found = quantize(model, data, target="onnxruntime-x64").verify(data)
    assert (found.mismatches > 0) == products_saturate()
    assert found.saturates == products_saturate()
    assert found.proven != products_saturate()
    assert quantize(model, data, target="onnxruntime-x64-avx2").verify(data).proven


@pytest.mark.parametrize("op", ["ConvTranspose", "Conv", "Gemm", "Sigmoid", "Softmax", "Mul", "MatMul"])
def test_the_runtime_leaves_float_what_the_plan_leaves_float(op: str) -> None:
    """Between quantized neighbours the runtime would make integer kernels of these, in its own way."""
    constants = [constant("w", 6, 6, 3, 3), constant("w.b", 6), constant("v", 6, 6, 3, 3), constant("v.b", 6)]
    shape: tuple[int, ...] = (6, 11, 11)
    first, last = conv("x", "h", "w", pads=[1] * 4), conv("m", "y", "v", pads=[1] * 4)
    middle = {
        "ConvTranspose": ["h", "inner.w", "inner.b"],
        "Conv": ["h", "inner.w", "inner.b"],
        "Gemm": ["h", "inner.w"],
        "Sigmoid": ["h"],
        "Softmax": ["h"],
        "Mul": ["h", "h"],
        "MatMul": ["h", "h"],
    }[op]
    attributes: dict[str, Any] = {"pads": [1] * 4} if op.startswith("Conv") else {}
    constants += [constant("inner.w", 6, 6, 3, 3), constant("inner.b", 6)] if op.startswith("Conv") else []
    if op == "Gemm":
        shape = (37,)
        constants = [constant("w", 37, 37), constant("v", 37, 37), constant("inner.w", 37, 37)]
        first, last = (helper.make_node("Gemm", [a, b], [c]) for a, b, c in (("x", "w", "h"), ("m", "v", "y")))
    model = network([first, helper.make_node(op, middle, ["m"], name="inner", **attributes), last], constants, shape)
    data = {"x": GENERATOR.standard_normal((16, *shape)).astype(np.float32)}
    quantized = quantize(model, data, target="onnxruntime-x64-avx2", set=["inner:float"], ends=0)
    assert quantized.plan.qspec("h") is not None
    found = quantized.verify(data)
    assert found.unplanned_kernels == {}
    assert found.float_kernels == {}
    assert found.mismatches == 0
    # The island's numbers are those of plain float, so the whole simulation gives the runtime's output.
    assert found.proven


def test_two_equal_ops_are_watched_although_the_runtime_merges_them() -> None:
    """Read out, each keeps a node of its own; what is computed is the same."""
    nodes = [
        conv("x", "a", "w"),
        conv("x", "b", "w"),
        helper.make_node("MaxPool", ["a"], ["c"], kernel_shape=[2, 2]),
        helper.make_node("MaxPool", ["b"], ["d"], kernel_shape=[2, 2]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    model = network(nodes, [constant("w", 5, 6, 3, 3), constant("w.b", 5)])
    data = {"x": GENERATOR.standard_normal((4, 6, 11, 13)).astype(np.float32)}
    found = quantize(model, data, target="onnxruntime-x64-avx2", ends=0).verify(data)
    assert found.proven
    assert found.tensors == 6
