"""ONNX Runtime on x86-64: QDQ pairs become QLinear kernels; codes pass through copies untouched.

uint8 activations times int8 weights run on VNNI and AMX; int8 x int8 runs no faster than float there. Widths below 8
live in uint8 and int8 and are bounded by an integer Clip; the formulas are in `docs/design.md`, section 4.

Without VNNI the kernel adds pairs of products, `x0 w0 + x1 w1`, in int16 and saturates: with 8-bit weights up to
2 * 255 * 127. With 7-bit weights the largest pair is 2 * 255 * 63 = 32,130 and fits. So processors without VNNI are a
target of their own, and a file for it gives the same codes on both.
"""

from __future__ import annotations

import dataclasses

from bitwright.targets.target import OpRule, Target

#: Weights of b bits as the integers that a kernel multiplies by; all fit int8, and tables stay within +-64.
_PLANES = {bits: "planes" for bits in (2, 3, 5, 6)}
_LEVELS = {
    "log2": dict.fromkeys((2, 3, 4), "planes"),
    "apot": dict.fromkeys((2, 3, 4, 5), "planes"),
    "codebook": dict.fromkeys((1, 2, 3, 4, 5, 6), "planes"),
    "binary": {1: "planes"},
    "ternary": {2: "planes"},
}
_AFFINE = {8: "int8", 7: "int8", 4: "uint4"} | _PLANES
_WEIGHTED = ("constant weight", "constant bias", "float32")

ONNXRUNTIME_X64 = Target(
    name="onnxruntime-x64",
    runtime="onnxruntime",
    rules=(
        OpRule(kind="Conv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="DepthwiseConv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="Gemm", how="kernel", checks=(*_WEIGHTED, "plain gemm"), weight_axis=0),
        OpRule(kind="Add", how="kernel", checks=("float32", "an activation"), when="fed"),
        OpRule(kind="Mul", how="kernel", checks=("float32", "an activation"), when="between"),
        OpRule(kind="MatMul", how="kernel", checks=("float32", "two activations", "matrices")),
        OpRule(kind="Softmax", how="kernel", checks=("float32", "known axis"), when="between"),
        OpRule(kind="Table", how="kernel", checks=("float32", "float64 on torch"), when="between"),
        OpRule(kind="GlobalAveragePool", how="kernel", checks=("float32",)),
        OpRule(kind="AveragePool", how="kernel", checks=("float32", "plain average")),
        OpRule(kind="GlobalMaxPool", how="codes", checks=("float32",)),
        OpRule(kind="MaxPool", how="codes", checks=("float32", "no indices")),
        OpRule(kind="Resize", how="codes", checks=("float32", "constant arguments", "nearest")),
        OpRule(kind="Relu", how="codes", checks=("float32",)),
        OpRule(kind="Clip", how="codes", checks=("float32", "constant bounds")),
        OpRule(kind="Identity", how="codes", checks=("float32",)),
        OpRule(kind="Reshape", how="codes", checks=("float32",)),
        OpRule(kind="Flatten", how="codes", checks=("float32",)),
        OpRule(kind="Transpose", how="codes", checks=("float32",)),
        OpRule(kind="Squeeze", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Unsqueeze", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Slice", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Gather", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Expand", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Tile", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="DepthToSpace", how="codes", checks=("float32",)),
        OpRule(kind="SpaceToDepth", how="codes", checks=("float32",)),
        OpRule(kind="Pad", how="codes", checks=("float32", "constant arguments", "zero padding")),
        OpRule(kind="Concat", how="join", checks=("float32", "an activation")),
    ),
    activation_bits=(1, 2, 3, 4, 5, 6, 7, 8),
    weight_packing={"affine": _AFFINE, "pow2": _AFFINE} | _LEVELS,
    bias_bits=32,
    saturates=False,
    source="https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
)

_NARROW = {bits: packing for bits, packing in _AFFINE.items() if bits < 8}
ONNXRUNTIME_X64_AVX2 = dataclasses.replace(
    ONNXRUNTIME_X64,
    name="onnxruntime-x64-avx2",
    weight_packing={"affine": _NARROW, "pow2": _NARROW} | _LEVELS,
    saturates=True,
)
