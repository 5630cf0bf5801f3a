"""Multiply-accumulates and parameters of a network.

`MAC(conv) = O * (I/g) * kh * kw * Hout * Wout` for one image; `MAC(gemm) = I * O`. Bias, batch norm, adds and pools are
not counted (the convention of the papers; ResNet-18 at 224: 1,814,073,344).
"""

from __future__ import annotations

import math

import onnx_ir as ir

#: Ops that multiply by a weight, with the input that holds it.
WEIGHTED_OPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def node_macs(node: ir.Node) -> int:
    """MACs of one node for a batch of one; 0 for ops that are not counted or whose shapes are unknown."""
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2:
        return 0
    x, w = node.inputs[0], node.inputs[1]
    y = node.outputs[0]
    if x is None or w is None or x.shape is None or w.shape is None or y.shape is None:
        return 0
    weight = [d for d in w.shape if isinstance(d, int)]
    if node.op_type == "Conv":
        return math.prod(weight) * _plane(y.shape)
    if node.op_type == "ConvTranspose":
        return math.prod(weight) * _plane(x.shape)
    if node.op_type == "Gemm":
        return math.prod(weight)
    inner = weight[-2] if len(weight) > 1 else weight[0]
    return math.prod(d for d in y.shape[1:] if isinstance(d, int)) * inner


def _plane(shape: ir.Shape) -> int:
    return math.prod(d for d in shape[2:] if isinstance(d, int))


def count_macs(model: ir.Model) -> int:
    """MACs of the whole network for a batch of one."""
    return sum(node_macs(node) for node in model.graph)


def count_parameters(model: ir.Model) -> int:
    """Elements of the floating-point initializers, without batch norm's running statistics.

    These are what `nn.Module.parameters()` counts: weights, biases, batch norm's gamma and beta (scalars are bounds
    and exponents of ops, not parameters).
    """
    statistics = {v for n in model.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:5]}
    return sum(
        v.const_value.size
        for v in model.graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype.is_floating_point() and v not in statistics
        and len(v.const_value.shape) > 0
    )  # fmt: skip
