"""The oldest version of a runtime that runs a file.

ONNX Runtime: by operator set and IR version the table of its documentation says it, up to operator set 21; newer sets,
and types of fewer than 8 bits, were found by experiment. Files of one small network with int8, 4-bit (UINT4),
byte-packed, log2, binary and weight-only weights were loaded into 1.17.3 and one or two patch releases of each of 1.18
to 1.30: each runs from the version below on, with the outputs of 1.31.1 bit for bit, and fails to load before.

OpenVINO has no such table. Of the releases that were tried, 2024.4 is the first that takes 4-bit weights; 2024.2 does
not, 2024.3 was not tried.

Source: https://onnxruntime.ai/docs/reference/compatibility.html#onnx-opset-support
"""

from __future__ import annotations

import onnx_ir as ir

#: Operator set -> first release that reads it; what is older than 18 needs no more than 1.14 either.
OPSETS = {
    18: (1, 14), 19: (1, 15), 20: (1, 17), 21: (1, 18), 22: (1, 21), 23: (1, 23), 24: (1, 24), 25: (1, 24),
    26: (1, 25),
}  # fmt: skip
#: IR version -> first release that reads it.
IR_VERSIONS = {8: (1, 14), 9: (1, 16), 10: (1, 18), 11: (1, 23), 12: (1, 24), 13: (1, 24)}
#: Types of fewer than 8 bits -> first release that takes them as initializers, and first that casts them.
STORED = {4: (1, 19), 2: (1, 24)}
CAST = {4: (1, 23), 2: (1, 24)}
NARROW = {
    ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT2: 2, ir.DataType.UINT2: 2,
}  # fmt: skip
#: Domains of ops that the runtime has.
DOMAINS = {"", "ai.onnx", "com.microsoft"}


#: First release of OpenVINO that takes every kind of stored weights.
OPENVINO = (2024, 4)


def needs(model: ir.Model, runtime: str = "onnxruntime") -> dict[str, str]:
    """`{runtime: least version}` of the runtimes that run a file; empty where an op is of another domain.

    Args:
        model: the file.
        runtime: of its target; ONNX Runtime reads the files of the others too.

    Example:
        >>> x = ir.Value(name="x")
        >>> relu = ir.Node("", "Relu", [x])
        >>> graph = ir.Graph([x], relu.outputs, nodes=[relu], opset_imports={"": 21})
        >>> needs(ir.Model(graph, ir_version=10))
        {'onnxruntime': '>=1.18'}
    """
    if any(node.domain not in DOMAINS for node in model.graph):
        return {}
    opset = model.graph.opset_imports.get("", 0)
    least = [_at_least(OPSETS, opset), _at_least(IR_VERSIONS, model.ir_version)]
    for value in model.graph.initializers.values():
        dtype = value.dtype or (None if value.const_value is None else value.const_value.dtype)
        width = None if dtype is None else NARROW.get(dtype)
        if width is not None:
            least.append((CAST if _is_cast(value) else STORED)[width])
    major, minor = max(least)
    found = {"onnxruntime": f">={major}.{minor}"}
    return found | ({"openvino": f">={OPENVINO[0]}.{OPENVINO[1]}"} if runtime == "openvino" else {})


def _is_cast(value: ir.Value) -> bool:
    return any(use.node.op_type == "Cast" for use in value.uses())


def _at_least(table: dict[int, tuple[int, int]], wanted: int) -> tuple[int, int]:
    """The release of the first row that is no older than `wanted`."""
    return table[next(row for row in sorted(table) if row >= wanted)]
