"""Half precision as float32.

A float16 or bfloat16 file computes what it was trained to compute in fewer bits; every half-precision number is a
float32 number, so the same network in float32 is the more exact reference that quantization starts from.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
#: Attributes that name the type of an op's output.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen(model: ir.Model) -> bool:
    """Make every half-precision tensor float32, in place; whether there was one.

    Inputs and outputs of the network become float32 too.
    """
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph.all_nodes() for output in node.outputs]
    found = [value for value in values if value.dtype in HALF or _is_half(value.const_value)]
    for value in found:
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
        value.dtype = ir.DataType.FLOAT
    nodes = [_widen_attributes(node) for node in model.graph.all_nodes()]
    return bool(found) or any(nodes)


def _is_half(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype in HALF


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _widen_attributes(node: ir.Node) -> bool:
    changed = False
    for name, attribute in list(node.attributes.items()):
        if name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in HALF:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            changed = True
        elif attribute.type == ir.AttributeType.TENSOR and _is_half(attribute.as_tensor()):
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))
            changed = True
    return changed
