"""What a search is to find: by which sensitivities and solver, within which bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitwright.cost import COSTS
from bitwright.cost.budget import Budget, parse_budget, spelled
from bitwright.errors import InputError
from bitwright.lookup import lookup

#: Costs that are told of every point, beside those that are bounded.
TOLD = ("size", "weights", "bops")
#: The cost that is measured: what its table foretells is no bound.
MEASURED = "latency"


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a search is to find.

    Attributes:
        method: row of `SENSITIVITIES`.
        measure: its settings.
        solver: row of `SOLVERS`; "" for `milp` with budgets, `pareto` without.
        solving: its settings.
        also: rows of `SENSITIVITIES` whose own best networks within budgets are written, too, to take the best file.
        refine: networks near what a solver found that are tried whole; 0 for none.
        polish: networks near the best that was written that are quantized anew and measured; 0 for none.
        budgets: bounds on costs.
        costing: `{cost: its settings}`.
        over: the cost, or the two, by which a front is spread, where there is no budget.
        points: of a front.
        uniform: write the networks of one width for all groups, too.
        max_drop: share of right answers that may be lost, None for any.
        confidence: at which the drop and a latency relative to the float file's have to hold; 0 for what was measured.
    """

    method: str = "kl"
    measure: Mapping[str, Any] = field(default_factory=dict)
    solver: str = ""
    solving: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    refine: int = 0
    polish: int = 0
    budgets: tuple[Budget, ...] = ()
    costing: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    over: tuple[str, ...] = ("size",)
    points: int = 8
    uniform: bool = False
    max_drop: float | None = None
    confidence: float = 0.95

    @property
    def shares(self) -> dict[str, float]:
        """`{cost: bound}` of the budgets that are shares of the float file's."""
        return {budget.name: budget.value for budget in self.budgets if budget.relative}

    @property
    def costs(self) -> tuple[str, ...]:
        """All costs that a search has tables of."""
        return tuple(dict.fromkeys((*TOLD, *(budget.name for budget in self.budgets), *self.over)))


def unit(name: str) -> str:
    """Unit of a cost."""
    found: str = lookup(COSTS, name, "cost").load().unit
    return found


def told_cost(name: str, value: float) -> str:
    """A cost for people, with its unit; one of several tables has a number behind its name.

    Example:
        >>> told_cost("size", 200000.0), told_cost("memory (2)", 1500.0)
        ('200 kB', '1.5 kB')
    """
    return spelled(value, unit(name.partition(" (")[0]))


def parse_budgets(texts: Sequence[str]) -> tuple[Budget, ...]:
    """Budgets, each of another cost.

    Raises:
        InputError: one that cannot be read, or two of one cost.
    """
    found = tuple(map(parse_budget, texts))
    names = [budget.name for budget in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError("--budget", f"bounds {name} twice", "one bound a cost")
    return found
