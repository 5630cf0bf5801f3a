"""AQuant: learn at which border activations are rounded up, instead of at the half.

    code = ceil(x / s - B) = rnd(x / s + 1/2 - B),    B in (0, 1), 1/2 at first
    min_{V, s, B} ||z~ - z||^2 + regulariser, blocks and activations as in QDrop

In the paper B is a function of the value itself. An integer kernel has one rounding, to the nearest code of its sum,
so that no such function can be served. What can, and exactly, is a border that is constant in a channel, or in a
tensor, of what a layer gives:

    rnd((sum + b) / s + 1/2 - B) = rnd((sum + b + (1/2 - B) s) / s)

It is part of the layer's bias, through a ReLU too: with the code of 0 the lowest, values below 0 have it either way.
Outputs of layers that are not quantized themselves, sums, and pools keep the half: nothing is added there.

Source: Z. Li et al., Efficient Adaptive Activation Rounding for Post-Training Quantization, 2022. Choice: constant
borders, as above; the bias is rounded to its own codes afterwards, to a small part of a step.
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
class AQuant:
    """Block reconstruction of weights, steps and rounding borders.

    Args:
        iterations: for each block.
        images: calibration images.
        batch: images a step.
        border: what has a border of its own: `channel` or `tensor`.
        border_rate: Adam's, of the borders' logits.
        keep: probability that an element of an activation is quantized.
        rate: Adam's, of the rounding variables; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        step_rate: of the activation steps, falling to 0.
        strength: of the regulariser of weights; 0.1 for networks like MobileNetV2.
        warmup: share of the iterations without it.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the blocks to reconstruct; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 20_000
    images: int = 1024
    batch: int = 32
    border: str = "channel"
    border_rate: float = 1e-2
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
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights", "corrected biases"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other codes of weights, steps of activations, and biases, which hold the borders.

        Raises:
            InputError: a border that no integer kernel can round at, such as the paper's `function` of the value.
        """
        if self.border not in ("channel", "tensor"):
            raise InputError(
                "aquant.border", f"is {self.border!r}", "channel or tensor",
                "a border that depends on the value cannot be served: integer kernels round to the nearest code",
            )  # fmt: skip
        method = Method(
            name="aquant", unit="block", inputs="mixed" if self.keep < 1 else "quantized", rounding="soft",
            activations=True, learn_steps=True, learn_borders="channel" if self.border == "channel" else "tensor",
            keep=self.keep, iterations=self.iterations, images=self.images, batch=self.batch, weight_rate=self.rate,
            step_rate=self.step_rate, bias_rate=self.border_rate, strength=self.strength, warmup=self.warmup,
            seed=self.seed, memory=self.memory, only=self.only, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
