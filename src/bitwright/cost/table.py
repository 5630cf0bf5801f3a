"""The two forms of every cost: a number for a network under a plan, and a table that a search adds up.

    cost(choice) = max over tables of   rest + sum_r entries[r][(w_r, a_r)] + what is due once

`w_r` are the bits of the weight of region r, `a_r` those of the activation that it reads. Nearly every cost has one
table; peak memory has one for each moment that may be the peak, so that `cost <= budget` is one linear constraint for
each table, whatever the cost. What a file has once for all regions of some widths, as the table that unpacks their
bytes, is in `once`: one more 0-or-1 variable z in such a constraint, z >= x for each choice x that it is due for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean
from bitwright.pipeline import State
from bitwright.plan.plan import Plan

#: Bits of the weight, bits of the activation that the region reads; 32 is float.
Widths = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Once:
    """A cost that is due once, if any region has a weight of one of these widths."""

    cost: float
    weights: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A cost as a sum over regions.

    Regions that read the same value, or values of one encoding, have one width of activation: a choice must give them
    the same `a`. What an activation costs by itself stands in the entries of the first of them.

    Attributes:
        unit: of every number in it.
        rest: what no choice changes.
        entries: `{region: {(w, a): cost}}`.
        now: the widths of each region in the plan that the table was made from.
        reference: cost of the float network, to which relative budgets refer.
        once: what is due once for all regions.

    Example:
        >>> table = Table(unit="B", rest=10.0, entries={"fc": {(8, 8): 4.0, (4, 8): 2.0}}, now={"fc": (8, 8)},
        ...               reference=40.0)
        >>> table.total(), table.total({"fc": (4, 8)})
        (14.0, 12.0)
    """

    unit: str
    rest: float
    entries: Mapping[str, Mapping[Widths, float]]
    now: Mapping[str, Widths] = field(default_factory=dict)
    reference: float
    once: tuple[Once, ...] = ()

    def __getitem__(self, region: str) -> Mapping[Widths, float]:
        """`{(w, a): cost}` of a region."""
        return self.entries[region]

    def total(self, choice: Mapping[str, Widths] | None = None) -> float:
        """Cost of a choice; regions that it does not name keep their present widths.

        Raises:
            InputError: a region that the table does not have, or widths that it does not have for the region.
        """
        chosen = dict(self.now) | dict(choice or {})
        for region, widths in chosen.items():
            if region not in self.entries:
                raise InputError(
                    f"region {region!r}", "the table has no such region", fix=did_you_mean(region, self.entries)
                )
            if widths not in self.entries[region]:
                known = ", ".join(f"W{w}A{a}" for w, a in sorted(self.entries[region]))
                raise InputError(f"region {region!r}", f"has no cost at W{widths[0]}A{widths[1]}", f"one of {known}")
        widths_of_weights = {w for w, _ in chosen.values()}
        due = sum(once.cost for once in self.once if once.weights & widths_of_weights)
        return self.rest + sum(self.entries[region][widths] for region, widths in chosen.items()) + due


def total(tables: Sequence[Table], choice: Mapping[str, Widths] | None = None) -> float:
    """Cost of a choice by all tables of a cost: the largest of their sums.

    Example:
        >>> tables = [Table(unit="B", rest=r, entries={}, reference=9.0) for r in (3.0, 5.0)]
        >>> total(tables)
        5.0
    """
    return max(table.total(choice) for table in tables)


class Cost(Protocol):
    """What every row of `COSTS` is; its fields are its settings.

    Attributes:
        unit: of its numbers, a key of `budget.UNITS`.
    """

    unit: ClassVar[str]

    def of(self, state: State, plan: Plan | None = None) -> float:
        """Cost of the whole network under `plan`, or under the state's own."""
        ...

    def reference(self, state: State) -> float:
        """Cost of the float network."""
        ...

    def tables(self, state: State, weights: Sequence[int] = (), activations: Sequence[int] = ()) -> tuple[Table, ...]:
        """The cost at other widths.

        Args:
            state: with a plan; what the table does not change is as the plan has it.
            weights: bits of weights to have entries for; all that the target has up to 8 if empty.
            activations: the same of activations.
        """
        ...
