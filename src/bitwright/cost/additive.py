"""Costs that are a sum over multiplications and bits: the number and the table from the same two terms.

cost = sum_r product(r, w_r, a_r) + sum_v bit(v) * bits(v)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bitwright.cost.table import Table, Widths
from bitwright.cost.workload import Held, Product, Workload, workload
from bitwright.pipeline import State
from bitwright.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Additive(ABC):
    """A cost of two terms; a row of `COSTS` gives `product`, and `bit` where values cost something too."""

    unit: ClassVar[str]

    @abstractmethod
    def product(self, product: Product, widths: Widths) -> float:
        """Cost of a region that multiplies, at these widths."""

    def bit(self, held: Held) -> float:
        """Cost of each bit of the width of a value; 0 where values cost nothing, and then their sizes may be open."""
        return 0.0

    @property
    def values_count(self) -> bool:
        """Whether `bit` is not 0."""
        return type(self).bit is not Additive.bit

    def of(self, state: State, plan: Plan | None = None) -> float:
        """Cost of the whole network under `plan`, or under the state's own.

        Raises:
            InputError: neither is there.
        """
        return self._whole(workload(state, plan))

    def reference(self, state: State) -> float:
        """Cost of the float network."""
        return self._whole(Workload(state.reference, None))

    def tables(self, state: State, weights: Sequence[int] = (), activations: Sequence[int] = ()) -> tuple[Table, ...]:
        """One table, whose sums are what `of` says, exactly.

        A product of two activations counts with the region that speaks for the width of its first one; where another
        speaks for the second, that one enters with its present width.

        Raises:
            InputError: the state has no plan.
            UnsupportedError: a width that the target lacks.
        """
        load = workload(state)
        options = load.options(weights, activations)
        entries = {name: dict.fromkeys(widths, 0.0) for name, widths in options.items()}
        per_bit: dict[str, float] = defaultdict(float)
        rest = 0.0
        for held in load.held if self.values_count else ():
            if held.root is not None and held.root in load.speakers:
                per_bit[load.speakers[held.root]] += self.bit(held)
            else:
                rest += self.bit(held) * held.bits
        for name, cost in per_bit.items():
            for w, a in entries[name]:
                entries[name][w, a] += cost * a
        for product in load.products:
            if product.has_choice:
                for widths in entries[product.name]:
                    entries[product.name][widths] += self.product(product, widths)
                continue
            speaker = next((load.speakers[r] for r in (*product.roots, *product.second) if r in load.speakers), None)
            if speaker is None:
                rest += self.product(product, product.widths)
                continue
            first, second = (any(load.speakers.get(r) == speaker for r in s) for s in (product.roots, product.second))
            for w, a in entries[speaker]:
                widths = (a if second else product.widths[0], a if first else product.widths[1])
                entries[speaker][w, a] += self.product(product, widths)
        now = {name: widths[0] for name, widths in options.items()}
        return (Table(unit=self.unit, rest=rest, entries=entries, now=now, reference=self.reference(state)),)

    def _whole(self, load: Workload) -> float:
        products = sum(self.product(p, p.widths) for p in load.products)
        return products + (sum(self.bit(h) * h.bits for h in load.held) if self.values_count else 0.0)
