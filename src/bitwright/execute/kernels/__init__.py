"""Integer kernels on torch, one row for each op (or kind of region) that some target runs in integers.

A row's function takes the `Parts` of a region and returns a module: codes of the region's operands in, codes of its
output out, bit for bit what the runtime gives. Codes travel as uint8. `rint` rounds half to even.
"""

from __future__ import annotations

from bitwright.lookup import Row

KERNELS: dict[str, Row] = {
    # weighted
    "Conv": Row("bitwright.execute.kernels.weighted:weighted", "exact int32 sums, requantized for each channel"),
    "Gemm": Row("bitwright.execute.kernels.weighted:weighted", "exact int32 sums, requantized for each channel"),
    # of two activations
    "Add": Row("bitwright.execute.kernels.binary:add", "two fused multiply-adds in float32"),
    "Mul": Row("bitwright.execute.kernels.binary:mul", "exact product, one factor, zero point added before rounding"),
    "MatMul": Row("bitwright.execute.kernels.binary:matmul", "exact int32 sums, one factor"),
    # pools
    "AveragePool": Row("bitwright.execute.kernels.pool:average_pool", "float32 sums of dequantized codes"),
    "GlobalAveragePool": Row("bitwright.execute.kernels.pool:global_average_pool", "exact sums, one factor"),
    # functions
    "Table": Row("bitwright.execute.kernels.table:table", "a chain of elementwise ops as a table of 256 codes"),
    "Softmax": Row("bitwright.execute.kernels.softmax:softmax", "exponentials from a table, float32 sums"),
    # bounds
    "Relu": Row("bitwright.execute.kernels.moving:bound", "a bound on the codes"),
    "Clip": Row("bitwright.execute.kernels.moving:bound", "two bounds on the codes"),
    # what moves codes
    "Concat": Row("bitwright.execute.kernels.moving:concat", "codes side by side"),
    "DepthToSpace": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Expand": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Flatten": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Gather": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "GlobalMaxPool": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Identity": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "MaxPool": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Pad": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes; zero is the zero point"),
    "Reshape": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Resize": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes (nearest)"),
    "Slice": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "SpaceToDepth": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Squeeze": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Tile": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Transpose": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
    "Unsqueeze": Row("bitwright.execute.kernels.moving:codes", "the op itself, on codes"),
}

#: Of the kernels above, those that OpenVINO computes in another way.
_OPENVINO: dict[str, Row] = {
    "Conv": Row("bitwright.execute.kernels.openvino:weighted", "exact sums, scaled, bias added, FakeQuantize"),
    "Gemm": Row("bitwright.execute.kernels.openvino:weighted", "exact sums, scale and bias inside the FakeQuantize"),
    "Add": Row("bitwright.execute.kernels.openvino:add", "one operand at the scale of the other, FakeQuantize"),
    "AveragePool": Row("bitwright.execute.kernels.openvino:average_pool", "float32 means of codes, FakeQuantize"),
    "GlobalAveragePool": Row("bitwright.execute.kernels.openvino:global_average_pool", "means of codes, FakeQuantize"),
}
_ALIKE = ("bitwright.execute.kernels.moving:", "bitwright.execute.kernels.table:")

#: How runtimes round: the kernels of each. What moves codes and what is a table of codes is the same for all.
ARITHMETICS: dict[str, dict[str, Row]] = {
    "onnxruntime": KERNELS,
    "openvino": {op: row for op, row in KERNELS.items() if row.path.startswith(_ALIKE)} | _OPENVINO,
}
