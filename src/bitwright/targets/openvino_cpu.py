"""OpenVINO on x86-64: QDQ files, whose pairs become FakeQuantize and then int8 kernels of oneDNN.

The same files as for ONNX Runtime, in another arithmetic (`execute/kernels/openvino.py`): biases are added in float32,
and a convolution that computes a residual sum does not round its own result before it is added. Widths of activations
below 8 live in uint8 and are bounded by an integer Clip, which OpenVINO fuses. Every packing of weights that ends in
int8 codes is folded when the file is compiled; what is not is integer Mul, and shifts and masks of bits.

A 1x1 convolution with strides would not do: OpenVINO moves its strides to what comes before, and then computes it in
float32 where nothing else reads that; and without VNNI its int8 kernel gives other results from run to run with two
threads and more where the number of input channels is 8 above a multiple of 16 (2026.4.1). So the strides are written
as a max pool of single elements, which only moves codes.

Without VNNI the kernels of convolutions and gemms add pairs of products in int16 and saturate, as ONNX Runtime's do
(tested; the kernel of depthwise convolutions does not): such processors are a target of their own, with weights of at
most 7 bits.
"""

from __future__ import annotations

import dataclasses

from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64, ONNXRUNTIME_X64_AVX2
from bitwright.targets.target import OpRule, Target

_WEIGHTED = ("constant weight", "constant bias", "float32")
_COMPUTING = (
    OpRule(kind="Conv", how="kernel", checks=_WEIGHTED, weight_axis=0),
    OpRule(kind="DepthwiseConv", how="kernel", checks=_WEIGHTED, weight_axis=0),
    OpRule(kind="Gemm", how="kernel", checks=(*_WEIGHTED, "plain gemm"), weight_axis=0),
    OpRule(kind="Add", how="kernel", checks=("float32", "two activations", "one shape"), when="fed"),
    OpRule(kind="Table", how="kernel", checks=("float32", "float64 on torch"), when="between"),
    OpRule(kind="GlobalAveragePool", how="kernel", checks=("float32",)),
    OpRule(kind="AveragePool", how="kernel", checks=("float32", "plain average", "no counted padding")),
)

OPENVINO_CPU = dataclasses.replace(
    ONNXRUNTIME_X64,
    name="openvino-cpu",
    runtime="openvino",
    arithmetic="openvino",
    thins_first=True,
    rules=(*_COMPUTING, *(rule for rule in ONNXRUNTIME_X64.rules if rule.how != "kernel")),
    source="https://docs.openvino.ai/2026/openvino-workflow/model-optimization.html",
)

OPENVINO_CPU_AVX2: Target = dataclasses.replace(
    OPENVINO_CPU,
    name="openvino-cpu-avx2",
    weight_packing=ONNXRUNTIME_X64_AVX2.weight_packing,
    saturates=True,
)
