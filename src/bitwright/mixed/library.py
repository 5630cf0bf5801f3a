"""A library of encodings: every group at every width that it can have, and networks put together of it.

For each width one network is quantized with all groups at it. A network of mixed widths takes each group's weights,
biases and ranges from the network of the width that the group has there. Where a recipe treats each layer by itself
(ranges, and rounding behind the float network), what is put together is what the recipe would have given the mixed
network, codes and all; where it does not (layers learned one behind the other), it is an estimate, and a chosen
network is quantized anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.cost.workload import FLOAT, with_widths
from bitwright.errors import InputError
from bitwright.mixed.problem import Choices
from bitwright.mixed.space import Space
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import QSpec
from bitwright.ptq.calibrate import fit_biases
from bitwright.ptq.settle import settle


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A weight at a width: its encoding, None in float, and the bias that belongs to it."""

    encoding: Encoding | None
    bias: Tensor | None

    def values(self, weight: Tensor) -> Tensor:
        """The weight at its codes, or as it is."""
        return weight if self.encoding is None else self.encoding.values_of(weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class Library:
    """A space, and what each of its groups is at each width.

    Attributes:
        space: groups and their choices.
        state: calibrated, every group at its widest choice in integers.
        weights: `{(site of a weight, bits): stored}`.
        activations: `{(site of an activation, bits): encoding}`.
    """

    space: Space
    state: State
    weights: Mapping[tuple[str, int], Stored]
    activations: Mapping[tuple[str, int], Encoding]

    def plan(self, choices: Sequence[int]) -> Plan:
        """The plan of an assignment."""
        return with_widths(self.state, self.space.widths(choices))

    def network(self, choices: Sequence[int]) -> State:
        """The network of an assignment, put together; ready to be written."""
        encodings, overlay = dict(self.state.encodings), dict(self.state.overlay)
        for group, choice in zip(self.space.groups, choices, strict=True):
            width = group.choices[choice]
            for product in self.space.products[group.name]:
                site = weight_site(product.region.weight)
                stored = self.weights[site, width.weight or product.widths[0]]
                if stored.encoding is not None:
                    encodings[site] = stored.encoding
                if stored.bias is not None and product.region.bias is not None:
                    overlay[product.region.bias.name or ""] = stored.bias
            for root in self.space.roots[group.name]:
                encodings[root] = self.activations[root, width.activation or 0]
        plan, before = self.plan(choices), self.state.plan
        assert before is not None
        # With regions in float some sites have no encoding any more, and some that shared one have it alone.
        encodings = {
            site: encodings[before.resolve(site)[0]] for site, spec in plan.sites.items() if isinstance(spec, QSpec)
        }
        return fit_biases(settle(self.state.but(plan=plan, encodings=encodings, overlay=overlay)))


def weight_site(weight: object) -> str:
    """Name of a region's weight."""
    return str(getattr(weight, "name", "") or "")


def rounds(space: Space) -> list[Choices]:
    """Assignments that together have every choice of every group in integers; the first has the widest ones.

    Example:
        >>> from bitwright.mixed.problem import Group, Width
        >>> both, one = (Width(8, None), Width(4, None)), (Width(8, 8),)
        >>> groups = (Group(name="a", choices=both), Group(name="b", choices=one))
        >>> rounds(Space(groups=groups, products={}, roots={}, fixed={}))
        [(0, 0), (1, 0)]
    """
    integers = [[c for c, width in enumerate(g.choices) if not width.in_float] for g in space.groups]
    return [tuple(own[i] if i < len(own) else own[0] for own in integers) for i in range(max(map(len, integers)))]


def needed(space: Space) -> list[Choices]:
    """Of `rounds`, those that have a width of a weight or of an activation that none before them has."""
    found: list[Choices] = []
    seen: set[tuple[str, str, int | None]] = set()
    for choices in rounds(space):
        pairs = list(zip(space.groups, choices, strict=True))
        widths = [(g.name, g.choices[c]) for g, c in pairs]
        new = {(name, "W", width.weight) for name, width in widths} | {(n, "A", w.activation) for n, w in widths}
        if not new <= seen:
            found.append(choices)
            seen |= new
    return found


def stock(space: Space, base: State, quantized: Callable[[Plan], State]) -> Library:
    """Fill a library.

    Args:
        space: what moves.
        base: placed; need not be calibrated.
        quantized: quantizes the float network by a plan.

    Raises:
        InputError: the recipe changed weights otherwise at one width than at another.
    """
    weights: dict[tuple[str, int], Stored] = {}
    activations: dict[tuple[str, int], Encoding] = {}
    first: State | None = None
    for state, choices in _filled(space, base, quantized):
        first = first or state
        for group, choice in zip(space.groups, choices, strict=True):
            width = group.choices[choice]
            for product in space.products[group.name]:
                site = weight_site(product.region.weight)
                bias = None if product.region.bias is None else product.region.bias.name or ""
                weights[site, width.weight or product.widths[0]] = Stored(
                    encoding=state.encodings[site], bias=None if bias is None else state.tensor(bias)
                )
                _check_same(site, first, state)
            for root in space.roots[group.name]:
                activations[root, width.activation or 0] = state.encodings[root]
    assert first is not None
    for group in space.groups:
        for product in space.products[group.name] if any(width.in_float for width in group.choices) else ():
            own = None if product.region.bias is None else base.tensor(product.region.bias.name or "")
            weights[weight_site(product.region.weight), FLOAT] = Stored(encoding=None, bias=own)
    return Library(space=space, state=first, weights=weights, activations=activations)


def _filled(space: Space, base: State, quantized: Callable[[Plan], State]) -> Iterator[tuple[State, Choices]]:
    for choices in needed(space):
        yield quantized(with_widths(base, space.widths(choices))), choices


def _check_same(site: str, first: State, state: State) -> None:
    """Weights before rounding must not depend on the width: a mixed network has only one of each."""
    if not torch.equal(first.tensor(site), state.tensor(site)):
        raise InputError(
            f"weight {site!r}", "is another one at another width, before it is rounded",
            "steps that change weights in the same way at all widths", "leave such a step to the final recipe",
        )  # fmt: skip
