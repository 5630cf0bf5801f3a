"""A front: the assignments than which none is better in the loss and in all of one or two costs.

Each point is a program: the least loss below a limit of the cost, then, at this loss, the least cost. What was found
says where others can be. Between two neighbours a < b of one cost,

    the least loss below (a + b) / 2 is a:   nothing is between a and the middle
    it is p:                                 nothing is between p and the middle

so the widest gap, in cost and loss together, is halved until there are enough points, or nothing is left. Of two costs
an even grid of limits comes first; then the point p of the limits (u1, u2) leaves (p1, u2) and (u1, p2), each just
below p, in one of which every other point is.

Source: Cai et al., ZeroQ, CVPR 2020, section 3.2 (the front of size and sensitivity; there by dynamic programming);
Haimes, Lasdon and Wismer, IEEE Transactions on Systems, Man and Cybernetics 1971 (limits on all but one objective).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.mixed.feasible import feasible, hard, least, reachable
from bitwright.mixed.one_hot import PRODUCTS, Bound, Minimum, minimise
from bitwright.mixed.problem import Additive, Assignment, Choices, Due, Problem, Solution, within

#: Losses that differ by this part of what is lost above the least possible are the same: the cheaper one is taken.
SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class Pareto:
    """A front over one or two costs, within the limits of the problem.

    Attributes:
        costs: by which to spread; if not said, the costs that have a limit, or the only one.
        points: most points; where the front has more, they are spread over it.
        time_limit: seconds for each program; None for none.
        products: most products of choices that interactions may need.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> found = Pareto()(Problem(groups=groups, loss=loss, costs={"size": size}))
        >>> [(point.costs["size"], point.loss) for point in found.points]
        [(44.0, 3.0), (48.0, 2.0), (84.0, 1.0), (88.0, 0.0)]
    """

    costs: tuple[str, ...] = ()
    points: int = 24
    time_limit: float | None = None
    products: int = PRODUCTS

    def __post_init__(self) -> None:
        if self.points < 2:
            raise InputError("pareto.points", str(self.points), "2 or more")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError("pareto.time_limit", f"{self.time_limit:g} s", "more than 0")

    def __call__(self, problem: Problem) -> Solution:
        """The front of a problem; `points` by rising cost, `best` the one of the least loss.

        Raises:
            InputError: no, more than two or unknown costs, limits that cannot be met, or too many products.
        """
        names = self.costs or tuple(problem.limits) or tuple(problem.costs)
        for name in names:
            lookup(problem.costs, name, "cost")
        if not 1 <= len(names) <= 2 or len(set(names)) < len(names):
            raise InputError("pareto.costs", ", ".join(names) or "none", "one cost, or two different ones")
        feasible(problem)
        sweep = _Sweep(problem, names, self)
        whole = _halve(sweep) if len(names) == 1 else _split(sweep)
        front = not_dominated(list(sweep.found.values()), names)
        notes = [] if whole else [f"the front has more than these {len(front)} points"]
        if sweep.unproven:
            notes.append(f"{sweep.unproven} programs ran out of time: points may not be the best at their cost")
        best = min(front, key=lambda point: point.loss)
        return Solution(best=best, points=tuple(front), bound=sweep.bound, notes=tuple(notes))


def not_dominated(points: Sequence[Assignment], costs: Sequence[str]) -> list[Assignment]:
    """The points than which none is better in the loss and these costs, by rising cost; of equal ones the first.

    `a` dominates `b` if nothing of `a` is larger and something is smaller, by more than rounding.

    Example:
        >>> points = [Assignment(choices=(c,), loss=l, costs={"size": s}) for c, l, s in
        ...           [(0, 1.0, 4.0), (1, 1.0, 5.0), (2, 0.5, 6.0), (3, 0.5, 6.0)]]
        >>> [point.choices for point in not_dominated(points, ["size"])]
        [(0,), (2,)]
    """

    def numbers(point: Assignment) -> tuple[float, ...]:
        return (*(point.costs[name] for name in costs), point.loss)

    def covers(a: Assignment, b: Assignment) -> bool:
        return all(within(x, y) for x, y in zip(numbers(a), numbers(b), strict=True))

    kept = []
    for i, b in enumerate(points):
        others = ((j, a) for j, a in enumerate(points) if j != i and covers(a, b))
        if not any(j < i or not covers(b, a) for j, a in others):
            kept.append(b)
    return sorted(kept, key=numbers)


class _Sweep:
    """What was found so far, and the program that finds the next point."""

    def __init__(self, problem: Problem, names: Sequence[str], options: Pareto) -> None:
        self.problem, self.options = problem, options
        self.costs = [problem.costs[name] for name in names]
        self.spans = [high - low for low, high in (reachable(problem)[name] for name in names)]
        self.steps = [finest(cost) for cost in self.costs]
        self.found: dict[Choices, Assignment] = {}
        self.floor = problem.loss.of(least(problem.loss))
        self.unproven = 0
        self.bound: float | None = None  # of the loss within the problem's limits

    @property
    def full(self) -> bool:
        """Whether there are as many points as were asked for."""
        return len(self.found) >= self.options.points

    def numbers(self, point: Assignment) -> tuple[float, ...]:
        """The costs of the front."""
        return tuple(cost.of(point.choices) for cost in self.costs)

    def point(self, *limits: float) -> Assignment | None:
        """The least loss with these limits on the costs and, at this loss, the least costs; None if nothing fits."""
        bounds = [*hard(self.problem), *(Bound(of=c, most=m) for c, m in zip(self.costs, limits, strict=True))]
        loss = self.problem.loss
        first = self._minimise(loss, bounds)
        if first is None:
            return None
        if self.bound is None:
            self.bound = first.bound
        kept = Bound(of=loss, most=first.value + SAME * (first.value - self.floor))
        second = self._minimise(_together(self.costs, self.spans), [*bounds, kept])
        found = self.problem.assignment((second or first).choices)
        return self.found.setdefault(found.choices, found)

    def least(self, k: int) -> float:
        """The least of one of the costs within the problem's limits."""
        found = self._minimise(self.costs[k], hard(self.problem))
        assert found is not None, "the limits can be met"
        return found.value

    def _minimise(self, objective: Additive, bounds: Sequence[Bound]) -> Minimum | None:
        options = self.options
        found = minimise(
            self.problem.sizes, objective, bounds, time_limit=options.time_limit, products=options.products
        )
        self.unproven += found is not None and found.timed_out
        return found


