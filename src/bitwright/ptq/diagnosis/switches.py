"""One program whose quantizers are switched on and off, site by site, at the ranges that were calibrated once.

A run with one switch changed computes again only what comes after that switch; the rest is taken from the run before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.program import FakeQuantize, FakeQuantizeBias
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.programs import simulated_program

#: What a run computed, node by node.
Values = Mapping[fx.Node, Any]


class Switch(nn.Module):
    """Quantizers of a site, of which one or none is on.

    Attributes:
        options: what there is to choose from.
        at: index of the one that is on; None while all are bypassed.
    """

    def __init__(self, *options: nn.Module) -> None:
        super().__init__()
        self.options: Sequence[nn.Module] = list(options)
        self.at: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantized, or as it came."""
        result: Tensor = x if self.at is None else self.options[self.at](x)
        return result


class Chosen(nn.Module):
    """The quantized values of a constant, computed once."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> Tensor:
        """The values, whatever is given."""
        return self.values


class Board:
    """A simulation whose switches are turned; what comes before a switch is not computed again.

    Args:
        state: placed and calibrated.
        switches: `{site: switch}`, of weights, biases and activations.
        groups: `{name: sites}` that are turned together.
        outputs: values to give; those of the network if empty.
    """

    def __init__(
        self, state: State, switches: Mapping[str, Switch], groups: Mapping[str, Sequence[str]],
        outputs: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.switches = dict(switches)
        self.program = simulated_program(state, outputs=outputs, quantizers=self.switches)
        self._interpreter = fx.Interpreter(self.program.module, garbage_collect_values=False)
        self._after = {name: self._downstream(sites) for name, sites in groups.items()}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], known: Values | None = None) -> tuple[tuple[Tensor, ...], Values]:
        """Outputs, and the value of every node; what is `known` is not computed again."""
        arguments = [inputs[name] for name in self.program.inputs]
        outputs = self._interpreter.run(*arguments, initial_env=dict(known or {}))
        return outputs, self._interpreter.env

    def unchanged(self, values: Values, group: str) -> Values:
        """What of a run's values does not depend on the switches of a group."""
        after = self.after(group)
        return {node: value for node, value in values.items() if node not in after and node.op != "output"}

    def after(self, group: str) -> Collection[fx.Node]:
        """The nodes of the program that depend on the switches of a group."""
        return self._after[group]

    def share_after(self, group: str) -> float:
        """Share of the program's nodes that a turn of this group computes again."""
        return len(self._after[group]) / len(self.program.module.graph.nodes)

    def _downstream(self, sites: Sequence[str]) -> set[fx.Node]:
        module = self.program.module
        own = {id(self.switches[site]) for site in sites}

        def is_own(node: fx.Node) -> bool:
            return node.op == "call_module" and id(module.get_submodule(str(node.target))) in own

        return depending(module.graph.nodes, is_own)


def depending(nodes: Iterable[fx.Node], begins: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Nodes with which something begins, and all that read one of them, however far behind."""
    found: set[fx.Node] = set()
    for node in nodes:
        if begins(node) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


class Switched(Board):
    """The simulation of a state with a switch at every site.

    Attributes:
        weights: sites of weights; the switch of one moves its bias too.
        activations: sites of activations that have an encoding of their own.

    Raises:
        InputError: the state is not calibrated.
        UnsupportedError: layers whose ranges are found at run time, which have nothing to switch.

    Example:
        >>> import bitwright as bw
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> images = {"input": torch.rand(8, 1, 6, 6).numpy()}
        >>> switched = Switched(bw.quantize(net, images, example=torch.zeros(2, 1, 6, 6)).state)
        >>> switched.weights, len(switched.activations)
        (('0.weight',), 2)
    """

    def __init__(self, state: State, outputs: Sequence[str] = ()) -> None:
        plan = calibrated(state)
        switches: dict[str, Switch] = {}
        self._members: dict[str, list[str]] = {}
        weights: list[str] = []
        activations: list[str] = []
        for site, spec in plan.sites.items():
            if isinstance(spec, QSpec):
                constant = site in state.model.graph.initializers
                encoding = state.encodings[site]
                switches[site] = Switch(
                    chosen(encoding, state.tensor(site)) if constant else FakeQuantize(encoding)
                )  # fmt: skip
                self._members.setdefault(site, []).insert(0, site)
                (weights if constant else activations).append(site)
            elif isinstance(spec, Derived):
                pair = state.encoding(spec.input), state.encoding(spec.weight)
                switches[site] = Switch(FakeQuantizeBias(*pair))
                self._members.setdefault(spec.weight, []).append(site)
        self.weights, self.activations = tuple(weights), tuple(activations)
        super().__init__(without_stored(state, plan), switches, self._members, outputs)

    @property
    def sites(self) -> tuple[str, ...]:
        """All that can be switched."""
        return self.weights + self.activations

    def turn(self, on: Collection[str]) -> None:
        """Switch the sites of `on` on, and all others off."""
        for site in self.sites:
            for member in self._members[site]:
                self.switches[member].at = 0 if site in on else None


def calibrated(state: State) -> Plan:
    """The plan of a state all of whose sites can be switched.

    Raises:
        InputError: the state is not calibrated.
        UnsupportedError: layers whose ranges are found at run time.
    """
    plan = state.plan
    if plan is None or not state.encodings:
        raise InputError("switches", "the network has no ranges", "a calibrated network", "let calibrate run before")
    if "dynamic" in plan.modes.values():
        region = next(r for r, mode in plan.modes.items() if mode == "dynamic")
        raise UnsupportedError(
            f"region {region!r}", "finds its activation range at run time (A=dynamic), which cannot be switched",
            "calibrated ranges", "leave A=dynamic out while debugging or searching",
        )  # fmt: skip
    return plan


def without_stored(state: State, plan: Plan) -> State:
    """The state whose stored weights of float layers (A=float), which no switch reaches, are as they came."""
    stored = {s for r in plan.modes for s in plan.regions[r]}
    return state.but(encodings={s: e for s, e in state.encodings.items() if s not in stored})


def chosen(encoding: Encoding, tensor: Tensor) -> Chosen:
    """A constant at its codes."""
    return Chosen(encoding.values_of(tensor))
