"""The simulation of a library: every group at any of its choices, or in float, in one program.

Biases are left in float, those that a recipe gave a width with it: their own rounding, to 32 bits, tells nothing of a
width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bitwright.execute.program import FakeQuantize
from bitwright.mixed.library import Library, weight_site
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.diagnosis.switches import Board, Chosen, Switch, calibrated, chosen, without_stored

#: The sites that no group moves.
REST = "rest"


class LibraryBoard(Board):
    """Groups of a library by name; `turn` sets them all.

    Args:
        library: what there is.
        outputs: values to give; those of the network if empty.
    """

    def __init__(self, library: Library, outputs: Sequence[str] = ()) -> None:
        plan = calibrated(library.state)
        self.library = library
        state, space = library.state, library.space
        switches: dict[str, Switch] = {}
        members: dict[str, list[str]] = {group.name: [] for group in space.groups}
        for group in space.groups:
            for product in space.products[group.name]:
                site = weight_site(product.region.weight)
                tensor = state.tensor(site)
                stored = [library.weights[site, width.weight or product.widths[0]] for width in group.choices]
                switches[site] = Switch(*(Chosen(one.values(tensor)) for one in stored))
                members[group.name].append(site)
                if product.region.bias is not None:
                    bias = product.region.bias.name or ""
                    switches[bias] = Switch(*(Chosen(one.bias) for one in stored if one.bias is not None))
                    members[group.name].append(bias)
            for root in space.roots[group.name]:
                widths = [width.activation or 0 for width in group.choices]
                switches[root] = Switch(*(FakeQuantize(library.activations[root, a]) for a in widths))
                members[group.name].append(root)
        self._members = members
        self._rest = []
        for site, spec in plan.sites.items():
            if site in switches:
                continue
            if isinstance(spec, QSpec):
                constant = site in state.model.graph.initializers
                encoding = state.encodings[site]
                switches[site] = Switch(chosen(encoding, state.tensor(site)) if constant else FakeQuantize(encoding))
                self._rest.append(site)
            elif isinstance(spec, Derived):
                switches[site] = Switch(nn.Identity())
        super().__init__(without_stored(state, plan), switches, {**members, REST: self._rest}, outputs)

    def turn(self, choices: Sequence[int | None], rest: bool = True) -> None:
        """Set every group to a choice, None for float; `rest`: whether all other sites are quantized."""
        for group, choice in zip(self.library.space.groups, choices, strict=True):
            self.turn_group(group.name, choice)
        for site in self._rest:
            self.switches[site].at = 0 if rest else None

    def turn_group(self, name: str, choice: int | None, weights_only: bool = False) -> None:
        """Set one group to a choice, None for float; with `weights_only` the activation that it reads in float."""
        roots = self.library.space.roots[name]
        for site in self._members[name]:
            self.switches[site].at = None if weights_only and site in roots else choice
