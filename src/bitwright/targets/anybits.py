"""Any width: what research asks of a network, with the placement of `onnxruntime-x64` and no runtime's kernels.

Weights and activations of 1 to 16 bits each. Files are QONNX, a float graph with quantizers in it, so every op
computes in float and only the values between ops are on a grid; accuracy is that of our own simulation.
"""

from __future__ import annotations

import dataclasses

from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64

_WIDTHS = tuple(range(1, 17))
_AFFINE = dict.fromkeys(_WIDTHS, "grid")

ANYBITS = dataclasses.replace(
    ONNXRUNTIME_X64,
    name="anybits",
    runtime="any that reads QONNX",
    activation_bits=_WIDTHS,
    weight_packing={"affine": _AFFINE, "pow2": _AFFINE, "binary": {1: "grid"}, "ternary": {2: "grid"}},
    source="https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/intquant_v1.md",
    form="qonnx",
)
