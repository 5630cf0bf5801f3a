"""Assignments as a mixed-integer linear program, solved by HiGHS: exact, or with the gap that was left.

`x_gc` is 1 where group g has its choice c, else 0, and `sum_c x_gc = 1`. A sum over groups is linear in x. A pair of
groups gets a variable for each product of their choices, `y_cd = x_gc x_hd`, through

    sum_d y_cd = x_gc,   sum_c y_cd = x_hd,   y >= 0

which leaves no other value to y where x is whole: interactions of either sign are exact. What is due once for choices
S gets two variables, `z + z' = 1`, of which z counts:

    z >= sum_(c: (g,c) in S) x_gc for each group g,   z <= sum_((g,c) in S) x_gc

so z is exact too, whatever would profit from another value: a bound from below, or a sum with the other sign.

HiGHS takes 1e-6 for whole and for nothing, and stops when an objective is known to 1e-6. So the objective is scaled
to a largest coefficient of `LARGEST`, limits to one of `ROWS`; every assignment is added up by itself, and one that is
above a limit nevertheless is cut off by a row of its own; choices that a found assignment rules out leave the program,
after which the others count for more.

Source: Huangfu and Hall, Parallelizing the dual revised simplex method, Mathematical Programming Computation 2018
(HiGHS, through `scipy.optimize.milp`); the form with products: Adams and Sherali, Management Science 1986.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array

from bitwright.errors import InputError
from bitwright.mixed.problem import ROUNDING, Additive, Choices, within

#: Largest coefficient of the objective: 1e-6 is then 1e-10 of it.
LARGEST = 1e4
#: Largest coefficient of the rows of limits: choices that are whole within 1e-6 then keep to them within 1e-6.
ROWS = 1.0
#: Most products of choices: each is a variable.
PRODUCTS = 20_000
#: Assignments above a limit, by less than HiGHS tells apart, that are cut off before limits are drawn in a little.
CUTS = 20
#: By how much of their largest coefficient they are then drawn in.
DRAWN_IN = 1e-6

#: Coefficients by column, with the least and the most that their sum may be.
Row = tuple[dict[int, float], float, float]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Limits of a sum; with `soft`, going beyond `most` is allowed, and by each `soft` adds 1 to the objective.

    Example:
        >>> Bound(of=Additive(values=((1.0, 2.0),)), most=1.5).least
        -inf
    """

    of: Additive
    least: float = -math.inf
    most: float = math.inf
    soft: float | None = None

    def holds(self, choices: Choices) -> bool:
        """Whether these choices keep to it; what is soft always holds."""
        value = self.of.of(choices)
        return self.soft is not None or (within(value, self.most) and within(-value, -self.least))


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The choices of a least objective.

    Attributes:
        choices: one a group.
        value: their objective, without what soft bounds add.
        bound: no choices have less, up to 1e-10 of the largest value that mattered.
        proven: whether `value` is the least.
        timed_out: whether time was up before that was known.
    """

    choices: Choices
    value: float
    bound: float
    proven: bool
    timed_out: bool


@dataclass(frozen=True)
class Columns:
    """Which variable stands in which column: choices, products, what is due, then what soft bounds are exceeded by.

    The column before the one of what is due is 1 where it is not due: of either two one counts, as in a group.
    """

    sizes: Choices
    pairs: tuple[tuple[int, int], ...]
    dues: tuple[frozenset[tuple[int, int]], ...] = ()

    @cached_property
    def starts(self) -> np.ndarray:
        """The first column of each group, of each pair, of what is due, then how many columns these are."""
        areas = [*self.sizes, *(self.sizes[g] * self.sizes[h] for g, h in self.pairs), *(2 for _ in self.dues)]
        return np.concatenate([[0], np.cumsum(areas)])

    @property
    def count(self) -> int:
        """Columns of choices, products and what is due."""
        return int(self.starts[-1])

    @property
    def products(self) -> int:
        """Columns of products."""
        return self.count - sum(self.sizes) - 2 * len(self.dues)

    def vector(self, of: Additive) -> np.ndarray:
        """Coefficients of a sum, its rest left out."""
        none = [np.zeros(self.sizes[g] * self.sizes[h]) for g, h in self.pairs]
        matrices = [np.ravel(of.pairs[pair]) if pair in of.pairs else zero
                    for pair, zero in zip(self.pairs, none, strict=True)]  # fmt: skip
        once = [(0.0, math.fsum(due.cost for due in of.once if due.choices == choices)) for choices in self.dues]
        return np.concatenate([*map(np.asarray, of.values), *matrices, *once]).astype(float)

    def rows(self) -> list[Row]:
        """One choice a group; products that are those of the choices; due is what one of its choices makes due."""
        found: list[Row] = []
        for g, size in enumerate(self.sizes):
            found.append((dict.fromkeys(range(self.starts[g], self.starts[g] + size), 1.0), 1.0, 1.0))
        for p, (g, h) in enumerate(self.pairs, len(self.sizes)):
            area = np.arange(self.starts[p], self.starts[p + 1]).reshape(self.sizes[g], self.sizes[h])
            for group, lines in ((g, area), (h, area.T)):
                for c, line in enumerate(lines.tolist(), int(self.starts[group])):
                    found.append((dict.fromkeys(line, 1.0) | {c: -1.0}, 0.0, 0.0))
        for i, choices in enumerate(self.dues, len(self.sizes) + len(self.pairs)):
            not_due, due = int(self.starts[i]), int(self.starts[i]) + 1
            found.append(({not_due: 1.0, due: 1.0}, 1.0, 1.0))
            making = {g: [int(self.starts[g]) + c for h, c in sorted(choices) if h == g] for g, _ in sorted(choices)}
            found += [(dict.fromkeys(columns, -1.0) | {due: 1.0}, 0.0, np.inf) for columns in making.values()]
            found.append((dict.fromkeys(itertools.chain(*making.values()), 1.0) | {due: -1.0}, 0.0, np.inf))
        return found

    def lowered(self, of: Additive) -> tuple[np.ndarray, float]:
        """Coefficients less the least of each group, pair and due, of which one column counts, and the sum of those.

        No coefficient is negative, so each bounds the whole sum.
        """
        vector = self.vector(of)
        least = np.minimum.reduceat(vector, self.starts[:-1])
        return vector - np.repeat(least, np.diff(self.starts)), math.fsum([*least, of.rest])

    def chosen(self, x: np.ndarray) -> Choices:
        """The choices of a solution."""
        return tuple(int(np.argmax(x[self.starts[g] :][:size])) for g, size in enumerate(self.sizes))


@dataclass
class _Program:
    """Rows, columns and objective as HiGHS takes them; cuts are added, columns closed."""

    columns: Columns
    objective: np.ndarray  # of choices, products and what is due; not negative
    bounds: Sequence[Bound]
    open: np.ndarray  # columns that may be 1
    cuts: list[Choices] = field(default_factory=list)
    drawn_in: float = 0.0

    def solve(self, gap: float, time_limit: float | None) -> tuple[OptimizeResult, float]:
        """HiGHS's answer, and by what the objective was multiplied."""
        soft = sum(bound.soft is not None for bound in self.bounds)
        objective = np.concatenate([self.objective * self.open, np.ones(soft)])
        scale = LARGEST / float(objective.max()) if objective.max() > 0 else 1.0
        rows = [*self.columns.rows(), *self._limits()]
        starts = self.columns.starts.tolist()
        rows += [({starts[g] + c: 1.0 for g, c in enumerate(cut)}, -np.inf, len(cut) - 1.0) for cut in self.cuts]
        at = [(i, column, value) for i, (row, _, _) in enumerate(rows) for column, value in row.items()]
        i, j, values = (np.array(part) for part in zip(*at, strict=True))
        matrix = coo_array((values, (i, j)), shape=(len(rows), len(objective))).tocsr()
        upper = np.concatenate([self.open.astype(float), np.full(soft, np.inf)])
        # Products are whole where choices are; HiGHS, told so, has no continuous rest with which to miss a tight row.
        whole = np.arange(len(objective)) < self.columns.count
        options = {"mip_rel_gap": gap} | ({} if time_limit is None else {"time_limit": time_limit})
        # Presolve has called programs infeasible that had assignments far from every limit, where others were above
        # one by a part in 1e9 (HiGHS of scipy 1.17): such an answer is asked for again without it.
        for presolve in (True, False):
            with _printing_to_stderr():
                found = milp(
                    objective * scale, integrality=whole.astype(int), bounds=Bounds(np.zeros(len(objective)), upper),
                    constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for *_, high in rows]),
                    options={**options, "presolve": presolve},
                )  # fmt: skip
            if found.status != 2:
                break
        return found, scale

    def _limits(self) -> list[Row]:
        """The rows of the bounds, scaled; soft ones with a column of their own."""
        found: list[Row] = []
        slack = self.columns.count
        for bound in self.bounds:
            lowered, floor = self.columns.lowered(bound.of)
            lowered = lowered * self.open
            scale = ROWS / (float(lowered.max()) or 1.0)
            row = {int(i): float(lowered[i] * scale) for i in np.flatnonzero(lowered)}
            margin = self.drawn_in * ROWS
            if bound.soft is not None:
                row[slack], margin = -bound.soft * scale, 0.0
                slack += 1
            low, high = ((edge - floor) * scale for edge in (bound.least, bound.most))
            found.append((row, low + margin, high - margin))
        return found


