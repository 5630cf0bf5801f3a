"""Bias correction: take back the shift of a layer's mean that rounding its weights brings.

A quantized layer gives `E[y~ - y] = sum (W~ - W) E[x]` too much, channel by channel; so `b -= E[y~ - y]`.

- analytic: `E[x]` of each input channel from the batch norm before it, a normal variable clipped by the activation;
  of the network's input, the middle of its range.
- empirical: both networks see the same images; what counts is the mean of the layer's own output, before its
  activation, over images and space. Layers in execution order, so that all earlier ones are quantized and corrected.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2,
appendix B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from bitwright.data.batches import Batch, Batches
from bitwright.errors import InputError
from bitwright.execute.program import Program
from bitwright.graph.layers import add_bias, layer_of
from bitwright.graph.regions import Region, find_regions
from bitwright.lookup import lookup
from bitwright.pipeline import Event, Progress, State
from bitwright.placement.place import bias_spec
from bitwright.plan.spec import Derived, Float, QSpec
from bitwright.ptq.absorb_bias import constant_response
from bitwright.ptq.calibrate import fit_bias
from bitwright.ptq.moments import moments_of
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.targets import TARGETS

METHODS = ("empirical", "analytic")


@dataclass(frozen=True, kw_only=True)
class CorrectBias:
    """Correct biases for the rounding of weights.

    Layers without a bias get one. Afterwards the network's float weights and biases are no longer the float network.

    Args:
        method: `empirical`, from images, or `analytic`, from the statistics of batch norm.
        images: so many at most, for `empirical`; activations of one part of the network are held for all of them.
        activations: quantize activations meanwhile too, for `empirical`.
    """

    method: str = "empirical"
    images: int = 512
    activations: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"corrected biases"})

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without images."""
        return self.method == "empirical"

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other biases, and a larger weight scale where such a bias would not fit into int32.

        Raises:
            InputError: an unknown setting, no data where it needs some, or no statistics where it needs those.
        """
        if self.method not in METHODS:
            raise InputError("correct_bias.method", f"is {self.method!r}", " or ".join(METHODS))
        if state.plan is None or not state.encodings:
            raise InputError(
                "correct_bias", "the network is not calibrated", fix="run 'place' and 'calibrate' before it"
            )
        state = with_biases(state)
        if self.method == "analytic":
            shifts, left_out = self._analytic(state)
        else:
            shifts, left_out = self._empirical(state, batches), {}
        if not shifts:
            raise InputError(
                "correct_bias", "no layer can be corrected", "a layer with quantized weights and known inputs",
                "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3]),
            )  # fmt: skip
        told = Event(step="correct_bias", seconds=0.0, facts={
            "corrected": len(shifts), "uncorrected": left_out,
            "largest_correction": max(float(s.abs().max()) for s in shifts.values()),
        })  # fmt: skip
        return _corrected(state, shifts).but(log=(*state.log, told))

    def _analytic(self, state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
        if not state.batchnorm and not state.input_batchnorm:
            raise InputError(
                "correct_bias", "the network has no batch norm to tell its means from", "a network with batch norm",
                "use correct_bias.method=empirical, with images",
            )  # fmt: skip
        known = moments_of(state, ranges=input_ranges(state))
        shifts: dict[str, Tensor] = {}
        left_out: dict[str, str] = {}
        for region in correctable(state):
            layer = layer_of(region.op)
            x = region.op.inputs[0]
            assert region.weight is not None and region.bias is not None and x is not None
            moments = known.moments.get(x.name or "")
            if layer is None or moments is None:
                left_out[region.name] = known.unknown.get(x.name or "", "its weight or bias is read elsewhere too")
                continue
            weight = state.tensor(layer.weight)
            encoding = state.encodings[layer.weight]
            error = encoding.values_of(weight).double() - weight.double()
            inputs = moments.over(layer.group * layer.rows(weight).shape[1]).mean
            if region.op.op_type == "ConvTranspose":  # each output meets one part of the kernel
                for stride in region.op.attributes.get_ints("strides", ()):
                    inputs = inputs / stride
            shifts[region.bias.name or ""] = constant_response(layer, error, inputs)
        return shifts, left_out

    def _empirical(self, state: State, batches: Batches | None) -> dict[str, Tensor]:
        if batches is None:
            raise InputError("correct_bias", "no data", "images to compare the two networks on", "give --data")
        if self.images < 1:
            raise InputError("correct_bias.images", f"is {self.images}", "1 or more", "512 is usual")
        layers = {r.op.outputs[0].name or "": r.bias.name or "" for r in correctable(state) if r.bias is not None}
        if not layers:
            return {}
        assert state.plan is not None
        # Biases are rounded anew once they are corrected.
        left = {site for site, spec in state.plan.sites.items() if isinstance(spec, Derived)}
        if not self.activations:
            roots = {state.plan.resolve(s)[0] for s in state.plan.sites if state.plan.qspec(s) is not None}
            left |= {site for site in roots if site not in state.model.graph.initializers}
        quantizers: dict[str, nn.Module] = {site: nn.Identity() for site in left}
        chosen = list(batches.take(min(self.images, len(batches))))
        names = list(layers)
        means = _float_means(state, names, chosen)
        program = simulated_program(state, outputs=names, quantizers=quantizers)
        return {layers[name]: shift for name, shift in _shifts(program, means, chosen).items()}


def input_ranges(state: State) -> dict[str, tuple[float, float]]:
    """The range of each quantized input of the network, by its encoding."""
    assert state.plan is not None
    found = {}
    for name in (value.name or "" for value in state.model.graph.inputs):
        if state.plan.qspec(name) is not None:
            encoding = state.encoding(name)
            ends = torch.tensor([encoding.spec.grid.qmin, encoding.spec.grid.qmax], dtype=torch.int32)
            low, high = encoding.dequantize(ends).tolist()
            found[name] = (low, high)
    return found


def correctable(state: State) -> list[Region]:
    """Layers with a bias whose weights are quantized, in execution order."""
    assert state.plan is not None
    return [
        region for region in find_regions(state.model)
        if region.weight is not None and region.bias is not None
        and isinstance(state.plan.sites.get(region.weight.name or ""), QSpec)
    ]  # fmt: skip


def with_biases(state: State) -> State:
    """The state in which every layer with quantized weights has a bias, zero where it had none."""
    plan = state.plan
    assert plan is not None
    model = state.model.clone()
    target = lookup(TARGETS, plan.target, "target").load()
    sites, members = dict(plan.sites), dict(plan.regions)
    for before in find_regions(model):
        weight = before.weight
        lacking = weight is not None and isinstance(plan.sites.get(weight.name or ""), QSpec) and before.bias is None
        if not lacking or layer_of(before.op) is None:
            continue
        name = add_bias(model, before.op, state.overlay)
        region = next(r for r in find_regions(model) if r.op is before.op)
        refused = plan.refused.get(region.name)
        sites[name] = bias_spec(region, target) if refused is None else Float(f"{region.name}: {refused}")
        first, *others = plan.regions[region.name]
        members[region.name] = (first, name, *others)
    if len(sites) == len(plan.sites):
        return state
    return state.but(model=model, plan=dataclasses.replace(plan, sites=sites, regions=members))


def _corrected(state: State, shifts: Mapping[str, Tensor]) -> State:
    """Biases less their shifts, and weights whose scale lets them fit."""
    assert state.plan is not None
    overlay, encodings = dict(state.overlay), dict(state.encodings)
    for name, shift in shifts.items():
        bias = (state.tensor(name).double().flatten() - shift).float()
        overlay[name] = bias
        spec = state.plan.sites.get(name)
        if isinstance(spec, Derived):
            source = encodings[state.plan.resolve(spec.input)[0]]
            encodings[spec.weight] = fit_bias(encodings[spec.weight], bias, source.scale)
    return state.but(overlay=overlay, encodings=encodings)


class _Mean:
    """Mean over images and space of each channel (axis 1)."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.count = 0

    def add(self, values: Tensor, batch: Batch) -> None:
        """The values of a batch, without the rows that only fill it up."""
        rows = len(next(iter(batch.inputs.values())))
        values = values[: values.shape[0] * batch.valid // rows].double().movedim(1, 0).flatten(1)
        self.sum = values.sum(1) if self.sum is None else self.sum + values.sum(1)
        self.count += values.shape[1]

    def mean(self) -> Tensor:
        """`[channels]`, float64."""
        assert self.sum is not None
        return self.sum / self.count


def _float_means(state: State, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    program = float_program(state, outputs=names)
    means = {name: _Mean() for name in names}
    with torch.no_grad():
        for batch in batches:
            found = program.run({name: torch.from_numpy(batch.inputs[name]) for name in program.inputs})
            for name, values in found.items():
                means[name].add(values, batch)
    return {name: mean.mean() for name, mean in means.items()}


def _shifts(program: Program, means: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """One pass through the simulation, op by op with all batches: each layer's output is corrected before it is read.

    A layer is linear in its bias, so taking the shift from its output is the same as taking it from its bias. Values
    are held until their last reader has run.

    Args:
        program: its outputs are those of the layers.
        means: mean of each channel in the float network.
        batches: the images.
    """
    *nodes, output = program.module.graph.nodes
    layers = dict(zip(output.args[0], program.outputs, strict=True))
    last = {read: node for node in nodes for read in (node, *node.all_input_nodes)}
    walks = [fx.Interpreter(program.module) for _ in batches]
    for walk, batch in zip(walks, batches, strict=True):
        walk.args_iter = iter([torch.from_numpy(batch.inputs[name]) for name in program.inputs])
    shifts: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in nodes:
            mean = _Mean()
            for walk, batch in zip(walks, batches, strict=True):
                walk.env[node] = walk.run_node(node)
                if node in layers:
                    mean.add(walk.env[node], batch)
            if node in layers:
                shift = mean.mean() - means[layers[node]]
                shifts[layers[node]] = shift
                for walk in walks:
                    values = walk.env[node]
                    walk.env[node] = values - shift.float().reshape(-1, *[1] * (values.ndim - 2))
            for read in (node, *node.all_input_nodes):
                if last[read] is node:
                    for walk in walks:
                        walk.env.pop(read, None)
    return shifts
