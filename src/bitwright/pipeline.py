"""State, steps and chains: what crosses from one algorithm to the next.

A step is a frozen dataclass called as `step(state, batches) -> state`. It declares the facts it needs and the facts it
gives; `check_chain` compares them before anything runs.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import onnx_ir as ir
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.graph.overlay import initializer
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan

log = logging.getLogger("bitwright")


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchNorm:
    """Statistics of a folded batch norm, `[channels]` each: `y = gamma (x - mean) / sqrt(var + eps) + beta`."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    def repeated(self, n: int) -> BatchNorm:
        """Of a layer each of whose channels became `n`, side by side."""
        parts = {key: getattr(self, key).repeat_interleave(n) for key in ("gamma", "beta", "mean", "var")}
        return dataclasses.replace(self, **parts)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the log: what ran, how long, and what it says of itself.

    A step tells facts by giving back a state whose log has an event of its own; `run_chain` makes one event of both.
    """

    step: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """Everything known about a network on its way.

    Attributes:
        model: the normalised graph; frozen, a step that changes its structure clones it.
        reference: the normalised float network as it came.
        overlay: new values of initializers.
        batchnorm: `{weight: statistics}` of the batch norm after a layer, that was folded into its weight: one entry
            for each output channel, `beta` and `gamma` are mean and spread of what the layer gives.
        input_batchnorm: the same of the batch norm before a layer: one entry for each input channel, `mean` and `var`
            are those of what the layer reads. They say nothing of what it gives.
        plan: how every site is quantized, once placed.
        encodings: `{site: numbers}`, once calibrated.
        facts: what is true of the state, for the needs of steps.
        log: what was done.
    """

    model: ir.Model
    reference: ir.Model
    overlay: Mapping[str, Tensor] = field(default_factory=dict)
    batchnorm: Mapping[str, BatchNorm] = field(default_factory=dict)
    input_batchnorm: Mapping[str, BatchNorm] = field(default_factory=dict)
    plan: Plan | None = None
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    facts: frozenset[str] = frozenset()
    log: tuple[Event, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """The present value of an initializer."""
        return initializer(self.model, self.overlay, name)

    def encoding(self, site: str) -> Encoding:
        """The encoding of a site, its own or the one it shares."""
        assert self.plan is not None
        return self.encodings[self.plan.resolve(site)[0]]

    def but(self, **changes: Any) -> State:
        """A new state with some fields changed."""
        return dataclasses.replace(self, **changes)


Progress = Callable[[int], None]


class Step(Protocol):
    """What every algorithm is.

    Beside what it needs and gives it may say, as class attributes, `clashes`: facts that must not be true before it;
    and `needs_data`: whether it cannot do without images.
    """

    needs: ClassVar[frozenset[str]]
    gives: ClassVar[frozenset[str]]

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A new state; `images_done` is told the images of each batch that has passed."""
        ...


def check_chain(steps: Sequence[Step], facts: Iterable[str] = ()) -> None:
    """Check that every step finds what it needs.

    Raises:
        InputError: a step needs a fact that none before it gives, or must not follow one that gives some fact.
    """
    known = set(facts)
    givers = dict.fromkeys(known, "the state that it starts from")
    for i, step in enumerate(steps):
        name = type(step).__name__
        clashes: frozenset[str] = getattr(step, "clashes", frozenset())
        for fact in sorted(clashes & known):
            raise InputError(
                f"step {i + 1} ({name})", f"comes after {fact}, given by {givers[fact]}", f"none of {fact} before it",
                "move it before that step, or leave out one of the two",
            )  # fmt: skip
        missing = sorted(step.needs - known)
        if missing:
            raise InputError(
                f"step {i + 1} ({name})", f"needs {', '.join(missing)}", "a step before it that gives this",
                f"the steps before it give {', '.join(sorted(known)) or 'nothing'}",
            )  # fmt: skip
        known |= step.gives
        givers |= dict.fromkeys(step.gives - givers.keys(), f"step {i + 1} ({name})")


def needs_data(steps: Iterable[Step]) -> list[Step]:
    """The steps that cannot do without images."""
    return [step for step in steps if getattr(step, "needs_data", False)]


def run_chain(
    steps: Sequence[Step], state: State, batches: Batches | None, *, images_done: Progress | None = None
) -> State:
    """Run steps in order, logging each; `images_done` is told the images of each batch that has passed."""
    check_chain(steps, state.facts)
    for step in steps:
        name = type(step).__name__
        start = time.perf_counter()
        before = state.log
        state = step(state, batches, images_done)
        told = {key: fact for event in state.log[len(before) :] for key, fact in event.facts.items()}
        event = Event(step=repr(step), seconds=time.perf_counter() - start, facts=told)
        log.info("%s: %.1f s", name, event.seconds)
        state = state.but(facts=state.facts | step.gives, log=(*before, event))
    return state
