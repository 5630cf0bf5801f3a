"""The placement that papers on low-bit post-training quantization report with: for comparison with their tables.

Only what a layer with weights reads is quantized, and it is quantized where it is made, after its activation function:
pools, concatenations and whatever else moves values pass it on and have no quantizer of their own. So

1. the network's input and its logits are not quantized;
2. of a residual block only the sum after its activation is, not the operands: a convolution whose output an Add alone
   reads has no quantizer at its output;
3. biases stay float;
4. first and last layer have weights of 8 bits, and what the last layer reads has 8 bits (`--ends`), where it is made:
   before the pool, if there is one. The output of the first layer has the width of the others, as in QDrop and
   PD-Quant (BRECQ's code leaves it at 8 bits).

An integer engine cannot run this as it stands: it has to add numbers of two scales that nothing rounded. Weights and
activations have 1 to 16 bits; files are QONNX, and accuracy is that of our own simulation.

Source: Li et al., BRECQ, ICLR 2021; Wei et al., QDrop, ICLR 2022; Liu et al., PD-Quant, CVPR 2023, and their code.
"""

from __future__ import annotations

import dataclasses

from bitwright.targets.anybits import ANYBITS
from bitwright.targets.target import OpRule

_WEIGHTED = ("constant weight", "constant bias", "float32")
_MAKERS = (
    "Add", "Mul", "MatMul", "Softmax", "Table", "Relu", "Clip", "LayerNormalization", "InstanceNormalization",
    "GroupNormalization",
)  # fmt: skip
_PASSING = (
    "GlobalAveragePool", "AveragePool", "GlobalMaxPool", "MaxPool", "Resize", "Identity", "Reshape", "Flatten",
    "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Pad",
    "Concat",
)  # fmt: skip

PAPER = dataclasses.replace(
    ANYBITS,
    name="paper",
    rules=(
        OpRule(kind="Conv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="DepthwiseConv", how="kernel", checks=_WEIGHTED, weight_axis=0),
        OpRule(kind="Gemm", how="kernel", checks=(*_WEIGHTED, "plain gemm"), weight_axis=0),
        *(OpRule(kind=kind, how="kernel", checks=("float32",)) for kind in _MAKERS),
        *(OpRule(kind=kind, how="passes", checks=("float32",)) for kind in _PASSING),
    ),
    bias_bits=None,
    quantizers="producers",
    source="https://openreview.net/forum?id=POWv6hDd9XH",
)
