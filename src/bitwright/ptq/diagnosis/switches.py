"""One program whose quantizers are switched on and off, site by site, at the ranges that were calibrated once.

A run with one switch changed computes again only what comes after that switch; the rest is taken from the run before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.program import FakeQuantize, FakeQuantizeBias
from bitwright.pipeline import State
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.programs import simulated_program

#: What a run computed, node by node.
Values = Mapping[fx.Node, Any]


class Switch(nn.Module):
    """A quantizer that is bypassed while it is off."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer, self.on = quantizer, False

    def forward(self, x: Tensor) -> Tensor:
        """Quantized, or as it came."""
        result: Tensor = self.quantizer(x) if self.on else x
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


class Switched:
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
        plan = state.plan
        if plan is None or not state.encodings:
            raise InputError("debug", "the network has no ranges", "a calibrated network", "let calibrate run before")
        if "dynamic" in plan.modes.values():
            region = next(r for r, mode in plan.modes.items() if mode == "dynamic")
            raise UnsupportedError(
                f"region {region!r}", "finds its activation range at run time (A=dynamic), which cannot be switched",
                "calibrated ranges", "leave A=dynamic out while debugging",
            )  # fmt: skip
        self._switches: dict[str, Switch] = {}
        self._members: dict[str, list[str]] = {}
        weights: list[str] = []
        activations: list[str] = []
        for site, spec in plan.sites.items():
            if isinstance(spec, QSpec):
                constant = site in state.model.graph.initializers
                self._switches[site] = Switch(_constant(state, site) if constant else _activation(state, site))
                self._members.setdefault(site, []).insert(0, site)
                (weights if constant else activations).append(site)
            elif isinstance(spec, Derived):
                pair = state.encoding(spec.input), state.encoding(spec.weight)
                self._switches[site] = Switch(FakeQuantizeBias(*pair))
                self._members.setdefault(spec.weight, []).append(site)
        self.weights, self.activations = tuple(weights), tuple(activations)
        # Stored weights of float layers (A=float) are constants of the program, which no switch reaches.
        stored = {s for r in plan.modes for s in plan.regions[r]}
        kept = state.but(encodings={s: e for s, e in state.encodings.items() if s not in stored})
        self.program = simulated_program(kept, outputs=outputs, quantizers=self._switches)
        self._interpreter = fx.Interpreter(self.program.module, garbage_collect_values=False)
        self._after = {site: self._downstream(site) for site in self.sites}

    @property
    def sites(self) -> tuple[str, ...]:
        """All that can be switched."""
        return self.weights + self.activations

    def turn(self, on: Collection[str]) -> None:
        """Switch the sites of `on` on, and all others off."""
        for site in self.sites:
            for member in self._members[site]:
                self._switches[member].on = site in on

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], known: Values | None = None) -> tuple[tuple[Tensor, ...], Values]:
        """Outputs, and the value of every node; what is `known` is not computed again."""
        arguments = [inputs[name] for name in self.program.inputs]
        outputs = self._interpreter.run(*arguments, initial_env=dict(known or {}))
        return outputs, self._interpreter.env

    def unchanged(self, values: Values, site: str) -> Values:
        """What of a run's values does not depend on the switch of a site."""
        after = self._after[site]
        return {node: value for node, value in values.items() if node not in after and node.op != "output"}

    def _downstream(self, site: str) -> set[fx.Node]:
        module = self.program.module
        own = {id(self._switches[member]) for member in self._members[site]}
        found: set[fx.Node] = set()
        for node in module.graph.nodes:
            is_own = node.op == "call_module" and id(module.get_submodule(str(node.target))) in own
            if is_own or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found


def _constant(state: State, site: str) -> nn.Module:
    encoding, tensor = state.encodings[site], state.tensor(site)
    return Chosen(encoding.dequantize(encoding.codes_of(tensor)))


def _activation(state: State, site: str) -> nn.Module:
    return FakeQuantize(state.encodings[site])
