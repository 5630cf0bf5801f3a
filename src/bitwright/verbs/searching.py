"""A search from network and images to written points: sensitivity, costs, solver, evaluation.

What sensitivities foretell is only what points are chosen by. What is told of a point is measured: the accuracy of its
written file, its bytes, its latency.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bitwright.cost import COSTS
from bitwright.cost.table import Table
from bitwright.data.batches import Batches
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.mixed.feasible import feasible, least
from bitwright.mixed.jobs.executor import Executor
from bitwright.mixed.kept import Kept
from bitwright.mixed.problem import Additive, Assignment, Choices, Problem, within
from bitwright.mixed.refine import refine
from bitwright.mixed.sensitivity import SENSITIVITIES, is_order
from bitwright.mixed.sensitivity.measure import Whole, by_divergence
from bitwright.mixed.solvers import SOLVERS
from bitwright.mixed.solvers.greedy import Step
from bitwright.recipes.recipe import checked_settings
from bitwright.verbs.aim import MEASURED, Aim, told_cost
from bitwright.verbs.points import PointJob, kept_point, make_point
from bitwright.verbs.preparing import digest_of
from bitwright.verbs.quantized import model_bytes
from bitwright.verbs.stocking import Placing, Shelf, Widths, base_network, library_of, origin_of, tables_of
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.trial import check_labels
from bitwright.verbs.verb import finite

#: How often limits are drawn in because what was written is above what its table foretold.
TRIES = 4
#: By how much a network of one width may be foretold to be above a limit, and is written nevertheless.
SLACK = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images of a search, opened, and what they were opened from.

    Attributes:
        calibration, validation, measured: to set ranges with; to measure sensitivities on, those of `calibration` if
            None; to measure points on.
        judged: all that are given for validation, to try networks on that are quantized anew.
        job: what a point needs of them, fields of `PointJob`.
        same: points are measured on the calibration images.
    """

    calibration: Batches
    validation: Batches | None
    judged: Batches
    measured: Batches
    job: Mapping[str, Any]
    same: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A written network of a search.

    Attributes:
        name: of its folder.
        kind: `search`, or `uniform`.
        method: by which it was found; "" for uniform widths.
        choices: of the space's groups.
        widths: `{region: (bits of its weight, bits of what it reads)}`, of the regions that move.
        mean_bits: of the weights that move.
        loss: by the sensitivity; None where it orders groups, or for uniform widths of one that has no losses.
        predicted: `{cost: by its table}`.
        found: what its evaluation says.
        latency: milliseconds measured and predicted; None where latency was not asked for.
        folder: where it is.
    """

    name: str
    kind: str
    method: str
    choices: Choices
    widths: Mapping[str, tuple[int, int]]
    mean_bits: float
    loss: float | None
    predicted: Mapping[str, float]
    found: Mapping[str, Any]
    latency: Mapping[str, Any] | None
    folder: Path

    @property
    def costs(self) -> dict[str, float]:
        """Costs of the written network, measured latency among them."""
        measured = {} if self.latency is None else {MEASURED: self.latency["ms"]}
        return {**self.found["costs"], **measured}

    @property
    def drop(self) -> Mapping[str, float] | None:
        """Accuracy beside float; None without labels."""
        found: Mapping[str, float] | None = self.found["drop"]
        return found


@dataclass(kw_only=True, eq=False)
class Searching:
    """One search: what it was given, and what it has prepared.

    Attributes:
        network: float.
        images: of calibration, validation and measurement.
        placing, widths, aim: what is asked.
        recipe, settings: by which points are quantized.
        folder: of points and of what is kept.
        executor: where points are made.
        verified: images that each point is verified on.
        terminal: where to speak.
    """

    network: ir.Model
    images: Images
    placing: Placing
    widths: Widths
    aim: Aim
    recipe: str
    settings: Mapping[str, Mapping[str, Any]]
    folder: Path
    executor: Executor
    verified: int
    terminal: Terminal

    def stock(self) -> None:
        """Groups, sensitivity and library.

        Raises:
            InputError: nothing can move, or what `quantize` refuses.
            UnsupportedError: a width that the target lacks.
        """
        terminal, images = self.terminal, self.images
        self.measure = _made(SENSITIVITIES, self.aim.method, self.aim.measure, "method")
        # An order that needs labelled images has a walk of its own; what it costs is said before it begins.
        self.orders = is_order(self.aim.method)
        self.measures = {self.aim.method: self.measure} | {
            name: _made(SENSITIVITIES, name, {}, "--also") for name in self.aim.also
        }  # fmt: skip
        self.base, self.space = base_network(
            self.network, images.calibration, self.placing, self.widths, terminal,
            self.measure.ties if self.orders else None,
        )  # fmt: skip
        self.shelf = Shelf(
            self.folder / "kept", origin_of(self.network, images.calibration, self.placing, terminal.seed)
        )
        self._losses: dict[str, Additive] = {}
        self._check_labels()
        self.library = library_of(
            self.network, images.calibration, self.placing, self.base, self.space, self.shelf, terminal
        )

    def prepare(self) -> None:
        """All that points share: groups, library, tables and limits.

        Raises:
            InputError: limits that no choice of widths meets, or what `stock` refuses.
        """
        self.stock()
        self.tables: dict[str, tuple[Table, ...]] = {}
        for name in self.aim.costs:
            self.tables[name] = tables_of(self.cost(name), self.library.state, self.space)
        for table in self.tables.get(MEASURED, ()):
            for line in getattr(table, "notes", list)():
                self.terminal.note(f"latency: {line}")
        self.costs = {
            f"{name}{'' if i == 0 else f' ({i + 1})'}": self.space.cost(table)
            for name, tables in self.tables.items() for i, table in enumerate(tables)
        }  # fmt: skip
        self.limits = {budget.name: budget.limit(self._reference(budget.name)) for budget in self.aim.budgets}
        self.aimed = self._foretold(self.limits)
        feasible(self.bounded(), told_cost)
        self.network_path = self.folder / "float.onnx"
        content = model_bytes(self.network)
        if not self.network_path.exists() or self.network_path.read_bytes() != content:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.network_path, content)

    def _foretold(self, limits: Mapping[str, float]) -> dict[str, float]:
        """Limits that the tables can be held to: a latency is measured, and so what a table foretells is no bound.

        Whether the fastest network is within the limit is seen when it is written and timed.
        """
        found = dict(limits)
        if MEASURED in limits:
            tables = [self.costs[key] for key in self._all_limits({MEASURED: limits[MEASURED]})]
            fastest = max(table.of(least(table)) for table in tables)
            if not within(fastest, limits[MEASURED]):
                found[MEASURED] = fastest
                self.terminal.note(
                    f"{MEASURED}: no choice of widths is foretold to take less than {told_cost(MEASURED, fastest)}, "
                    f"and the limit is {told_cost(MEASURED, limits[MEASURED])}: the fastest is written and timed"
                )
        return found

    @property
    def loss(self) -> Additive | None:
        """The losses of the aim's method; None before they are measured, and of an order."""
        return self._losses.get(self.aim.method)

    def losses(self, method: str = "") -> Additive:
        """The loss of every choice of every group, by a sensitivity that has one; that of the aim if not said."""
        name = method or self.aim.method
        if name not in self._losses:
            images = self.images.validation or self.images.calibration
            with self._announced(name, images) as advance:
                self._losses[name] = self.measures[name](self.library, images, self._kept(name, images), advance)
        return self._losses[name]

    def scores(self) -> list[tuple[float]]:
        """By an order, the score of every group in the network at its widest: the least goes down first."""
        walk = self._walk({}, {})
        next(walk)
        step = next(walk, None)
        return [(score,) for score in step.scores] if step is not None else [(0.0,)] * len(self.space.groups)

    def steps(self, limits: Mapping[str, float]) -> list[Assignment]:
        """The walk of an order, down to the limits, or to the narrowest network."""
        walk = self._walk(self.costs, self._all_limits(limits))
        return [Assignment(choices=step.choices, loss=0.0, costs=step.costs) for step in walk]

    def _walk(self, costs: Mapping[str, Additive], limits: Mapping[str, float]) -> Iterator[Step]:
        calibration = self.images.calibration
        validation = self.images.validation or calibration  # the same only for orders that look at none
        with self._announced(self.aim.method, calibration, validation) as advance:
            yield from self.measure.trajectory(
                self.library,
                calibration,
                validation,
                costs,
                limits,
                self._kept(self.aim.method, calibration, validation),
                advance,
            )

    def chosen(self) -> list[Assignment]:
        """The points of a front."""
        if self.orders:
            return spread(self.steps({}), self.aim.over[0], self.aim.points)
        loss = self.losses()
        problem = self._problem(loss, {})
        solver = _made(SOLVERS, self.aim.solver or "pareto", self._front(), "solver")
        found = []
        for point in solver(problem).points:
            costs = {key: point.costs[key] for key in self._all_limits(dict.fromkeys(self.aim.over, 0.0))}
            found.append(self._refined(self._problem(loss, costs), point))
        return list({point.choices: point for point in found}.values())

    def one_width(self) -> list[Assignment]:
        """Within limits, the network of one width for all groups that is foretold to lose least, if there is one.

        What sensitivities foretell is of networks put together of a library; a recipe that looks at several layers
        may do more for one of them than for another. Tables are not exact everywhere, and what is written is measured:
        so one that is foretold to be a little above a limit is tried, too.
        """
        limits = {name: limit * (1 + SLACK) for name, limit in self._all_limits(self.aimed).items()}
        problem = self._problem(self.loss or self._any_loss(), limits)
        fitting = [problem.assignment(choices) for choices in self.uniform() if problem.fits(choices)]
        bits = {one.choices: self.space.mean_bits(one.choices) for one in fitting}
        return sorted(fitting, key=lambda one: (one.loss, -bits[one.choices]))[:1]

    def within(self, limits: Mapping[str, float], method: str = "") -> Assignment:
        """The best within limits by a sensitivity; of an order, the end of its walk."""
        name = method or self.aim.method
        if is_order(name):
            return self.steps(limits)[-1]
        solver = _made(SOLVERS, self.aim.solver or "milp", self.aim.solving, "solver")
        problem = self._problem(self.losses(name), self._all_limits(limits))
        best: Assignment = solver(problem).best
        return self._refined(problem, best) if name == self.aim.method else best

    def _refined(self, problem: Problem, start: Assignment) -> Assignment:
        """The best of what was tried near an assignment."""
        tries = self.aim.refine
        if not tries:
            return start
        images = self.images.validation or self.images.calibration
        whole = Whole(
            self.library, images, getattr(self.measure, "metric", by_divergence), self._kept(self.aim.method, images)
        )
        self.terminal.note(f"refine: at most {tries} passes of the network over {len(images):,} images")
        with self.terminal.progress("refine", tries) as advance:

            def measured(choices: Choices) -> float:
                advance(1)
                return whole(choices)

            return refine(problem, start, measured, tries)[0]

    def uniform(self) -> list[Choices]:
        """Assignments that give every group the same width, where each has it."""
        found = []
        for width in dict.fromkeys(choice for group in self.space.groups for choice in group.choices):
            same = [
                next((i for i, c in enumerate(group.choices) if c.weight == width.weight
                      and (c.activation in (None, width.activation) or width.activation is None)), None)
                for group in self.space.groups
            ]  # fmt: skip
            whole = [i for i in same if i is not None]
            if len(whole) == len(same) and tuple(whole) not in found:
                found.append(tuple(whole))
        return found

    def write(self, kind: str, assignments: Sequence[Assignment], method: str = "") -> list[Point]:
        """Make points, those that are there already left as they are, in the order given."""
        jobs = [self._job(assignment.choices) for assignment in assignments]
        found = [kept_point(job) for job in jobs]
        missing = {job.folder: job for job, kept in zip(jobs, found, strict=True) if kept is None}
        with self.terminal.progress("points", len(missing)) as advance:
            rows = self.executor.run(make_point, list(missing.values()), done=lambda i, row: advance(1))
        made = dict(zip(missing, rows, strict=True))
        return [
            self._point(kind, method, assignment, job, made[job.folder] if row is None else row)
            for assignment, job, row in zip(assignments, jobs, found, strict=True)
        ]

    def excess(self, point: Point, limits: Mapping[str, float]) -> dict[str, float]:
        """`{cost: measured over limit}` of the costs of a point that are above their limits.

        A latency relative to the float file's is held against the float file of the same rounds: a machine that is
        slower now is slower for both. At a confidence it is the upper end of its interval that is held, where there
        were rounds enough for one.
        """
        shares = self.aim.shares
        found = {}
        for name, limit in limits.items():
            value, most = point.costs[name], limit
            if name == MEASURED and name in shares and point.latency is not None:
                upper = point.latency["to_float_high"] if self.aim.confidence else None
                value, most = point.latency["to_float"] if upper is None else upper, shares[name]
            if not within(value, most):
                found[name] = value / most
        return found

    def _point(
        self, kind: str, method: str, assignment: Assignment, job: PointJob, row: Mapping[str, Any]
    ) -> Point:  # fmt: skip
        choices = assignment.choices
        widths = self.space.widths(choices)
        predicted = {
            name: max(self.space.cost(table).of(choices) for table in tables) for name, tables in self.tables.items()
        }
        latency = None
        if MEASURED in self.tables:
            cost = self.cost(MEASURED)
            checked = cost.check(self.library.network(choices), self.tables[MEASURED], widths)
            measured, to_float = checked.measured, checked.measured.to_float
            latency = {
                "ms": measured.ms, "float_ms": measured.float_ms, "to_float": to_float.ratio,
                "to_float_low": finite(to_float.low), "to_float_high": finite(to_float.high),  # too few rounds for one
                "confidence": cost.confidence,
                "predicted_ms": checked.predicted_ms, "predicted_to_float": checked.predicted_to_float,
            }  # fmt: skip
        loss = None if self.loss is None else self.loss.of(choices)
        return Point(
            name=Path(job.folder).name, kind=kind, method=method, choices=choices, widths=widths,
            mean_bits=self.space.mean_bits(choices), loss=loss, predicted=predicted, found=row, latency=latency,
            folder=Path(job.folder),
        )  # fmt: skip

    def _job(self, choices: Choices) -> PointJob:
        told = {name: self.aim.costing.get(name, {}) for name in self.tables if name != MEASURED}
        job = PointJob(
            folder="", network=str(self.network_path), plan=self.library.plan(choices).dumps(), recipe=self.recipe,
            settings=self.settings, costs=told, verified=self.verified,
            seed=self.terminal.seed, **self.images.job,
        )  # fmt: skip
        name = f"w{self.space.mean_bits(choices):.2f}-{job.key[:8]}"
        return dataclasses.replace(job, folder=str(self.folder / "points" / name))

    def cost(self, name: str) -> Any:
        """A cost with its settings; the confidence of a latency is that of the search, if not said."""
        own = {"confidence": self.aim.confidence} if name == MEASURED and self.aim.confidence else {}
        return _made(COSTS, name, {**own, **self.aim.costing.get(name, {})}, "cost")

    def problem(self) -> Problem:
        """Groups, costs and, where the sensitivity has one, the loss; without limits."""
        return self._problem(self.loss or self._any_loss(), {})

    def cannot(self, limits: Mapping[str, float]) -> bool:
        """Whether no choice of widths is within limits."""
        try:
            feasible(self._problem(self._any_loss(), self._all_limits(limits)))
        except InputError:
            return True
        return False

    def bounded(self) -> Problem:
        """Groups, costs and the limits that tables can be held to; without losses."""
        return self._problem(self._any_loss(), self._all_limits(self.aimed))

    def _problem(self, loss: Additive, limits: Mapping[str, float]) -> Problem:
        return Problem(groups=self.space.groups, loss=loss, costs=self.costs, limits=limits)

    def _all_limits(self, limits: Mapping[str, float]) -> dict[str, float]:
        """Limits of the tables: a cost of several has all of them below its limit."""
        return {key: limits[key.partition(" (")[0]] for key in self.costs if key.partition(" (")[0] in limits}

    def _any_loss(self) -> Additive:
        return Additive(values=tuple((0.0,) * len(group.choices) for group in self.space.groups))

    def _front(self) -> dict[str, Any]:
        return {"costs": self.aim.over, "points": self.aim.points, **self.aim.solving}

    def _reference(self, name: str) -> float:
        return self.tables[name][0].reference

    def _kept(self, method: str, *images: Batches) -> Kept:
        made_from = json.dumps([
            repr(self.measures[method]), [digest_of(batches) for batches in images], repr(self.space.groups),
            self.base.plan.dumps() if self.base.plan else "",
        ])  # fmt: skip
        return Kept(self.shelf.path(method, made_from, ".jsonl"))

    def _announced(self, method: str, *images: Batches) -> Any:
        """A progress bar, after what it takes was said."""
        count = sum(map(len, images))
        passes = self.measures[method].passes(self.space)
        self.terminal.note(f"{method}: at most {passes:,.0f} passes of the network over {count:,} images")
        return self.terminal.progress(method, count)

    def _check_labels(self) -> None:
        images = self.images
        for batches in (
            {images.calibration, images.validation} if self.orders else {images.validation or images.calibration}
        ):
            if batches is not None and any(measure.needs_labels for measure in self.measures.values()):
                check_labels(batches, self.network, batches.source.name)


def spread(walked: Sequence[Assignment], cost: str, points: int) -> list[Assignment]:
    """Steps of a walk that lie evenly over a cost, the first and the last among them.

    Example:
        >>> steps = [Assignment(choices=(i,), loss=0.0, costs={"size": 10.0 - i}) for i in range(11)]
        >>> [step.costs["size"] for step in spread(steps, "size", 3)]
        [10.0, 5.0, 0.0]
    """
    first, last = walked[0].costs[cost], walked[-1].costs[cost]
    wanted = [first + (last - first) * i / max(1, points - 1) for i in range(points)]
    near = [min(walked, key=lambda step: abs(step.costs[cost] - value)) for value in wanted]
    return list({step.choices: step for step in near}.values())


def _made(table: Mapping[str, Any], name: str, settings: Mapping[str, Any], what: str) -> Any:
    row = lookup(table, name, what).load()
    return row(**checked_settings(row, settings, f"{what} {name}"))
