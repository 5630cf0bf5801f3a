"""Bias tuning: move all biases together until the quantized network predicts what the float network predicts.

    min_b KL(softmax(y) || softmax(y~)),   y of the float network, y~ of the quantized one

Source: I. Hubara et al., Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming,
ICML 2021, "bias tuning". Choice: Adam with one rate, where the authors have SGD with three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class TuneBiases:
    """Learn all biases on the divergence of the network's output; weights and ranges stay.

    Args:
        iterations: of the optimiser.
        images: calibration images.
        batch: images a step.
        rate: Adam's.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 1_000
    images: int = 1000
    batch: int = 50
    rate: float = 1e-3
    seed: int = 0
    memory: str = ""
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"corrected biases"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other biases."""
        method = Method(
            name="tune_biases", unit="net", inputs="quantized", rounding="nearest", loss="prediction",
            activations=True, learn_biases=True, iterations=self.iterations, images=self.images, batch=self.batch,
            bias_rate=self.rate, seed=self.seed, memory=self.memory, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
