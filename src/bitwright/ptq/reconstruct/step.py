"""What steps that reconstruct have in common: their images, their seed, their bounds."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bitwright.data.batches import Batches
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.engine import reconstruct_in_turn
from bitwright.ptq.reconstruct.method import Method


@dataclass(frozen=True, kw_only=True)
class Reconstruction(ABC):
    """A step that says by which methods units are learned, and runs them one after the other.

    Args:
        iterations: of the optimiser, for each unit.
        images: calibration images; all if there are fewer.
        batch: images a step.
        seed: of the images of each step, and of all else that is drawn.
        memory: bytes that the process may take, as `4GiB`; no bound if empty.
        only: globs of the units to learn; all if there are none.
        work: folder that keeps finished units, so that a run that was killed goes on; none if empty.
    """

    iterations: int = 20_000
    images: int = 1024
    batch: int = 32
    seed: int = 0
    memory: str = ""
    only: tuple[str, ...] = ()
    work: str = ""

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def methods(self, state: State) -> Sequence[Method]:
        """Settings of the engine, for one walk through the network after the other."""

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with the encodings, and biases where they are learned, that the methods find.

        Raises:
            InputError: settings that cannot be, no images, or too little memory.
        """
        return reconstruct_in_turn(state, batches, self.methods(state), images_done)

    def method(self, name: str, *, folder: str = "", **settings: Any) -> Method:
        """A method with what all of a step's have in common; each walk of several has a folder of its own."""
        shared = {key: getattr(self, key) for key in ("iterations", "images", "batch", "seed", "memory", "only")}
        work = os.path.join(self.work, folder) if self.work and folder else self.work
        return Method(**{"name": name, **shared, "work": work, **settings})
