"""QDrop: reconstruct blocks with activations quantized too, but each element only with probability `keep`.

    min_{V, s} ||z~ - z||^2 + strength sum(1 - |2 h(V) - 1|^beta)
    every activation quantizer in the block:   y = Q(x; s) with probability keep, else x
    the block's input:                         x^ with probability keep, else the float network's x

What is left out at random flattens the loss around the rounding that is found. `keep` is the probability of
quantizing; 1 is joint reconstruction without leaving out, 0 has activations in float while weights are learned.

Source: X. Wei et al., QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization, ICLR
2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class QDrop:
    """Block reconstruction of weights and activation steps, with quantization left out at random.

    Args:
        iterations: for each block.
        images: calibration images.
        batch: images a step.
        keep: probability that an element is quantized.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: Adam's, of the activation steps, falling to 0.
        strength: of the regulariser; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the blocks to round; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 20_000
    images: int = 1024
    batch: int = 32
    keep: float = 0.5
    rate: float = 0.0
    step_rate: float = 4e-5
    strength: float = 0.01
    warmup: float = 0.2
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
            name="qdrop", unit="block", inputs="mixed" if self.keep < 1 else "quantized", rounding="soft",
            activations=True, learn_steps=True, keep=self.keep, iterations=self.iterations, images=self.images,
            batch=self.batch, weight_rate=self.rate, step_rate=self.step_rate, strength=self.strength,
            warmup=self.warmup, seed=self.seed, memory=self.memory, only=self.only, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
