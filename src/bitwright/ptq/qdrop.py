"""QDrop: reconstruct blocks with activations quantized too, but each element only with probability `keep`.

    min_{V, s} ||z~ - z||^2 + strength sum(1 - |2 h(V) - 1|^beta)
    every activation quantizer in the block:   y = Q(x; s) with probability keep, else x
    the block's input:                         x^ with probability keep, else the float network's x

What is left out at random flattens the loss around the rounding that is found. `keep` is the probability of
quantizing; 1 is joint reconstruction without leaving out, 0 has activations in float while weights are learned.

Source: Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, ICLR
2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class QDrop(Reconstruction):
    """Block reconstruction of weights and activation steps, with quantization left out at random.

    Args, beside those of `Reconstruction`:
        keep: probability that an element is quantized.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: Adam's, of the activation steps, falling to 0.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
    """

    keep: float = 0.5
    rate: float = 0.0
    step_rate: float = 4e-5
    strength: float = 0.01
    warmup: float = 0.2

    def methods(self, state: State) -> Sequence[Method]:
        """One walk."""
        method = self.method(
            "qdrop",
            unit="block",
            inputs="mixed" if self.keep < 1 else "quantized",
            rounding="soft",
            activations=True,
            learn_steps=True,
            keep=self.keep,
            weight_rate=self.rate,
            step_rate=self.step_rate,
            strength=self.strength,
            warmup=self.warmup,
        )
        return [method]