def _halve(sweep: _Sweep) -> bool:
    """Points of one cost, the widest gap halved each time; whether these are all."""
    dear, cheap = sweep.point(math.inf), sweep.point(sweep.least(0))
    assert dear is not None and cheap is not None, "the limits can be met"
    heights = abs(cheap.loss - dear.loss) or 1.0
    gaps: list[tuple[float, float, float, Assignment, Assignment]] = []

    def cost(point: Assignment) -> float:
        return sweep.numbers(point)[0]

    def push(edge: float, a: Assignment, b: Assignment) -> None:
        """A gap from a to b that is known to be empty up to `edge`."""
        wide = math.hypot((cost(b) - cost(a)) / (sweep.spans[0] or 1.0), (a.loss - b.loss) / heights)
        if cost(b) - edge > sweep.steps[0]:
            heapq.heappush(gaps, (-wide, cost(b), edge, a, b))

    push(cost(cheap), cheap, dear)
    while gaps and not sweep.full:
        _, _, edge, a, b = heapq.heappop(gaps)
        middle = (edge + cost(b)) / 2
        for limit, above in ((middle, True), (cost(b) - sweep.steps[0], False)):
            found = sweep.point(limit)
            assert found is not None, "a is below every limit"
            if cost(found) > cost(a) + sweep.steps[0]:
                push(edge, a, found)
                if above:
                    push(limit, found, b)
                break
            edge = limit
    return not gaps


