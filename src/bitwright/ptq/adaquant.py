"""AdaQuant: move weights continuously, with their steps, those of activations and biases, to keep a layer's output.

    min ||W x + b - (Q_w(W + V) Q_x(x) + b')||^2 over V, b', the step and zero point of w, the step of x

Gradients pass rounding straight through, so a weight may move by several codes. The losses of every layer before and
after are in the log, for the integer program that chooses widths.

Source: Hubara et al., Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming,
ICML 2021. Choices: rates are those of whole ranges, as the authors' parameters are; zero points of activations stay.
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
class AdaQuant(Reconstruction):
    """Layer-wise reconstruction with continuous weights, learned ranges and biases.

    Args, beside those of `Reconstruction`:
        inputs: `quantized`, one layer after the other, or `float`, each for itself.
        rate: Adam's, of the weights.
        step_rate: of activation ranges.
        weight_step_rate: of weight ranges.
        bias_rate: of biases.
    """

    iterations: int = 100
    images: int = 1000
    batch: int = 50
    inputs: str = "quantized"
    rate: float = 1e-5
    step_rate: float = 1e-1
    weight_step_rate: float = 1e-3
    bias_rate: float = 1e-3

    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights", "corrected biases"})

    def methods(self, state: State) -> Sequence[Method]:
        """One walk.

        Raises:
            InputError: `inputs` is neither `quantized` nor `float`.
        """
        if self.inputs not in ("quantized", "float"):
            raise InputError("adaquant.inputs", f"is {self.inputs!r}", "quantized or float")
        method = self.method(
            "adaquant",
            unit="layer",
            inputs="float" if self.inputs == "float" else "quantized",
            rounding="straight",
            activations=True,
            learn_steps=True,
            learn_biases=True,
            range_rates=True,
            weight_rate=self.rate,
            step_rate=self.step_rate,
            weight_step_rate=self.weight_step_rate,
            bias_rate=self.bias_rate,
        )
        return [method]
