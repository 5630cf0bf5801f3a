"""TensorRT, explicit quantization: int8 with zero point 0, per tensor for activations and per channel for weights.

The rules are those that its documentation recommends for placing QuantizeLinear and DequantizeLinear (Q/DQ):

1. All inputs of weighted ops are quantized, their outputs are not: what follows a convolution is fused with it.
2. Of a residual Add only the operand that skips is quantized. The other is the output of a convolution, with which
   the Add is fused: int8 comes out of it only if the operand that skips is int8, and a pair between the convolution
   and the Add would keep the two apart.
3. Pools compute in int8 when their input is quantized and what reads them is. What only moves values (max pool,
   activations, reshapes ...) has no pair of its own: TensorRT moves Q and DQ across.
4. Biases stay float32; batch norm and activations are fused by TensorRT.

No file was run in TensorRT here; the rules are tested as the structure of the file.
"""

from __future__ import annotations

from bitwright.targets.target import OpRule, Target

_WEIGHTED = ("constant weight", "constant bias", "float32")

TENSORRT = Target(
    name="tensorrt",
    runtime="tensorrt",
    rules=(
        OpRule(kind="Conv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="DepthwiseConv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="ConvTranspose", how="kernel", checks=_WEIGHTED, weight_axis=1),
        OpRule(kind="Gemm", how="kernel", checks=(*_WEIGHTED, "plain gemm"), weight_axis=0),
        OpRule(kind="MatMul", how="kernel", checks=("float32", "two activations", "matrices")),
        OpRule(kind="Add", how="kernel", checks=("float32", "two activations"), fuses=True),
        OpRule(kind="GlobalAveragePool", how="kernel", checks=("float32",)),
        OpRule(kind="AveragePool", how="kernel", checks=("float32", "plain average")),
        OpRule(kind="MaxPool", how="codes", checks=("float32", "no indices")),
        OpRule(kind="Relu", how="codes", checks=("float32",)),
        OpRule(kind="Clip", how="codes", checks=("float32", "constant bounds")),
        OpRule(kind="Reshape", how="codes", checks=("float32",)),
        OpRule(kind="Flatten", how="codes", checks=("float32",)),
        OpRule(kind="Transpose", how="codes", checks=("float32",)),
        OpRule(kind="Squeeze", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Unsqueeze", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Slice", how="codes", checks=("float32", "constant arguments")),
        OpRule(kind="Concat", how="join", checks=("float32", "all activations")),
    ),
    activation_bits=(8,),
    weight_packing={"affine": {8: "int8"}},
    bias_bits=None,
    saturates=False,
    source="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html",
    activation_formats=("affine",),
    form="qdq-float",
    quantizers="inputs",
    symmetric_activations=True,
)
