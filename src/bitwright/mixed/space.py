"""The groups of a network under a plan: which regions move together, and the widths that each can have.

A region with a quantized weight is a choice of the bits of its weight and of the activation that it reads. Regions
that read one encoding read it at one width: where activations vary, they are one group. Where only weights vary, each
region is a group of its own. What the plan fixes stays: the ends of the network (unless they are let go), activations
that no region with a weight reads, regions in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitwright.cost.table import Table, Widths
from bitwright.cost.workload import FLOAT, Product, Workload, candidates, workload
from bitwright.errors import InputError, UnsupportedError
from bitwright.lookup import did_you_mean
from bitwright.mixed.problem import Additive, Due, Group, Width
from bitwright.pipeline import State
from bitwright.placement.ends import end_sites


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """What a search moves.

    Attributes:
        groups: in execution order; their choices from the widest down.
        products: `{group: its regions}`.
        roots: `{group: sites of the activations that move with it}`; () where only weights move.
        fixed: `{region: why it does not move}`, of regions with a quantized weight.
    """

    groups: tuple[Group, ...]
    products: Mapping[str, tuple[Product, ...]]
    roots: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Weights of all groups."""
        return sum(group.parameters for group in self.groups)

    def widths(self, choices: Sequence[int]) -> dict[str, Widths]:
        """`{region: (bits of the weight, bits of what it reads)}` of an assignment."""
        found: dict[str, Widths] = {}
        for group, choice in zip(self.groups, choices, strict=True):
            found |= self._at(group, choice)
        return found

    def mean_bits(self, choices: Sequence[int]) -> float:
        """Bits of a weight of the groups on average, each by its number of weights."""
        pairs = zip(self.groups, choices, strict=True)
        return sum(g.parameters * (g.choices[c].weight or 0) for g, c in pairs) / self.parameters

    def cost(self, table: Table) -> Additive:
        """A table of regions as a sum over groups."""
        fixed = [widths for region, widths in table.now.items() if region not in self._moving]
        rest = [table.entries[region][widths] for region, widths in table.now.items() if region not in self._moving]
        values = tuple(
            tuple(sum(table.entries[name][widths] for name, widths in self._at(group, choice).items())
                  for choice in range(len(group.choices)))
            for group in self.groups
        )  # fmt: skip
        once, paid = [], 0.0
        for due in table.once:
            if any(w in due.weights for w, _ in fixed):
                paid += due.cost
                continue
            at = {
                (g, c) for g, group in enumerate(self.groups) for c in range(len(group.choices))
                if any(w in due.weights for w, _ in self._at(group, c).values())
            }  # fmt: skip
            once += [Due(due.cost, frozenset(at))] if at else []
        return Additive(values=values, rest=table.rest + sum(rest) + paid, once=tuple(once))

    def _at(self, group: Group, choice: int) -> dict[str, Widths]:
        """Widths of a group's regions."""
        return {product.name: _of(product, group.choices[choice]) for product in self.products[group.name]}

    @property
    def _moving(self) -> set[str]:
        return {product.name for products in self.products.values() for product in products}


def _of(product: Product, width: Width) -> Widths:
    return width.weight or product.widths[0], width.activation or product.widths[1]


