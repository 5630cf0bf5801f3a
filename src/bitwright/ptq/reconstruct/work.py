"""What a unit is learned from: its program with movable quantizers, what it reads, and what it should give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from bitwright.execute.program import Program
from bitwright.graph.blocks import Block
from bitwright.pipeline import State
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.reconstruct.activations import Coin, LearnedStep, ShiftedBias
from bitwright.ptq.reconstruct.method import Inputs, Method
from bitwright.ptq.reconstruct.rows import Rows
from bitwright.ptq.reconstruct.weights import Rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One unit and its data.

    Attributes:
        state: the network so far; units before this one have their final encodings.
        unit: what is learned.
        method: how.
        weights, steps, biases: the unit's own quantizers, by site; all that is learned.
        program: the unit with them.
        quantizers: they, and what leaves other sites in float, for programs of other parts of the unit.
        floats: values of the float network that the unit reads.
        quantized: the same of the network quantized so far.
        target: what the unit should give: the float network's value.
        coin: which elements of the inputs are quantized, where inputs are mixed.
        rest_inputs: what is read after the unit, its own output among it; empty if nothing is.
        rest_rows: values of those that skip over the unit.
        network_logits: makes the float network's outputs for every image.
    """

    state: State
    unit: Block
    method: Method
    weights: Mapping[str, Rounding]
    steps: Mapping[str, LearnedStep]
    biases: Mapping[str, ShiftedBias]
    program: Program
    quantizers: Mapping[str, nn.Module]
    floats: Mapping[str, Rows]
    quantized: Mapping[str, Rows]
    target: Rows
    coin: Coin | None
    rest_inputs: tuple[str, ...]
    rest_rows: Mapping[str, Rows]
    network_logits: Callable[[], Rows]
    generator: torch.Generator = field(default_factory=torch.Generator)

    @property
    def name(self) -> str:
        """Of the unit's output."""
        return self.unit.output.name or ""

    def inputs(self, index: Tensor, source: Inputs | None = None) -> list[Tensor]:
        """What the unit reads for some images, as its method has it, or from `source`."""
        source = source or self.method.inputs
        found = []
        for name in self.program.inputs:
            if source == "float":
                found.append(self.floats[name][index])
                continue
            x = self.quantized[name][index]
            if source == "mixed" and self.quantized[name] is not self.floats[name]:
                assert self.coin is not None
                plain = self.floats[name][index]
                x = x.sub_(plain).mul_(self.coin(x)).add_(plain)
            found.append(x)
        return found

    def read(self, site: str, index: Tensor) -> Tensor:
        """A value of the network quantized so far, as the unit's layers see it: on its grid, if it has one."""
        plan, rows = self.state.plan, self.quantized[site]
        assert plan is not None
        if plan.qspec(site) is None or rows.encoding is not None:  # codes say all
            return rows[index]
        return self.state.encoding(site).fake_quantize(rows[index])

    def output(self, index: Tensor, source: Inputs | None = None) -> Tensor:
        """What the unit gives now, with gradients."""
        y: Tensor = self.program.module(*self.inputs(index, source))[0]
        return y

    @cached_property
    def _rounded(self) -> Program:
        return simulated_program(self.state, inputs=self.program.inputs, outputs=[self.name])

    def rounded_output(self, index: Tensor) -> Tensor:
        """What it gives, quantized as the state has it, from quantized inputs."""
        y: Tensor = self._rounded.module(*self.inputs(index, "quantized"))[0]
        return y

    @cached_property
    def _rest(self) -> Program:
        return float_program(self.state, inputs=self.rest_inputs)

    def rest(self, index: Tensor, output: Tensor) -> Tensor:
        """The network's first output, in float after the unit, for what the unit gives."""
        if not self.rest_inputs:
            return output
        given = {name: rows[index] for name, rows in self.rest_rows.items()} | {self.name: output}
        y: Tensor = self._rest.module(*(given[name] for name in self._rest.inputs))[0]
        return y

    @cached_property
    def logits(self) -> Rows:
        """The float network's first output."""
        return self.network_logits()

    @property
    def steps_move(self) -> bool:
        """Whether any activation's step is learned."""
        return any(step.step.requires_grad for step in self.steps.values())