def _split(sweep: _Sweep) -> bool:
    """Points of two costs: of an even grid of limits, then of what is left below each point; whether these are all."""
    dear = sweep.point(math.inf, math.inf)
    assert dear is not None, "the limits can be met"
    solved: list[tuple[tuple[float, ...], Assignment | None]] = [((math.inf, math.inf), dear)]

    def below(limits: tuple[float, ...]) -> Assignment | None:
        """The point of these limits, which that of wider limits is if it is within them."""
        for wider, known in solved:
            if all(a <= b for a, b in zip(limits, wider, strict=True)) and (
                known is None or all(a <= b for a, b in zip(sweep.numbers(known), limits, strict=True))
            ):
                return known
        found = sweep.point(*limits)
        solved.append((limits, found))
        return found

    for limits in _grid(sweep, dear):
        if sweep.full:
            return False
        below(limits)
    waiting, seen = [(math.inf, math.inf)], set()
    while waiting:
        limits = waiting.pop(0)
        if limits in seen:
            continue
        if sweep.full:
            return False
        seen.add(limits)
        found = below(limits)
        if found is not None:
            (a, b), (u, v), (s, t) = sweep.numbers(found), limits, sweep.steps
            waiting += [(a - s, v), (u, b - t)]
    return True


def _grid(sweep: _Sweep, dear: Assignment) -> Iterable[tuple[float, ...]]:
    """Even limits between the least and what the least loss costs, about as many as points: corners, edges, inner."""
    lines = max(2, math.isqrt(sweep.options.points - 1) + 1)
    axes = []
    for k, most in enumerate(sweep.numbers(dear)):
        low = sweep.least(k)
        axes.append([most - (most - low) * i / (lines - 1) for i in range(lines)])
    places = itertools.product(range(lines), repeat=len(axes))
    ordered = sorted(places, key=lambda place: sum(0 < i < lines - 1 for i in place))
    return [tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in ordered]


def finest(cost: Additive) -> float:
    """By what sums have to differ: half the common unit of whole numbers, else a part in 1e6 of the largest.

    Example:
        >>> finest(Additive(values=((80.0, 40.0), (24.0, 12.0)))), finest(Additive(values=((0.5, 0.25),)))
        (2.0, 5e-07)
    """
    rows = [*cost.values, *(row for matrix in cost.pairs.values() for row in matrix)]
    values = [*(value for row in rows for value in row), *(due.cost for due in cost.once)]
    resolved = max(map(abs, values), default=0.0) * 1e-6 or 1e-6
    if not all(float(value).is_integer() for value in values):
        return resolved
    return max(resolved, math.gcd(*map(int, values)) / 2)


def _together(costs: Sequence[Additive], spans: Sequence[float]) -> Additive:
    """The sum of costs, each by its span."""
    values = tuple(
        tuple(math.fsum(cost.values[g][c] / (span or 1.0) for cost, span in zip(costs, spans, strict=True))
              for c in range(len(row)))
        for g, row in enumerate(costs[0].values)
    )  # fmt: skip
    pairs: dict[tuple[int, int], tuple[tuple[float, ...], ...]] = {}
    for cost, span in zip(costs, spans, strict=True):
        for pair, matrix in cost.pairs.items():
            scaled = tuple(tuple(value / (span or 1.0) for value in row) for row in matrix)
            before = pairs.get(pair)
            pairs[pair] = scaled if before is None else tuple(
                tuple(map(sum, zip(a, b, strict=True))) for a, b in zip(before, scaled, strict=True)
            )  # fmt: skip
    once = tuple(
        Due(due.cost / (span or 1.0), due.choices)
        for cost, span in zip(costs, spans, strict=True) for due in cost.once
    )  # fmt: skip
    return Additive(values=values, pairs=pairs, once=once)
