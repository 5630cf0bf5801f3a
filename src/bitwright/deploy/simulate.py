"""Our own program in a runtime's place: for files that nothing installed here executes.

What it gives is a simulation, and whoever shows its numbers says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bitwright.deploy.runtimes import RUNTIMES
from bitwright.errors import UnsupportedError
from bitwright.pipeline import State
from bitwright.ptq.programs import simulated_program
from bitwright.targets import TARGETS
from bitwright.targets.target import Target


class Simulation:
    """A quantized state in simulation (`Program`, mode simulated), with the interface of a runtime."""

    def __init__(self, state: State) -> None:
        self.program = simulated_program(state)
        self.inputs, self.outputs = self.program.inputs, self.program.outputs

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named inputs to named outputs."""
        found = self.program.run({name: torch.from_numpy(inputs[name]) for name in self.inputs})
        return {name: value.numpy() for name, value in found.items()}


def is_served(target: Target) -> bool:
    """Whether a runtime that bitwright knows executes the target's files; the others are simulated."""
    return target.runtime in RUNTIMES


def subject(state: State, model: str | Path | bytes) -> str | Path | bytes | Simulation:
    """What stands for a written file in an evaluation: the file, or its simulation where nothing executes it."""
    assert state.plan is not None
    return model if is_served(TARGETS[state.plan.target].load()) else Simulation(state)


def runtime_of(state: State) -> str:
    """The runtime that a written file is for, or the first where nothing executes it."""
    assert state.plan is not None
    target: Target = TARGETS[state.plan.target].load()
    return target.runtime if is_served(target) else next(iter(RUNTIMES))


def require_served(state: State, where: str, what: str) -> None:
    """Refuse what only a runtime can do.

    Raises:
        UnsupportedError: no runtime that bitwright knows executes the target's files.
    """
    assert state.plan is not None
    target: Target = TARGETS[state.plan.target].load()
    if not is_served(target):
        raise UnsupportedError(
            where, f"is for {target.name}, which is simulated here, not run",
            f"a file of {', '.join(RUNTIMES)} to {what}",
            "`bitwright evaluate` simulates it",
        )  # fmt: skip