def space_of(
    state: State, weights: Sequence[int], activations: Sequence[int] = (), *, tied: bool = False, ends: bool = False,
    ties: Sequence[Sequence[str]] = (),
) -> Space:  # fmt: skip
    """The groups of a placed network.

    Args:
        state: with a plan.
        weights: widths of weights to choose from, FLOAT for regions in float; the target's own up to 8 bits if
            empty.
        activations: widths of activations to choose from; those of the plan stay if empty.
        tied: a region's weight and the activation it reads have the same bits; `activations` is not said then.
        ends: whether first and last layers move, too.
        ties: names of regions that become one group; those that do not move are left out.

    Raises:
        InputError: no plan, nothing that can move, no width of integers, a width that is given twice, both `tied` and
            activations, or a tie of a region that is not there.
        UnsupportedError: a width that the target lacks.
    """
    load = workload(state)
    assert load.target is not None and load.plan is not None
    if tied and activations:
        raise InputError("activations", f"are given ({_told(activations)}), and tied to the weights", "one of both")
    for name, asked in (("weights", weights), ("activations", activations)):
        if len(set(asked)) < len(asked):
            raise InputError(name, f"{_told(asked)}: a width twice", "different widths")
    first, second = candidates(load.target, weights, activations, "widths to choose from")
    if not [w for w in first if w != FLOAT]:
        raise InputError("weights", "have no width but float", "widths of integers to choose from, too")
    if tied:
        missing = [b for b in first if b not in load.target.activation_bits and b != FLOAT]
        if missing:
            raise UnsupportedError(
                "tied widths", f"{missing[0]}-bit activations",
                f"activations of {_told(sorted(load.target.activation_bits))} bits, as {load.target.name} has them",
            )  # fmt: skip
        second = [w for w in first if w != FLOAT]
    fixed_sites = set() if ends else {v.name or "" for v in end_sites(load.model, load.regions)}
    fixed: dict[str, str] = {}
    moving: list[Product] = []
    for product in load.products:
        if not product.has_choice:
            continue
        weight = product.region.weight
        if weight is not None and weight.name in fixed_sites:
            fixed[product.name] = "an end of the network"
        else:
            moving.append(product)
    if not moving:
        raise InputError("search", "no region has a quantized weight that may move", "a network with such layers")
    held = _held(load, fixed, fixed_sites)
    varies = tied or bool(activations)
    tied_by = _ties(ties, load)
    parts = _parts(moving, {p.name: tied_by[p.name] | (set(p.roots) - held if varies else set()) for p in moving})
    groups, products, roots = [], {}, {}
    for part in parts:
        own = tuple(dict.fromkeys(r for p in part for r in p.roots if r not in held)) if varies else ()
        choices = _choices(first, second, tied, bool(own))
        name = part[0].name if len(part) == 1 else f"{part[0].name} and {len(part) - 1} more"
        groups.append(Group(name=name, choices=choices, parameters=sum(p.weight_elements for p in part)))
        products[name], roots[name] = tuple(part), own
    return Space(groups=tuple(groups), products=products, roots=roots, fixed=fixed)


def _held(load: Workload, fixed: Mapping[str, str], fixed_sites: set[str]) -> set[str]:
    """Roots that stay: of fixed regions and sites, and what is read together with one, at the same width."""
    assert load.plan is not None
    held = {root for p in load.products if p.has_choice and p.name in fixed for root in p.roots}
    held |= {load.plan.resolve(site)[0] for site in fixed_sites if load.plan.qspec(site) is not None}
    reads = [set(product.roots) for product in load.products if product.has_choice]
    while company := {root for roots in reads if roots & held for root in roots - held}:
        held |= company
    return held


def _choices(weights: Sequence[int], activations: Sequence[int], tied: bool, reads: bool) -> tuple[Width, ...]:
    if not reads:
        return tuple(Width(w, None) for w in weights)
    # What a group in float reads may be read in integers elsewhere: it is then as wide as it can be.
    in_float = [Width(w, max(activations)) for w in weights if w == FLOAT]
    weights = [w for w in weights if w != FLOAT]
    if tied:
        return (*in_float, *(Width(w, w) for w in weights))
    both = [*in_float, *(Width(w, a) for w in weights for a in activations)]
    return tuple(sorted(both, key=lambda width: -((width.weight or 0) * (width.activation or 0))))


def _parts(moving: Sequence[Product], joints: Mapping[str, set[str | int]]) -> list[list[Product]]:
    """Products that share a joint, in the order of their first: a moving root, or a tie."""
    parts: list[tuple[set[str | int], list[Product]]] = []
    for product in moving:
        own = set(joints[product.name])
        joined = [part for part in parts if part[0] & own]
        for part in joined:
            parts.remove(part)
            own |= part[0]
        parts.append((own, [*(p for part in joined for p in part[1]), product]))
    order = {product.name: i for i, product in enumerate(moving)}
    found = [sorted(part, key=lambda product: order[product.name]) for _, part in parts]
    return sorted(found, key=lambda part: order[part[0].name])


def _ties(ties: Sequence[Sequence[str]], load: Workload) -> dict[str, set[str | int]]:
    """`{region: numbers of the ties that name it}`."""
    found: dict[str, set[str | int]] = {product.name: set() for product in load.products}
    for i, tie in enumerate(ties):
        for name in tie:
            if name not in found:
                raise InputError("ties", f"there is no region {name!r} with a product", fix=did_you_mean(name, found))
            found[name].add(i)
    return found


def _told(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))
