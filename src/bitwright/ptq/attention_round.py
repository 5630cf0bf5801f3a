"""Attention Round: let weights go to any code of the grid, the less willingly the farther it is.

    min_a ||z~ - z||^2,    W~ = s (clip(rnd(W / s + a) + z) - z),    a ~ N(0, spread^2) at first

`reconstruct/attend.py` has the rounding. There is no regulariser: weights are rounded all along.

Source: H. Diao et al., Attention Round for Post-Training Quantization, 2022. Choices: blocks, as in BRECQ; activations
as in QDrop (`keep=1` has all of them quantized); the rate falls along a cosine, so that codes come to
rest. The paper's widths by coding length are a matter of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class AttentionRound:
    """Block reconstruction with attention rounding.

    Args:
        iterations: for each block.
        images: calibration images.
        batch: images a step.
        spread: of the first shifts, in steps of the grid; 0 for none, which is plain straight-through rounding.
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the shifts, falling to 0; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: of the activation steps, falling to 0.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the blocks to reconstruct; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 20_000
    images: int = 1024
    batch: int = 32
    spread: float = 0.5
    keep: float = 0.5
    rate: float = 0.0
    step_rate: float = 4e-5
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose weights have codes of their own choice, and whose activations have learned steps.

        Raises:
            InputError: a spread below 0.
        """
        if not self.spread >= 0:
            raise InputError("attention_round.spread", f"is {self.spread}", "0 or more", "0.5 is half a step")
        method = Method(
            name="attention_round", unit="block", inputs="mixed" if self.keep < 1 else "quantized",
            rounding="attention", rounding_settings=(("spread", self.spread), ("seed", self.seed)), activations=True,
            learn_steps=True, falling=True, keep=self.keep, iterations=self.iterations, images=self.images,
            batch=self.batch, weight_rate=self.rate, step_rate=self.step_rate, seed=self.seed,
            memory=self.memory, only=self.only, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
