"""Tries near what a search has written, each quantized anew by the recipe of points.

Where a recipe looks at several layers, what a library foretells of a network is an estimate; here the network itself
is made, and measured as its file is served. A library made by that recipe says which network to try next.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitwright.data.batches import Batch, Batches
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import Runtime
from bitwright.deploy.simulate import Simulation, runtime_of, subject
from bitwright.graph.outputs import real_outputs
from bitwright.mixed.jobs.task import threads
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.near import near
from bitwright.mixed.problem import Assignment, Choices
from bitwright.mixed.refine import refine
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.measure import Metric, Whole, check_finite, divergence, summed, usual_method
from bitwright.recipes.recipe import load_recipe
from bitwright.verbs.preparing import digest_of
from bitwright.verbs.quantized import model_bytes, run_recipe
from bitwright.verbs.searching import Searching
from bitwright.verbs.stocking import Shelf, base_network, library_of, origin_of
from bitwright.verbs.terminal import Terminal

#: Of the divergence by which networks are judged that give scores of classes. At 1 it counts a few images most, on
#: which one of them is sure and wrong (docs/results/mixed.md).
TEMPERATURE = 2.0


class Made:
    """The loss of networks as their files are served: the mean of a metric over images, each made by a recipe.

    Args:
        searching: prepared; its recipe and calibration images make the networks.
        batches: images to measure on.
        metric: a number for each image; looks at no labels.
        kept: what was measured before.
    """

    def __init__(self, searching: Searching, batches: Batches, metric: Metric, kept: Kept) -> None:
        self.searching, self.batches, self.metric, self.kept = searching, batches, metric, kept
        self.real = real_outputs(searching.network)
        self.references: list[list[Tensor]] = []

    def __call__(self, choices: Choices) -> float:
        """The loss with these choices.

        Raises:
            InputError: outputs that are not finite, or what `quantize` refuses.
        """
        return float(self.kept.once(f"made {' '.join(map(str, choices))}", lambda: self._measured(choices)))

    def _measured(self, choices: Choices) -> float:
        searching = self.searching
        made = run_recipe(
            searching.network, searching.images.calibration, load_recipe(searching.recipe), searching.settings,
            Terminal(seed=searching.terminal.seed), target=searching.placing.target, set=(), ends=None,
            plan=searching.library.plan(choices),
        )  # fmt: skip
        load = RUNTIMES[runtime_of(made.state)].load()
        served = subject(made.state, model_bytes(made.model()))
        runner = served if isinstance(served, Simulation) else load(served, threads())
        if not self.references:
            in_float = load(model_bytes(searching.network), threads())
            self.references = [self._outputs(in_float, batch) for batch in self.batches]
        total = 0.0
        for batch, reference in zip(self.batches, self.references, strict=True):
            outputs = self._outputs(runner, batch)
            for y in outputs:
                check_finite(y)
            total += summed(self.metric, outputs, reference, None)
        return total / len(self.batches)

    def _outputs(self, runtime: Runtime | Simulation, batch: Batch) -> list[Tensor]:
        values = list(runtime.run(batch.inputs).values())
        return [torch.from_numpy(values[i][: batch.valid]).double() for i in self.real]


def softened(y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
    """`KL(softmax(reference / T) || softmax(y / T))`, `[images]`, T = `TEMPERATURE`."""
    return divergence(y / TEMPERATURE, reference / TEMPERATURE)


def polished(searching: Searching, written: Sequence[Choices]) -> tuple[Assignment, Mapping[Choices, float]]:
    """The best of networks that were written and of `aim.polish` more near the best; and the loss of each of them.

    Args:
        searching: prepared.
        written: choices of what there is; within the limits, where any is.

    Raises:
        InputError: what `quantize` refuses.
    """
    aim, images, terminal = searching.aim, searching.images, searching.terminal
    few = images.validation or images.calibration
    method = usual_method(searching.network)
    metric: Metric = softened if method == "kl" else SENSITIVITIES[method].load()().metric
    shelf, library = _library(searching)
    described = [
        method,
        TEMPERATURE,
        repr(searching.space.groups),
        searching.base.plan.dumps() if searching.base.plan else "",
    ]
    near_by, of_all = (json.dumps([*described, digest_of(batches)]) for batches in (few, images.judged))
    whole = Whole(library, few, metric, Kept(shelf.path("near", near_by, ".jsonl")))
    made = Made(searching, images.judged, metric, Kept(shelf.path("made", of_all, ".jsonl")))
    searching.shelf.used |= shelf.used
    if images.judged is images.calibration:
        terminal.note(
            "note: polish is judged on the calibration images, which recipes fit; give --val-data for others"
        )
    terminal.note(
        f"polish: at most {len(written) + aim.polish} networks quantized by {searching.recipe}, each a pass over "
        f"{len(images.judged):,} images"
    )
    with terminal.progress("polish", len(written) + aim.polish) as advance:
        losses: dict[Choices, float] = {}

        def measured(choices: Choices) -> float:
            if choices not in losses:
                losses[choices] = made(choices)
                advance(1)
            return losses[choices]

        for choices in written:
            measured(choices)
        problem = searching.bounded()
        best: Choices = min(losses, key=lambda choices: losses[choices])
        found, _ = refine(
            problem, problem.assignment(best), measured, 1 + aim.polish,
            lambda choices: near(problem, whole, choices, losses),  # what was written teaches, too
        )  # fmt: skip
    return found, losses


def _library(searching: Searching) -> tuple[Shelf, Library]:
    """Every group at every width by the recipe of points, and where it is kept."""
    network, calibration, terminal = searching.network, searching.images.calibration, searching.terminal
    placing = dataclasses.replace(searching.placing, recipe=searching.recipe, settings=searching.settings)
    shelf = Shelf(searching.shelf.folder, origin_of(network, calibration, placing, terminal.seed))
    if placing == searching.placing:
        return shelf, searching.library
    ties = searching.measure.ties if searching.orders else None
    base, space = base_network(network, calibration, placing, searching.widths, terminal, ties, searching.base.plan)
    return shelf, library_of(network, calibration, placing, base, space, shelf, terminal)
