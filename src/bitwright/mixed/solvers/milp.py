"""Integer programming: the least loss within all budgets at once, and the proof that nothing loses less.

    minimise    sum_gc loss_gc x_gc    subject to    sum_gc cost_kgc x_gc <= limit_k,    sum_c x_gc = 1,    x whole

Layers that share their widths are one group. Interactions between two groups are terms in the products of their
choices. The program is in `bitwright.mixed.one_hot`.

Source: Yao et al., HAWQ-V3, ICML 2021, section 3.3 (one of size, BOPs or latency; 4 or 8 bits); Hubara et al.,
Improving Post Training Neural Quantization (AdaQuant), 2020, section 4 (any widths).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.mixed.feasible import feasible, hard, reachable, told
from bitwright.mixed.one_hot import PRODUCTS, Bound, Minimum, minimise
from bitwright.mixed.problem import Problem, Solution


@dataclass(frozen=True, kw_only=True)
class Milp:
    """The least loss within all budgets, by mixed-integer linear programming.

    Attributes:
        gap: stop at a loss that is known to be within this part of the least one, both counted from the sum of every
            group's least loss; 0 for the least one itself.
        time_limit: seconds after which the best found so far is given, with what is known of the least; None for none.
        products: most products of choices that interactions may need.

    Example:
        >>> from bitwright.mixed.problem import Additive, Group, Width
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> loss, size = Additive(values=((0.0, 1.0), (0.0, 2.0))), Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> found = Milp()(Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 50.0}))
        >>> found.best.choices, found.best.loss, found.proven
        ((0, 1), 2.0, True)
    """

    gap: float = 0.0
    time_limit: float | None = None
    products: int = PRODUCTS

    def __post_init__(self) -> None:
        if not 0 <= self.gap < 1:
            raise InputError("milp.gap", told(self.gap), "0 up to, not including, 1")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InputError("milp.time_limit", f"{self.time_limit:g} s", "more than 0")

    def __call__(self, problem: Problem, at_least: Mapping[str, float] | None = None) -> Solution:
        """Solve a problem.

        Args:
            problem: groups, loss, costs and limits.
            at_least: cost -> the least that it may be, such as one end of a slice of a front.

        Raises:
            InputError: limits that cannot be met, too many products, or no assignment found in time.
        """
        bounds = {name: bound for name, bound in zip(problem.limits, hard(problem), strict=True)}
        for name, least in (at_least or {}).items():
            cost = lookup(problem.costs, name, "cost")
            given = bounds.get(name)
            bounds[name] = dataclasses.replace(given, least=least) if given else Bound(of=cost, least=least)
        found = minimise(
            problem.sizes, problem.loss, list(bounds.values()),
            gap=self.gap, time_limit=self.time_limit, products=self.products,
        )  # fmt: skip
        if found is None:
            feasible(problem)  # says which limit cannot be met
            spans = reachable(problem)
            asked = ", ".join(f"{name} >= {told(least)}" for name, least in (at_least or {}).items())
            each = ", ".join(f"{told(spans[name][0])} to {told(spans[name][1])}" for name in at_least or {})
            raise InputError("at_least", f"{asked}, which no assignment within the limits has", f"within {each}")
        best = problem.assignment(found.choices)
        return Solution(best=best, points=(best,), bound=found.bound, notes=self._notes(found))

    def _notes(self, found: Minimum) -> tuple[str, ...]:
        """What is not proven, and why."""
        if found.proven:
            return ()
        left = f"a loss below {found.value:.6g} is possible, none below {found.bound:.6g}"
        if found.timed_out:
            return (f"{self.time_limit:g} s were up: {left}",)
        return (f"{left} (gap {self.gap:g})" if self.gap else f"{left} (more were too near a limit to tell apart)",)
