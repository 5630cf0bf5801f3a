"""BRECQ: round a block's weights together, errors weighted by what they do to the network's output; then its steps.

    weights: min_V sum |z~ - z|^2 g^2 + strength sum(1 - |2 h(V) - 1|^beta), activations in float
    then, from the network's input again, activation steps: min_s sum |z~ - z|^2.4

z is the output of a block (a residual block after its sum and ReLU), g the gradient of the network's divergence there.

Source: Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021.
Choice: `loss=error` is what the authors' script does; `fisher` is the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class BRECQ(Reconstruction):
    """Block reconstruction with learned rounding, then learned activation steps.

    Args, beside those of `Reconstruction`:
        step_iterations: of the activation steps of each block; 0 to leave them.
        loss: `fisher` or `error`.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
        step_rate: Adam's, of the steps, falling to 0.
    """

    step_iterations: int = 5_000
    loss: str = "fisher"
    rate: float = 0.0
    strength: float = 0.01
    warmup: float = 0.2
    step_rate: float = 4e-4

    def methods(self, state: State) -> Sequence[Method]:
        """Weights first, then the steps of activations."""
        method = self.method(
            "brecq",
            folder="weights",
            unit="block",
            inputs="quantized",
            rounding="soft",
            loss=self.loss,
            weight_rate=self.rate,
            strength=self.strength,
            warmup=self.warmup,
        )
        if not self.step_iterations:
            return [method]
        steps = self.method(
            "brecq",
            folder="steps",
            unit="block",
            inputs="quantized",
            rounding="nearest",
            activations=True,
            learn_steps=True,
            power=2.4,
            iterations=self.step_iterations,
            step_rate=self.step_rate,
        )
        return [method, steps]
