"""How long a try will take: work counted in images through the float network, at the pace of the tries before it.

    seconds = rate (OVERHEAD + pace * (passes + 2 measured)),   rate = seconds so far / seconds expected of these

`pace` is seconds an image by the float network, `passes` what the steps do and `measured` the images measured on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bitwright.errors import InputError
from bitwright.execute.observe import float_session, run_session
from bitwright.pipeline import Step
from bitwright.recipes.recipe import Recipe
from bitwright.verbs.quantized import steps_of
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.trial import Bench

#: Seconds that a try takes beside its passes over images.
OVERHEAD = 1.0
#: Passes of the float network that take as long as: one over an image by a step; forward and backward of learning.
STEP_PASSES, LEARN_PASSES = 3, 9


def float_seconds(bench: Bench) -> float:
    """Seconds that the float network takes for one image."""
    session = float_session(bench.network)
    batch = next(iter(bench.calibration))
    feeds = {entry.name: batch.inputs[entry.name] for entry in session.get_inputs()}
    run_session(session, None, feeds)
    start = time.perf_counter()
    run_session(session, None, feeds)
    return (time.perf_counter() - start) / batch.valid


def passes(steps: Sequence[Step], images: int) -> float:
    """Images through the float network that take about as long as the steps, of `images` calibration images.

    Example:
        >>> from bitwright.ptq.calibrate import Calibrate
        >>> passes([Calibrate()], 100)
        300.0
    """
    total = 0.0
    for step in steps:
        most = getattr(step, "images", 0) or images
        total += STEP_PASSES * min(images, most)
        learned = getattr(step, "iterations", 0) + getattr(step, "step_iterations", 0)
        total += LEARN_PASSES * learned * getattr(step, "batch", 1)
    return total


def bench_steps(bench: Bench, recipe: Recipe, more: Sequence[str] = ()) -> list[Step]:
    """The steps that a try of a recipe would run, with widths beyond those that the user set."""
    names = {name for name, _ in recipe.steps}
    settings = {key: value for key, value in bench.settings.items() if key in names}
    return steps_of(
        bench.network, bench.calibration, recipe, settings, Terminal(), target=bench.target, set=(*bench.set, *more),
        ends=bench.ends, plan=bench.plan or None,
    )  # fmt: skip


def check_minutes(minutes: float) -> None:
    """Refuse what is no time.

    Raises:
        InputError: negative, infinite or not a number.
    """
    if not 0 <= minutes < float("inf"):
        raise InputError("--minutes", f"is {minutes:g}", "minutes, or 0 for any time")


class Pace:
    """The seconds that tries have taken, and what the next one will take.

    Args:
        bench: of all tries.
        minutes: what all tries may take; 0 for any time.
    """

    def __init__(self, bench: Bench, minutes: float) -> None:
        self.bench, self.limit = bench, 60 * minutes if minutes else float("inf")
        self.image = float_seconds(bench)
        self.spent = 0.0
        self._tried = self._expected = 0.0

    def expected(self, steps: Sequence[Step]) -> float:
        """Seconds that a try of these steps will take."""
        rate = self._tried / self._expected if self._expected else 1.0
        return rate * self._unpaced(steps)

    def add(self, steps: Sequence[Step], seconds: float) -> None:
        """Count a try that was made."""
        self.spent += seconds
        self._tried += seconds
        self._expected += self._unpaced(steps)

    def spend(self, seconds: float) -> None:
        """Count time that went into something else than a try."""
        self.spent += seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.limit - self.spent)

    def refusal(self, seconds: float) -> str | None:
        """Why something that takes so many seconds is not begun; None where it fits."""
        if self.spent + seconds <= self.limit:
            return None
        return f"would take about {seconds:.0f} s, {self.left:.0f} s are left of --minutes"

    def _unpaced(self, steps: Sequence[Step]) -> float:
        images = passes(steps, len(self.bench.calibration)) + 2 * len(self.bench.measured)
        return OVERHEAD + self.image * images
