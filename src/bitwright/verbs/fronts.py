"""What a search gives: written points within bounds, or a front of them; and the search as Python calls it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.deploy.evaluate import Drop
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.mixed.problem import Assignment, Choices
from bitwright.mixed.solvers.pareto import not_dominated
from bitwright.verbs.aim import told_cost, unit
from bitwright.verbs.polishing import polished
from bitwright.verbs.searching import TRIES, Point, Searching

#: A limit that was missed is drawn in to where the same miss would meet it, and by this part more.
MORE = 1e-3
#: What the point is called that tries by the recipe of points have found.
POLISH = "polish"


@dataclass(frozen=True, kw_only=True, eq=False)
class Front:
    """The networks that a search wrote.

    Attributes:
        points: by rising cost.
        best: within budgets, the one of least noise on the calibration images, or, polished, of least loss on the
            validation images; of a front, the most accurate; of a search for the least cost within a drop, the
            cheapest. Where none is within the bounds, the nearest one.
        met: whether `best` is within all bounds, by what was measured of it.
        excess: of `best`: `{bound: by which factor it is exceeded}`, and `drop` in points above the goal.
        over: the cost, or the two, that points are spread over.
        reference: accuracy of the float network; None without labels.
        float_costs: of the float network.
        limits: `{cost: most that it may be}`.
        notes: what the reader has to know.
        seconds: of the search.
        folder: where everything is.
        searching: what it was found with.
    """

    points: tuple[Point, ...]
    best: Point
    met: bool
    excess: Mapping[str, float]
    over: tuple[str, ...]
    reference: float | None
    float_costs: Mapping[str, float]
    limits: Mapping[str, float]
    notes: tuple[str, ...]
    seconds: float
    folder: Path
    searching: Searching

    def plot(self, path: str | Path, over: str = "") -> None:
        """Draw the front, accuracy with its interval over cost; PNG or SVG by the ending of the path.

        Args:
            path: of the picture.
            over: a cost of all points; the first of `self.over` if empty.

        Raises:
            InputError: another ending, points without accuracy, or a cost that they do not have.
            UnsupportedError: matplotlib is not installed.
        """
        from bitwright.report.front import FrontPoint, picture

        over = over or self.over[0]
        lookup(self.float_costs, over, "cost")
        form = Path(path).suffix.removeprefix(".").lower()
        drawn = [
            FrontPoint(label=f"{point.mean_bits:.2f} bits", cost=point.costs[over], kind=point.kind,
                       **_accuracy(point.drop))
            for point in self.points if point.drop is not None
        ]  # fmt: skip
        if not drawn or self.reference is None:
            raise InputError("plot", "points without accuracy", "labelled images to measure points on")
        reference = FrontPoint(
            label="float", cost=self.float_costs[over], kind="float", accuracy=self.reference,
            low=self.reference, high=self.reference,
        )  # fmt: skip
        title = f"{self.searching.aim.method}, points by {self.searching.recipe}"
        content = picture([*drawn, reference], cost=over, unit=unit(over), title=title, form=form)
        write_bytes(path, content)


def _accuracy(drop: Mapping[str, float]) -> dict[str, float]:
    """Accuracy with the interval of the difference to float, which is known better than either."""
    accuracy, reference = drop["accuracy"], drop["reference"]
    low, high = min(accuracy, reference - drop["high"]), max(accuracy, reference - drop["low"])
    return {"accuracy": accuracy, "low": max(0.0, low), "high": min(1.0, high)}


def found_front(searching: Searching) -> Front:
    """Search.

    Raises:
        InputError: bounds that cannot be met by any choice of widths, or what `quantize` refuses.
        UnsupportedError: a width that the target lacks.
    """
    began = time.perf_counter()
    if searching.images.same:
        searching.terminal.note("note: points are measured on the calibration images; give --eval-data for others")
    searching.prepare()
    aim, notes = searching.aim, list[str]()
    losses: Mapping[Choices, float] = {}
    if searching.limits:
        points = _within(searching, notes)
        if aim.polish:
            fitting = [point.choices for point in points if not searching.excess(point, searching.limits)]
            start = fitting or [point.choices for point in points]
            found, losses = polished(searching, start)
            notes.append(
                f"polish: {min(map(losses.__getitem__, start)):.4g} became {losses[found.choices]:.4g}, the least of "
                f"{len(losses)} networks on the {len(searching.images.judged):,} images that chose it"
            )
            if found.choices not in {point.choices for point in points}:
                points += searching.write("search", [found], POLISH)
    elif aim.max_drop is not None:
        points = _cheapest(searching)
    else:
        points = searching.write("search", searching.chosen(), aim.method)
    candidates = points if searching.limits else [point for point in points if point.kind == "search"]
    best = _best(searching, candidates, losses)
    excess = excess_of(searching, best)
    if aim.uniform:
        problem = searching.problem()
        same = {point.choices for point in points if point.kind == "uniform"}
        left = [problem.assignment(choices) for choices in searching.uniform() if choices not in same]
        points += searching.write("uniform", left)
    if others := searching.shelf.others():
        notes.append(f"{others} files in {searching.shelf.folder} are of other networks, data or settings: not used")
    drop = best.drop
    return Front(
        points=tuple(sorted(points, key=lambda point: point.costs[aim.over[0]])), best=best, met=not excess,
        excess=excess, over=aim.over, reference=None if drop is None else drop["reference"],
        float_costs={name: tables[0].reference for name, tables in searching.tables.items()},
        limits=searching.limits, notes=tuple(notes), seconds=time.perf_counter() - began, folder=searching.folder,
        searching=searching,
    )  # fmt: skip


def _within(searching: Searching, notes: list[str]) -> list[Point]:
    """Points within limits: by every method its own, and the best one of one width."""
    found = [_aimed(searching, method, notes) for method in searching.measures]
    found += searching.write("uniform", searching.one_width())
    points: dict[Choices, Point] = {}
    for point in found:
        points.setdefault(point.choices, point)
    return list(points.values())


def _aimed(searching: Searching, method: str, notes: list[str]) -> Point:
    """The point of a method: where what is written is above a limit, the next try aims lower by as much."""
    limits = dict(searching.aimed)
    (point,) = searching.write("search", [searching.within(limits, method)], method)
    for _ in range(TRIES - 1):
        excess = searching.excess(point, searching.limits)
        if not excess:
            break
        for name, factor in excess.items():
            limits[name] = min(limits[name], point.predicted[name]) / factor * (1 - MORE)
            notes.append(
                f"{name} of {point.name} is {told_cost(name, point.costs[name])}, "
                f"{told_cost(name, point.predicted[name])} by its table: aimed lower"
            )
        if searching.cannot(limits):
            notes.append("no choice of widths is foretold to be that low")
            break
        (point,) = searching.write("search", [searching.within(limits, method)], method)
    return point


def _cheapest(searching: Searching) -> list[Point]:
    """Points of a front around the cheapest that is within the drop: the front is halved until it is found."""
    ladder = sorted(searching.chosen(), key=lambda one: one.costs[searching.aim.over[0]])
    written: dict[int, Point] = {}
    low, high = 0, len(ladder) - 1
    while low <= high:
        middle = (low + high) // 2
        (written[middle],) = searching.write("search", [ladder[middle]], searching.aim.method)
        if excess_of(searching, written[middle]):
            low = middle + 1
        else:
            high = middle - 1
    return list(written.values())


def excess_of(searching: Searching, point: Point) -> dict[str, float]:
    """What of a point is above its bounds: costs as factors, the drop in points; empty where it is within all."""
    found = searching.excess(point, searching.limits)
    goal = searching.aim.max_drop
    if goal is not None:
        assert point.drop is not None, "labels were asked for"
        upper = Drop(**point.drop).upper(searching.aim.confidence)  # type: ignore[arg-type]
        if upper > goal:
            found["drop"] = 100 * (upper - goal)
    return found


def _best(searching: Searching, points: Sequence[Point], losses: Mapping[Choices, float]) -> Point:
    """The best point within the bounds, or the nearest to them; by the loss of its file where that was measured."""

    def rank(point: Point) -> tuple[float, ...]:
        excess = excess_of(searching, point)
        cost = point.costs[searching.aim.over[0]]
        if searching.limits:
            judged = point.found["calibration_sqnr_db"]
            lost = losses.get(point.choices, 0.0)
            return (len(excess) > 0, sum(excess.values()), lost, -math.inf if judged is None else -judged, cost)
        if searching.aim.max_drop is not None:
            return (len(excess) > 0, sum(excess.values()), cost)
        drop = point.drop
        lost = drop["drop"] if drop is not None else -(point.found["sqnr_db"] or 0.0)
        return (len(excess) > 0, sum(excess.values()), lost, cost)

    return min(points, key=rank)


def front_of(points: Sequence[Point], over: Sequence[str]) -> list[Point]:
    """The points than which none is both cheaper, by all of these costs, and more accurate, by what was measured."""
    labelled = [point for point in points if point.drop is not None]
    as_assignments = {
        i: Assignment(choices=(i,), loss=point.drop["drop"], costs={name: point.costs[name] for name in over})
        for i, point in enumerate(labelled) if point.drop is not None
    }  # fmt: skip
    return [labelled[one.choices[0]] for one in not_dominated(list(as_assignments.values()), over)]


def point_json(point: Point, *, on_front: bool, best: bool) -> dict[str, Any]:
    """A point as `--json` prints it."""
    return {
        "name": point.name,
        "kind": point.kind,
        "method": point.method,
        "file": str(point.folder / "model.onnx"),
        "widths": {region: list(widths) for region, widths in point.widths.items()},
        "mean_bits": point.mean_bits,
        "loss": point.loss,
        "costs": point.costs,
        "predicted": dict(point.predicted),
        "latency": None if point.latency is None else dict(point.latency),
        "drop": None if point.drop is None else dict(point.drop),
        "agreement": point.found["agreement"],
        "sqnr_db": point.found["sqnr_db"],
        "calibration_sqnr_db": point.found["calibration_sqnr_db"],
        "simulated": point.found["simulated"],
        "codes": point.found["codes"],
        "mismatches": point.found["mismatches"],
        "proven": point.found["proven"],
        "seconds": point.found["seconds"],
        "on_front": on_front,
        "best": best,
    }