def minimise(
    sizes: Choices,
    objective: Additive | None,
    bounds: Sequence[Bound] = (),
    *,
    gap: float = 0.0,
    time_limit: float | None = None,
    products: int = PRODUCTS,
) -> Minimum | None:
    """The choices of the least objective within bounds, or None where there are none.

    Args:
        sizes: choices of each group.
        objective: what is to be small; None where only soft bounds count.
        bounds: what has to hold.
        gap: stop at choices that are known to be within this part of the least, both counted from the sum of every
            group's least; 0 for the least itself.
        time_limit: seconds for each call of HiGHS.
        products: most products of choices of pairs.

    Raises:
        InputError: too many products, or no choices found when time was up.

    Example:
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> minimise((2, 2), loss, [Bound(of=size, most=50.0)]).choices
        (0, 1)
        >>> minimise((2, 2), loss, [Bound(of=size, most=40.0)]) is None
        True
    """
    of = objective if objective is not None else Additive(values=tuple((0.0,) * size for size in sizes))
    tables = (of, *(bound.of for bound in bounds))
    pairs = sorted({pair for table in tables for pair in table.pairs})
    dues = sorted({due.choices for table in tables for due in table.once}, key=sorted)
    columns = Columns(tuple(sizes), tuple(pairs), tuple(dues))
    if columns.products > products:
        raise InputError(
            "pairs", f"{columns.products} products of choices in {len(pairs)} pairs of groups",
            f"at most {products}", "leave out pairs, or choices",
        )  # fmt: skip
    lowered, floor = columns.lowered(of)
    program = _Program(columns, lowered, bounds, _open(columns, bounds))
    hard = all(bound.soft is None for bound in bounds)
    before: Minimum | None = None
    while True:
        found, scale = program.solve(gap, time_limit)
        if before is not None and found.x is None:
            return dataclasses.replace(before, timed_out=found.status == 1)
        choices = _choices_of(found, columns, time_limit)
        if choices is None:
            return None
        if not all(bound.holds(choices) for bound in bounds):
            program.cuts.append(choices)
            program.drawn_in = DRAWN_IN if len(program.cuts) > CUTS else 0.0
            continue
        value, whole = of.of(choices), program.drawn_in == 0.0
        # What HiGHS proves of limits that were drawn in is no bound; the least of every group always is.
        known = floor + (max(0.0, found.mip_dual_bound / scale) if whole else 0.0)
        least = Minimum(
            choices=choices, value=value, bound=min(value, known), proven=False, timed_out=found.status == 1
        )
        exact = found.status == 0 and (gap == 0.0 or known >= value)
        # No assignment with a part that alone is above all of this one can be better.
        keep = program.open & (lowered <= (value - floor) * (1 + 1e-9))
        if exact and hard and 0 < lowered[keep].max(initial=0.0) < lowered[program.open].max() / 10:
            program.open, before = keep, least
            continue
        return dataclasses.replace(least, bound=value, proven=True) if exact and whole else least


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """HiGHS 1.12 prints a line when a solution misses a row by a little; standard output belongs to the commands."""
    sys.stdout.flush()
    output = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has not written yet
        os.dup2(output, 1)
        os.close(output)


def _open(columns: Columns, bounds: Sequence[Bound]) -> np.ndarray:
    """The columns that are not above a bound all alone."""
    found = np.ones(columns.count, dtype=bool)
    for bound in bounds:
        if bound.soft is None:
            lowered, floor = columns.lowered(bound.of)
            # What is above by rounding alone stays: the sums of whole assignments decide.
            found &= lowered <= (bound.most - floor) + ROUNDING * (abs(bound.most) + np.abs(lowered))
    return found


def _choices_of(found: OptimizeResult, columns: Columns, time_limit: float | None) -> Choices | None:
    """The choices that HiGHS found; None if there are none."""
    if found.status == 2:
        return None
    if found.x is None and found.status == 1:
        raise InputError("milp", f"no assignment found in {time_limit:g} s", fix="give it a longer time_limit")
    if found.x is None:
        raise InputError("milp", f"HiGHS gave up: {found.message}")
    return columns.chosen(found.x)
