"""Attention Round: let weights go to any code of the grid, the less willingly the farther it is.

    min_a ||z~ - z||^2,    W~ = s (clip(rnd(W / s + a) + z) - z),    a ~ N(0, spread^2) at first

`reconstruct/attend.py` has the rounding. There is no regulariser: weights are rounded all along.

Source: Diao et al., Attention Round for Post-Training Quantization, 2022. Choices: blocks, as in BRECQ; activations
as in QDrop (`keep=1` has all of them quantized); the rate falls along a cosine, so that codes come to
rest. The paper's widths by coding length are a matter of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class AttentionRound(Reconstruction):
    """Block reconstruction with attention rounding.

    Args, beside those of `Reconstruction`:
        spread: of the first shifts, in steps of the grid; 0 for none, which is plain straight-through rounding.
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the shifts, falling to 0; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: of the activation steps, falling to 0.
    """

    spread: float = 0.5
    keep: float = 0.5
    rate: float = 0.0
    step_rate: float = 4e-5

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: a spread below 0.
        """
        if not self.spread >= 0:
            raise InputError("attention_round.spread", f"is {self.spread}", "0 or more", "0.5 is half a step")
        method = self.method(
            "attention_round",
            unit="block",
            inputs="mixed" if self.keep < 1 else "quantized",
            rounding="attention",
            rounding_settings=(("spread", self.spread), ("seed", self.seed)),
            activations=True,
            learn_steps=True,
            falling=True,
            keep=self.keep,
            weight_rate=self.rate,
            step_rate=self.step_rate,
        )
        return [method]
