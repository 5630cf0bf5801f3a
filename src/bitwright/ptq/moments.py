"""Mean, spread and range of every value of a network, channel by channel, without data.

What follows a batch norm is normal, `N(beta, gamma^2)`, and lies within n deviations of its mean. ReLU and ReLU6 clip
it; elementwise functions are integrated over it; the terms of a sum and the factors of a product are taken as
independent; pools leave it as it is, which is safe: averages spread less. A layer without batch norm gives
`sum W E[x] + b` and `sum W^2 Var[x]`, and twice the deviations, since its inputs are not independent. A value that no
batch norm precedes lies in the interval that interval arithmetic gives, from the range of the network's input on.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2,
appendix C.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.errors import UnsupportedError
from bitwright.graph.layers import Layer, layer_of
from bitwright.graph.regions import Region, activation_bounds, find_regions
from bitwright.pipeline import BatchNorm, State
from bitwright.ptq.programs import float_program
from bitwright.ranges.batchnorm import added_statistics, batchnorm_range, batchnorm_statistics
from bitwright.ranges.clipped_normal import clipped_normal

#: Points at which a function is evaluated over a channel.
POINTS = 257
#: A layer without batch norm adds inputs that are not independent, as those of the classes of a classifier: so many
#: times the deviations that independent ones would need. Logits that are clipped cannot be told from each other.
DEPENDENT = 2.0
#: Ops that leave each channel's mean, and no larger spread.
KEEPING = (
    "Identity", "Dropout", "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "Resize", "Pad",
    "Cast",
)  # fmt: skip
#: Ops that only move elements; channels stay where batch and channel axis are what they were.
RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Expand")
#: Ops that mix channels up: what they give is known as a whole.
MIXING = ("Transpose", "Slice", "Gather", "Tile", "DepthToSpace", "SpaceToDepth", "Split", "ReduceMean", "ReduceMax")


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What is known of a value, `[channels]` each, or `[1]` for all alike; float64.

    Attributes:
        mean, deviation: of each channel.
        low, high: its range.
        normal: whether a batch norm says so; else the range is an interval that nothing leaves.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    normal: bool

    def over(self, channels: int) -> Moments:
        """One entry for each of so many channels."""
        return self.each(lambda t: t if t.shape[0] == channels else t.expand(channels))

    def each(self, how: object) -> Moments:
        """With every vector changed by `how`."""
        assert callable(how)
        return dataclasses.replace(self, **{k: how(getattr(self, k)) for k in ("mean", "deviation", "low", "high")})

    def together(self) -> Moments:
        """Of all channels as one."""
        mean = self.mean.mean(0, keepdim=True)
        spread = (self.deviation.square() + (self.mean - mean).square()).mean(0, keepdim=True).sqrt()
        return dataclasses.replace(
            self, mean=mean, deviation=spread, low=self.low.amin(0, keepdim=True), high=self.high.amax(0, keepdim=True)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """Moments of a network's values.

    Attributes:
        moments: `{value: moments}`.
        unknown: `{value: why nothing can be said of it}`.
    """

    moments: Mapping[str, Moments] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


def moments_of(
    state: State, *, deviations: float = 6.0, input_range: tuple[float, float] = (-3.0, 3.0),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Known:  # fmt: skip
    """Moments of every value of a folded network.

    Args:
        state: its statistics of batch norm say what the layers give.
        deviations: n.
        input_range: of the network's inputs, which are taken to be three deviations to each side of the middle.
        ranges: of single inputs, `{name: (low, high)}`, in place of `input_range`.
    """
    walk = _Walk(state, deviations)
    for value in state.model.graph.inputs:
        ends = (ranges or {}).get(value.name or "", input_range)
        low, high = (torch.tensor([end], dtype=torch.float64) for end in ends)
        if value.dtype is not None and value.dtype.is_floating_point():
            walk.put(value, Moments(mean=(low + high) / 2, deviation=(high - low) / 6, low=low, high=high,
                                    normal=False))  # fmt: skip
        else:
            walk.unknown[value.name or ""] = f"the input {value.name!r} holds no real numbers"
    for region in find_regions(state.model):
        if region.is_table or region.op.op_type in ("PRelu", "LeakyRelu"):
            walk.function(region)
        else:
            for node in region.nodes:
                walk.node(node)
    return Known(moments=walk.found, unknown=walk.unknown)


class _Walk:
    """Goes through the graph once, in execution order."""

    def __init__(self, state: State, deviations: float) -> None:
        self.state, self.n = state, deviations
        self.found: dict[str, Moments] = {}
        self.unknown: dict[str, str] = {}
        # A batch norm that was folded into the layer after it says what that layer reads.
        self.told = {
            node.inputs[0].name or "": state.input_batchnorm[node.inputs[1].name or ""]
            for node in state.model.graph
            if len(node.inputs) > 1 and node.inputs[0] is not None and node.inputs[1] is not None
            and (node.inputs[1].name or "") in state.input_batchnorm
        }  # fmt: skip

    def put(self, value: ir.Value, moments: Moments | None, reason: str = "") -> None:
        """Note what is known of a value, or why nothing is."""
        name = value.name or ""
        bn = self.told.get(name)
        if bn is not None and (moments is None or not moments.normal):
            moments = self._normal(bn.mean, bn.var.double().clamp(min=0).sqrt(), moments)
        if moments is None:
            self.unknown[name] = reason
        else:
            self.found[name] = moments

    def _normal(
        self, mean: Tensor, deviation: Tensor, within: Moments | None = None, times: float = 1.0
    ) -> Moments:  # fmt: skip
        """A normal variable, cut off where its range is known to end, or at `times` the usual deviations."""
        statistics = batchnorm_statistics(mean.double(), deviation.double())
        low, high = batchnorm_range(statistics, deviations=times * self.n, per_channel=True)
        low, high = low.double(), high.double()
        if within is not None:
            low, high = torch.maximum(low, within.low), torch.minimum(high, within.high)
        return Moments(
            mean=statistics.mean, deviation=statistics.deviation, low=torch.minimum(low, high), high=high, normal=True
        )

    def of(self, value: ir.Value | None) -> Moments | None:
        """What is known of an operand, constants too."""
        if value is None or not value.is_initializer():
            return None if value is None else self.found.get(value.name or "")
        tensor = self.state.tensor(value.name or "").double()
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return None
        rank = max(tensor.ndim, 2)
        rows = tensor.reshape([1] * (rank - tensor.ndim) + list(tensor.shape)).movedim(1, 0).flatten(1)
        if tensor.ndim < 2:  # its one axis need not be that of the channels
            rows = tensor.reshape(1, -1)
        return Moments(mean=rows.mean(1), deviation=rows.std(1, correction=0), low=rows.amin(1), high=rows.amax(1),
                       normal=False)  # fmt: skip

    def _missing(self, node: ir.Node) -> str:
        for value in node.inputs:
            if value is not None and value.name in self.unknown:
                return self.unknown[value.name]
        return f"nothing is known of what {node.op_type} ({node.name}) makes without data"

    def node(self, node: ir.Node) -> None:
        """One op."""
        made = self._made(node) if node.outputs and not node.domain else None
        for i, value in enumerate(node.outputs):
            self.put(value, made if i == 0 or node.op_type == "Split" else None, self._missing(node))

    def _made(self, node: ir.Node) -> Moments | None:
        op, x = node.op_type, self.of(node.inputs[0]) if node.inputs else None
        weight = node.inputs[1].name or "" if len(node.inputs) > 1 and node.inputs[1] is not None else ""
        if op in ("Conv", "ConvTranspose", "Gemm") and weight in self.state.batchnorm:
            bn: BatchNorm = self.state.batchnorm[weight]
            return self._normal(bn.beta, bn.gamma)
        if op in ("Add", "Sub", "Mul") and len(node.inputs) == 2:
            return self._binary(node)
        if op == "Concat":
            return self._joined(node)
        if x is None:
            return None
        if op in ("Conv", "ConvTranspose", "Gemm"):
            layer = layer_of(node)
            return None if layer is None else self._layer(layer, x)
        if (bounds := activation_bounds(node)) is not None:
            return clipped(x, *bounds)
        if op in KEEPING:
            return x
        if op in RESHAPING:
            return _reshaped(node, x)
        if op in MIXING:
            return x.together()
        if op == "Softmax":
            zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
            return Moments(mean=one / 2, deviation=one / 2, low=zero, high=one, normal=x.normal)
        return None

    def _layer(self, layer: Layer, x: Moments) -> Moments:
        weight = self.state.tensor(layer.weight).double()
        grouped = layer.grouped(weight)
        bias = torch.zeros(grouped.shape[0] * grouped.shape[1], dtype=torch.float64)
        if layer.bias is not None:
            bias = self.state.tensor(layer.bias).double().flatten()
        x = x.over(layer.group * grouped.shape[2])
        if layer.pads:
            x = dataclasses.replace(x, low=x.low.clamp(max=0), high=x.high.clamp(min=0))
        # Of the kernel of a transposed convolution, one part of `strides` meets each output.
        parts = (
            math.prod(layer.node.attributes.get_ints("strides", ())) if layer.node.op_type == "ConvTranspose" else 1
        )

        def response(taps: Tensor, inputs: Tensor) -> Tensor:
            return (taps.sum(3) * inputs.reshape(layer.group, 1, -1)).sum(2).flatten()

        mean = response(grouped, x.mean) / parts + bias
        deviation = response(grouped.square(), x.deviation.square()).sqrt()
        above, below = grouped.clamp(min=0), grouped.clamp(max=0)
        low = response(above, x.low) + response(below, x.high) + bias
        high = response(above, x.high) + response(below, x.low) + bias
        hard = Moments(mean=mean, deviation=deviation, low=low, high=high, normal=False)
        return self._normal(mean, deviation, hard, DEPENDENT) if x.normal else hard

    def _binary(self, node: ir.Node) -> Moments | None:
        a, b = self.of(node.inputs[0]), self.of(node.inputs[1])
        if a is None or b is None:
            return None
        if a.mean.shape != b.mean.shape:
            same_rank = len(_dims(node.inputs[0])) == len(_dims(node.inputs[1])) or 1 in (len(a.mean), len(b.mean))
            if not same_rank or 1 not in (len(a.mean), len(b.mean)):
                a, b = a.together(), b.together()
            channels = max(len(a.mean), len(b.mean))
            a, b = a.over(channels), b.over(channels)
        if node.op_type == "Sub":
            b = dataclasses.replace(b, mean=-b.mean, low=-b.high, high=-b.low)
        if node.op_type == "Mul":
            ends = torch.stack([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high])
            power = (a.deviation.square() + a.mean.square()) * (b.deviation.square() + b.mean.square())
            mean = a.mean * b.mean
            return Moments(
                mean=mean, deviation=(power - mean.square()).clamp(min=0).sqrt(), low=ends.amin(0), high=ends.amax(0),
                normal=a.normal or b.normal,
            )  # fmt: skip
        terms = [batchnorm_statistics(t.mean, t.deviation) for t in (a, b)]
        total = added_statistics(*terms)
        hard = Moments(mean=total.mean, deviation=total.deviation, low=a.low + b.low, high=a.high + b.high,
                       normal=False)  # fmt: skip
        return self._normal(total.mean, total.deviation, hard) if a.normal or b.normal else hard

    def _joined(self, node: ir.Node) -> Moments | None:
        parts = [self.of(value) for value in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        by_channel = node.attributes.get_int("axis", 1) in (1, 1 - len(_dims(node.outputs[0])))
        sizes = [_dims(value)[1:2] for value in node.inputs]
        fixed = [size[0] for size in sizes if size and isinstance(size[0], int)]
        if by_channel and len(fixed) == len(parts):
            known = [part.over(size) for part, size in zip(known, fixed, strict=True)]
        else:
            known = [part.together() for part in known]
        joined = {k: torch.cat([getattr(p, k) for p in known]) for k in ("mean", "deviation", "low", "high")}
        made = Moments(**joined, normal=any(p.normal for p in known))
        return made if by_channel and len(fixed) == len(parts) else made.together()

    def function(self, region: Region) -> None:
        """A chain of elementwise ops: evaluated over the range, integrated over the normal distribution."""
        (x,) = region.inputs
        moments, rank = self.of(x), len(_dims(x))
        made, reason = None, self._missing(region.op)
        if moments is not None and rank > 1:
            try:
                made = self._integrated(region, x, moments, rank)
            except UnsupportedError as error:
                reason = str(error)
        self.put(region.output, made, reason)

    def _integrated(self, region: Region, x: ir.Value, moments: Moments, rank: int) -> Moments:
        program = float_program(self.state, inputs=[x.name or ""], outputs=[region.output.name or ""])
        steps = torch.linspace(0, 1, POINTS, dtype=torch.float64).reshape(-1, 1)
        z = (2 * steps - 1) * self.n
        shares = torch.exp(-z.square() / 2)
        shares = shares / shares.sum()

        def values(points: Tensor) -> Tensor:
            shaped = points.float().reshape(*points.shape, *[1] * (rank - 2))
            with torch.no_grad():
                found: Tensor = program.module(shaped)[0]
            return found.double().flatten(2).mean(2) if found.ndim > 2 else found.double()

        over = values(moments.low + (moments.high - moments.low) * steps)
        drawn = values((moments.mean + moments.deviation * z).clamp(moments.low, moments.high))
        mean = (shares * drawn).sum(0)
        deviation = (shares * (drawn - mean).square()).sum(0).sqrt()
        return Moments(mean=mean, deviation=deviation, low=over.amin(0), high=over.amax(0), normal=moments.normal)


def clipped(x: Moments, low: float, high: float) -> Moments:
    """Behind ReLU or Clip."""
    mean, deviation = clipped_normal(x.mean, x.deviation, low, high)
    return dataclasses.replace(
        x, mean=mean, deviation=deviation, low=x.low.clamp(low, high), high=x.high.clamp(low, high)
    )


def _dims(value: ir.Value | None) -> list[int | str | None]:
    if value is None or value.shape is None:
        return []
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _reshaped(node: ir.Node, x: Moments) -> Moments:
    before, after = _dims(node.inputs[0]), _dims(node.outputs[0])
    if len(before) < 2 or len(after) < 2 or before[0] != after[0]:
        return x.together()
    if before[1] == after[1]:
        return x
    inner = [d for d in before[1:] if isinstance(d, int)]
    if len(after) == 2 and len(inner) == len(before) - 1 and math.prod(inner) == after[1] and len(x.mean) == inner[0]:
        repeat = math.prod(inner[1:])
        return x.each(lambda t: t.repeat_interleave(repeat))
    return x.together()
