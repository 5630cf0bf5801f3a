"""Which outputs of a network count where errors are measured."""

from __future__ import annotations

import onnx_ir as ir

from bitwright.errors import InputError


def real_outputs(model: ir.Model) -> list[int]:
    """Which outputs of a network are real numbers: whole ones (classes, indices) follow from others, and do not count.

    Raises:
        InputError: none is.

    Example:
        >>> graph = ir.Graph([], [ir.val("y", ir.DataType.FLOAT), ir.val("class", ir.DataType.INT64)], nodes=[])
        >>> real_outputs(ir.Model(graph, ir_version=10))
        [0]
    """
    outputs = model.graph.outputs
    found = [i for i, value in enumerate(outputs) if value.dtype is None or value.dtype.is_floating_point()]
    if not found:
        raise InputError("network", "gives no real numbers", "an output of them, as scores", "cut it before they end")
    return found
