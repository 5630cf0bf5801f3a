"""FlexRound: round a block's weights by division, with factors that are learned together with the step.

    min_{s1, S} ||z~ - z||^2,    W~ = s1 (clip(rnd(W / (s1 S)) + z) - z),    S = S2 s3 s4

`reconstruct/divide.py` has the rounding. There is no regulariser: weights are rounded all along, and gradients pass
rounding straight through.

Source: J. H. Lee et al., FlexRound: Learnable Rounding based on Element-wise Division for Post-Training Quantization,
ICML 2023. Choices: activations as in QDrop, which the paper builds on where they are of few bits (`keep=1` has all of
them quantized); Adam with one rate for all factors, which falls along a cosine; the step's own rate is small, as it
is a length, not a factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class FlexRound:
    """Block reconstruction with division-based rounding.

    Args:
        iterations: for each block.
        images: calibration images.
        batch: images a step.
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the factors, falling to 0.
        weight_step_rate: of the weights' steps, falling too.
        step_rate: of the activation steps, falling to 0.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the blocks to reconstruct; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 20_000
    images: int = 1024
    batch: int = 32
    keep: float = 0.5
    rate: float = 2e-3
    weight_step_rate: float = 1e-4
    step_rate: float = 4e-5
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other codes and steps of weights, and whose activations have learned steps."""
        method = Method(
            name="flexround", unit="block", inputs="mixed" if self.keep < 1 else "quantized", rounding="divided",
            activations=True, learn_steps=True, falling=True, keep=self.keep, iterations=self.iterations,
            images=self.images, batch=self.batch, weight_rate=self.rate, weight_step_rate=self.weight_step_rate,
            step_rate=self.step_rate,
            seed=self.seed, memory=self.memory, only=self.only, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
