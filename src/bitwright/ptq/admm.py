"""ADMM: draw each layer's weights to a grid whose scale moves with them.

    min ||z~ - z||^2  with  W in {a (q - z)}, a a scale for each channel

The weight is free, and a penalty draws it to the nearest point of the grid, which is looked for now and then, scale
and codes by turns (`reconstruct/multipliers.py`, `reconstruct/alternate.py`). Activations are in float meanwhile.

Source: C. Leng et al., Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM, AAAI 2018. Choices: layer
by layer on unlabelled images, where the paper trains the network; all layers, where it leaves the first and last out.
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
class ADMM:
    """Layer-wise reconstruction by alternating directions.

    Args:
        iterations: for each layer.
        images: calibration images.
        batch: images a step.
        turns: how often the nearest point of the grid is looked for.
        rate: Adam's, of the weights, in steps; 0 for 1e-3, and more where there are fewer than 10,000 iterations.
        strength: of the penalty at first, for a weight that is a step away; it grows a hundredfold.
        seed: of the images of each step.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the layers to reconstruct; all if there are none.
        work: folder that keeps finished blocks; none if empty.
    """

    iterations: int = 10_000
    images: int = 1024
    batch: int = 32
    turns: int = 20
    rate: float = 0.0
    strength: float = 0.01
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other codes and scales of weights.

        Raises:
            InputError: no turn at all.
        """
        if self.turns < 1:
            raise InputError("admm.turns", f"is {self.turns}", "a whole number from 1 on")
        method = Method(
            name="admm", unit="layer", inputs="quantized", rounding="alternating",
            rounding_settings=(("turns", self.turns),), iterations=self.iterations, images=self.images,
            batch=self.batch, weight_rate=self.rate, strength=self.strength, seed=self.seed,
            memory=self.memory, only=self.only, work=self.work,
        )  # fmt: skip
        return reconstruct(state, batches, method, images_done)
