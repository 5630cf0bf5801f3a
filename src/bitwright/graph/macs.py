"""Multiply-accumulates and parameters of a network.

`MAC(conv) = O * (I/g) * kh * kw * Hout * Wout` for one image; `MAC(gemm) = I * O`. Bias, batch norm, adds and pools
are not counted (the convention of the papers; ResNet-18 at 224: 1,814,073,344).
"""

from __future__ import annotations

import math

import onnx_ir as ir

#: Ops that multiply by a weight, with the input that holds it.
WEIGHTED_OPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
#: Inputs that set how an op works and that no training changes, although they are floating-point.
SETTINGS = {"Resize": (1, 2, 3), "Upsample": (1,), "Clip": (1, 2), "Pad": (2,), "Range": (0, 1, 2)}


def node_macs(node: ir.Node) -> int:
    """MACs of one node for one image; 0 for ops that are not counted or whose shapes are unknown.

    Where the first axis holds several rows of each image (windows, tokens), all of them are counted.
    """
    if node.op_type not in WEIGHTED_OPS or len(node.inputs) < 2:
        return 0
    x, w = node.inputs[0], node.inputs[1]
    y = node.outputs[0]
    if x is None or w is None or x.shape is None or w.shape is None or y.shape is None or not y.shape:
        return 0
    weight = [d for d in w.shape if isinstance(d, int)]
    if node.op_type == "Conv":
        return rows_per_image(node, y.shape) * math.prod(weight) * _plane(y.shape)
    if node.op_type == "ConvTranspose":
        return rows_per_image(node, y.shape) * math.prod(weight) * _plane(x.shape)
    if node.op_type == "Gemm":
        return rows_per_image(node, y.shape) * math.prod(weight)
    inner = weight[-2] if len(weight) > 1 else weight[0]
    return rows_per_image(node, y.shape) * math.prod(d for d in y.shape[1:] if isinstance(d, int)) * inner


def _plane(shape: ir.Shape) -> int:
    return math.prod(d for d in shape[2:] if isinstance(d, int))


def rows_per_image(node: ir.Node, shape: ir.Shape) -> int:
    """Rows of the first axis for each image: 1, or k where the axis is `k*batch`."""
    first = shape[0]
    if not isinstance(first, int):
        factor = (first.value or "").partition("*")[0]
        return int(factor) if factor.isdigit() else 1
    inputs = node.graph.inputs if node.graph is not None else []
    fixed = [v.shape[0] for v in inputs if v.shape]
    batch = fixed[0] if fixed and isinstance(fixed[0], int) else 1
    return first // batch if batch and first % batch == 0 else 1


def count_macs(model: ir.Model) -> int:
    """MACs of the whole network for one image."""
    return sum(node_macs(node) for node in model.graph)


def count_parameters(model: ir.Model) -> int:
    """Elements of the floating-point initializers, without batch norm's running statistics.

    These are what `nn.Module.parameters()` counts: weights, biases, batch norm's gamma and beta. Scalars are bounds
    and exponents of ops, not parameters; nor are the factors of a resize.
    """
    other = {v for n in model.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:5]}
    other |= {n.inputs[i] for n in model.graph for i in SETTINGS.get(n.op_type, ()) if i < len(n.inputs)}
    return sum(
        v.const_value.size
        for v in model.graph.initializers.values()
        if v.const_value is not None and v.const_value.dtype.is_floating_point() and v not in other
        and len(v.const_value.shape) > 0
    )  # fmt: skip
