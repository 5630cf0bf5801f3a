"""Bias tuning: move all biases together until the quantized network predicts what the float network predicts.

    min_b KL(softmax(y) || softmax(y~)),   y of the float network, y~ of the quantized one

Source: Hubara et al., Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming,
ICML 2021, "bias tuning". Choice: Adam with one rate, where the authors have SGD with three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bitwright.pipeline import State
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.step import Reconstruction


@dataclass(frozen=True, kw_only=True)
class TuneBiases(Reconstruction):
    """Learn all biases on the divergence of the network's output; weights and ranges stay.

    Args, beside those of `Reconstruction`:
        rate: Adam's.
    """

    iterations: int = 1_000
    images: int = 1000
    batch: int = 50
    rate: float = 1e-3

    gives: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def methods(self, state: State) -> Sequence[Method]:
        """One walk."""
        method = self.method(
            "tune_biases",
            unit="net",
            inputs="quantized",
            rounding="nearest",
            loss="prediction",
            activations=True,
            learn_biases=True,
            bias_rate=self.rate,
        )
        return [method]
