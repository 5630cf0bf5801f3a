"""Post-training quantization: one algorithm a file, each a step."""

from __future__ import annotations

from bitwright.lookup import Row

STEPS: dict[str, Row] = {
    "fold_batchnorm": Row(
        "bitwright.ptq.fold_batchnorm:FoldBatchNorm",
        "fold batch norm into the layer before it, keeping its statistics",
    ),
    "equalize": Row(
        "bitwright.ptq.equalize:Equalize", "make the weight ranges of neighbouring layers alike, before placing"
    ),
    "absorb_bias": Row(
        "bitwright.ptq.absorb_bias:AbsorbBias", "move high biases into the next layer, by batch-norm statistics"
    ),
    "place": Row("bitwright.ptq.place:Place", "decide which sites are quantized on the target, and how"),
    "calibrate": Row("bitwright.ptq.calibrate:Calibrate", "set the ranges of weights and activations"),
    "easyquant": Row("bitwright.ptq.easyquant:EasyQuant", "search the scales at which outputs keep their direction"),
    "correct_bias": Row(
        "bitwright.ptq.correct_bias:CorrectBias", "take back the shift of the means that rounding weights brings"
    ),
    "gptq": Row("bitwright.ptq.gptq:Gptq", "round weights of few bits in closed form, each layer's error made up for"),
    "adaround": Row("bitwright.ptq.adaround:AdaRound", "learn, layer by layer, whether each weight rounds up or down"),
    "adaquant": Row("bitwright.ptq.adaquant:AdaQuant", "learn weights, ranges and biases, layer by layer"),
    "brecq": Row("bitwright.ptq.brecq:BRECQ", "learn the rounding of a block's weights together, then its steps"),
    "qdrop": Row("bitwright.ptq.qdrop:QDrop", "learn rounding and steps of a block, quantization left out at random"),
    "pd_quant": Row("bitwright.ptq.pd_quant:PDQuant", "as qdrop, keeping what the network predicts"),
    "flexround": Row("bitwright.ptq.flexround:FlexRound", "learn by what each weight is divided before it is rounded"),
    "attention_round": Row(
        "bitwright.ptq.attention_round:AttentionRound", "learn to which code each weight goes, the near ones first"
    ),
    "nwq": Row("bitwright.ptq.nwq:NWQ", "learn rounding and steps of the whole network at once, from soft to hard"),
    "aquant": Row("bitwright.ptq.aquant:AQuant", "as qdrop, with learned borders at which activations round up"),
    "rapq": Row("bitwright.ptq.rapq:RAPQ", "learn rounding and steps that are powers of two, block by block"),
    "admm": Row("bitwright.ptq.admm:ADMM", "draw each layer's weights to a grid whose scale moves with them"),
    "tune_biases": Row("bitwright.ptq.tune_biases:TuneBiases", "learn all biases on the network's predictions"),
}
