"""FlexRound: round a block's weights by division, with factors that are learned together with the step.

    min_{s1, S} ||z~ - z||^2,    W~ = s1 (clip(rnd(W / (s1 S)) + z) - z),    S = S2 s3 s4

`reconstruct/divide.py` has the rounding. There is no regulariser: weights are rounded all along, and gradients pass
rounding straight through.

Source: Lee et al., FlexRound: Learnable Rounding based on Element-wise Division for Post-Training Quantization,
ICML 2023. Choices: activations as in QDrop, which the paper builds on where they are of few bits (`keep=1` has all of
them quantized); Adam with one rate for all factors, which falls along a cosine; the step's own rate is small, as it
is a length, not a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class FlexRound(Reconstruction):
    """Block reconstruction with division-based rounding.

    Args, beside those of `Reconstruction`:
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the factors, falling to 0.
        weight_step_rate: of the weights' steps, falling too.
        step_rate: of the activation steps, falling to 0.
    """

    keep: float = 0.5
    rate: float = 2e-3
    weight_step_rate: float = 1e-4
    step_rate: float = 4e-5

    def methods(self, state: State) -> Sequence[Method]:
        """One walk."""
        method = self.method(
            "flexround",
            unit="block",
            inputs="mixed" if self.keep < 1 else "quantized",
            rounding="divided",
            activations=True,
            learn_steps=True,
            falling=True,
            keep=self.keep,
            weight_rate=self.rate,
            weight_step_rate=self.weight_step_rate,
            step_rate=self.step_rate,
        )
        return [method]
