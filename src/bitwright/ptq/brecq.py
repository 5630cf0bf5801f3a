"""BRECQ: round a block's weights together, errors weighted by what they do to the network's output; then its steps.

    weights: min_V sum |z~ - z|^2 g^2 + strength sum(1 - |2 h(V) - 1|^beta), activations in float
    then, from the network's input again, activation steps: min_s sum |z~ - z|^2.4

z is the output of a block (a residual block after its sum and ReLU), g the gradient of the network's divergence there.

Source: Y. Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021.
Choice: `loss=error` is what the authors' script does; `fisher` is the paper.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct, reconstruct_in_turn
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class BRECQ:
    """Block reconstruction with learned rounding, then learned activation steps.

    Args:
        iterations: of the weights of each block.
        step_iterations: of the activation steps of each block; 0 to leave them.
        images: calibration images.
        batch: images a step.
        loss: `fisher` or `error`.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
        step_rate: Adam's, of the steps, falling to 0.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the blocks to round; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 20_000
    step_iterations: int = 5_000
    images: int = 1024
    batch: int = 32
    loss: str = "fisher"
    rate: float = 0.0
    strength: float = 0.01
    warmup: float = 0.2
    step_rate: float = 4e-4
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose weights have codes of their own choice, and whose activations have learned steps."""
        method = Method(
            name="brecq", unit="block", inputs="quantized", rounding="soft", loss=self.loss,
            iterations=self.iterations, images=self.images, batch=self.batch,
            weight_rate=self.rate, strength=self.strength, warmup=self.warmup,
            seed=self.seed, memory=self.memory, only=self.only, work=self.work and os.path.join(self.work, "weights"),
        )  # fmt: skip
        if not self.step_iterations:
            return reconstruct(state, batches, method, images_done)
        steps = Method(
            name="brecq", unit="block", inputs="quantized", rounding="nearest", activations=True, learn_steps=True,
            power=2.4, iterations=self.step_iterations, images=self.images, batch=self.batch, step_rate=self.step_rate,
            seed=self.seed, memory=self.memory, only=self.only, work=self.work and os.path.join(self.work, "steps"),
        )  # fmt: skip
        return reconstruct_in_turn(state, batches, [method, steps], images_done)
