"""Reconstruction: make each part of a quantized network give what it gives in float. One engine for all methods.

A method says of what a unit consists (a layer, a block, the network), what it reads (float values, those of the
quantized prefix, a mixture), what is learned (rounding, steps, biases), and which loss it lowers; `engine.py` does the
rest.
"""

from __future__ import annotations

from bitwright.lookup import Row

ROUNDINGS: dict[str, Row] = {
    "nearest": Row("bitwright.ptq.reconstruct.weights:Nearest", "to the nearest code; nothing is learned"),
    "soft": Row("bitwright.ptq.reconstruct.soft:SoftRounding", "up or down, by AdaRound's rectified sigmoid"),
    "attention": Row("bitwright.ptq.reconstruct.attend:AttentionRounding", "any code, the harder the farther it is"),
    "annealing": Row("bitwright.ptq.reconstruct.anneal:AnnealingRounding", "one of four codes, by a cooling softmax"),
    "alternating": Row("bitwright.ptq.reconstruct.multipliers:AlternatingRounding", "drawn to the grid by ADMM"),
    "exponent": Row("bitwright.ptq.reconstruct.exponents:exponent_rounding", "up or down, powers of two too"),
    "divided": Row("bitwright.ptq.reconstruct.divide:DividedRounding", "any code, by learned division (FlexRound)"),
    "straight": Row("bitwright.ptq.reconstruct.weights:StraightThrough", "any code, by straight-through gradients"),
}
