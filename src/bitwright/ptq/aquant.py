"""AQuant: learn at which border activations are rounded up, instead of at the half.

    code = ceil(x / s - B) = rnd(x / s + 1/2 - B),    B in (0, 1), 1/2 at first
    min_{V, s, B} ||z~ - z||^2 + regulariser, blocks and activations as in QDrop

In the paper B is a function of the value itself. An integer kernel has one rounding, to the nearest code of its sum,
so that no such function can be served. What can, and exactly, is a border that is constant in a channel, or in a
tensor, of what a layer gives:

    rnd((sum + b) / s + 1/2 - B) = rnd((sum + b + (1/2 - B) s) / s)

It is part of the layer's bias, through a ReLU too: with the code of 0 the lowest, values below 0 have it either way.
Outputs of layers that are not quantized themselves, sums, and pools keep the half: nothing is added there.

Source: Li et al., Efficient Adaptive Activation Rounding for Post-Training Quantization, 2022. Choice: constant
borders, as above; the bias is rounded to its own codes afterwards, to a small part of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bitwright.errors import InputError
from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class AQuant(Reconstruction):
    """Block reconstruction of weights, steps and rounding borders.

    Args, beside those of `Reconstruction`:
        border: what has a border of its own: `channel` or `tensor`.
        border_rate: Adam's, of the borders' logits.
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: of the activation steps, falling to 0.
        strength: of the regulariser of weights; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
    """

    border: str = "channel"
    border_rate: float = 1e-2
    keep: float = 0.5
    rate: float = 0.0
    step_rate: float = 4e-5
    strength: float = 0.01
    warmup: float = 0.2

    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights", "corrected biases"})

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: a border that no integer kernel can round at, such as the paper's `function` of the value.
        """
        if self.border not in ("channel", "tensor"):
            raise InputError(
                "aquant.border", f"is {self.border!r}", "channel or tensor",
                "a border that depends on the value cannot be served: integer kernels round to the nearest code",
            )  # fmt: skip
        method = self.method(
            "aquant",
            unit="block",
            inputs="mixed" if self.keep < 1 else "quantized",
            rounding="soft",
            activations=True,
            learn_steps=True,
            learn_borders="channel" if self.border == "channel" else "tensor",
            keep=self.keep,
            weight_rate=self.rate,
            step_rate=self.step_rate,
            bias_rate=self.border_rate,
            strength=self.strength,
            warmup=self.warmup,
        )
        return [method]
