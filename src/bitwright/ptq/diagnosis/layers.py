"""A look at single layers: what their weights and activations look like, and what error they give.

- Signal to noise of what the layer reads and gives, in the network with all quantizers on.
- Weights: the largest |w| of each channel; `spread` is the largest of them over their median, `tail` the largest
  `max|w| / rms(w)` within a channel; channels that are zero are dead.
- Activations, at the codes of their encoding: the share of values beyond the range (clipped), the share of codes that
  any value has, and `core`, the share of the codes that the middle 99.9 % of the values lie in.
- Error of the layer alone, `e = (W~ - W) x`: the part of its power that is a shift of each channel,
  `bias = sum_c E[e_c]^2 / sum_c E[e_c^2]`.

Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.formats.granularity import PerAxis
from bitwright.graph.regions import Region, find_regions
from bitwright.pipeline import Progress, State
from bitwright.plan.encoding import Encoding
from bitwright.ptq.diagnosis.switches import Switched

#: Share of the values, half of it at each end, that the core leaves out.
OUTSIDE_CORE = 0.001


@dataclass(frozen=True, kw_only=True)
class WeightLook:
    """Weights of a layer by channel.

    Attributes:
        channels, dead: how many there are, and how many hold nothing but zeros.
        spread: largest over median of the channels' largest |w|, dead ones left out.
        tail: largest `max|w| / rms(w)` within a channel.
        per_channel: whether each channel has a scale of its own.
        bias: part of the error's power that is a shift of each channel.
    """

    channels: int
    dead: int
    spread: float
    tail: float
    per_channel: bool
    bias: float


@dataclass(frozen=True, kw_only=True)
class ActivationLook:
    """Values of an activation at its codes.

    Attributes:
        clipped: share of the values beyond the range.
        used: share of the codes that any value has.
        core: share of the codes between the 0.05th and the 99.95th percentile of the values.
    """

    clipped: float
    used: float
    core: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A site seen closely.

    Attributes:
        site: of a weight or an activation.
        region: its region; "" for a network input.
        sqnr_in_db, sqnr_out_db: of what the region reads (the worst of its inputs) and gives; None without one.
        weights: of a weight's site.
        values: of an activation's site.
    """

    site: str
    region: str
    sqnr_in_db: float | None
    sqnr_out_db: float | None
    weights: WeightLook | None = None
    values: ActivationLook | None = None


def channel_look(weight: Tensor, axis: int, per_channel: bool, bias: float = 0.0) -> WeightLook:
    """Ranges of a weight's channels.

    Args:
        weight: the tensor.
        axis: of the output channels.
        per_channel: whether each has a scale of its own.
        bias: as measured.

    Example:
        >>> look = channel_look(torch.tensor([[1.0, -1.0], [8.0, 8.0], [1.0, 1.0], [0.0, 0.0]]), 0, False)
        >>> look.channels, look.dead, look.spread, round(look.tail, 3)
        (4, 1, 8.0, 1.0)
    """
    rows = PerAxis(axis).rows(weight).double()
    largest = rows.abs().amax(1)
    alive = largest > 0
    if not bool(alive.any()):
        return WeightLook(
            channels=len(rows), dead=len(rows), spread=1.0, tail=1.0, per_channel=per_channel, bias=bias
        )  # fmt: skip
    kept = largest[alive]
    rms = rows[alive].square().mean(1).sqrt()
    return WeightLook(
        channels=len(rows), dead=int((~alive).sum()), spread=float(kept.max() / kept.median()),
        tail=float((kept / rms).max()), per_channel=per_channel, bias=bias,
    )  # fmt: skip


class _CodeCounts:
    """How often each code of an encoding was met, and how many values lay beyond the range."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding, grid = encoding, encoding.spec.grid
        self.qmin, self.counts = grid.qmin, torch.zeros(grid.qmax - grid.qmin + 1, dtype=torch.int64)
        self.low = (grid.qmin - float(encoding.zero_point) - 0.5) * float(encoding.scale)
        self.high = (grid.qmax - float(encoding.zero_point) + 0.5) * float(encoding.scale)
        self.clipped = 0

    def add(self, x: Tensor) -> None:
        codes = self.encoding.quantize(x).reshape(-1).long() - self.qmin
        self.counts += torch.bincount(codes, minlength=len(self.counts))
        self.clipped += int(((x < self.low) | (x > self.high)).sum())

    def look(self) -> ActivationLook:
        total = int(self.counts.sum())
        below = self.counts.cumsum(0).double() / total
        first = int((below <= OUTSIDE_CORE / 2).sum())
        last = int((below < 1 - OUTSIDE_CORE / 2).sum())
        return ActivationLook(
            clipped=self.clipped / total, used=float((self.counts > 0).double().mean()),
            core=(last - first + 1) / len(self.counts),
        )  # fmt: skip


class _Ratio:
    """Signal to noise of one value."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, y: Tensor, reference: Tensor) -> None:
        self.signal += float(reference.double().square().sum())
        self.noise += float((reference.double() - y.double()).square().sum())

    def decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class _Shift:
    """Part of an error's power that is its mean in each channel (axis 1)."""

    def __init__(self) -> None:
        self.sum: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.n = 0

    def add(self, error: Tensor) -> None:
        rows = error.movedim(1, 0).reshape(error.shape[1], -1).double()
        self.sum, self.square = self.sum + rows.sum(1), self.square + rows.square().sum(1)
        self.n += rows.shape[1]

    def share(self) -> float:
        power = float(torch.as_tensor(self.square).sum()) / max(self.n, 1)
        mean = torch.as_tensor(self.sum) / max(self.n, 1)
        return float(mean.square().sum()) / power if power else 0.0


def look(
    state: State, sites: Sequence[str], batches: Batches, *, images_done: Progress | None = None
) -> tuple[Layer, ...]:
    """Look at the layers of some sites, in the order given.

    Args:
        state: placed and calibrated.
        sites: weights, and activations with an encoding of their own.
        batches: images.
        images_done: told the images of each batch that has passed.
    """
    owner = {v.name or "": r for r in find_regions(state.model) for v in (r.weight, r.output) if v is not None}
    seen = {site: _values_of(site, owner.get(site)) for site in sites}
    names = tuple(dict.fromkeys(name for values in seen.values() for name in values))
    switched = Switched(state, outputs=names)
    ratios = {name: _Ratio() for name in names}
    counts = {s: _CodeCounts(state.encoding(s)) for s in sites if s in switched.activations}
    shifts = {s: _Shift() for s in sites if s in switched.weights}
    for batch in batches if names else ():
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        switched.turn(())
        found, none = switched.run(inputs)
        reference = {name: value[: batch.valid] for name, value in zip(names, found, strict=True)}
        switched.turn(switched.sites)
        for name, value in zip(names, switched.run(inputs)[0], strict=True):
            ratios[name].add(value[: batch.valid], reference[name])
        for site, count in counts.items():
            count.add(reference[site])
        for site, shift in shifts.items():
            switched.turn((site,))
            values = dict(zip(names, switched.run(inputs, switched.unchanged(none, site))[0], strict=True))
            own = owner[site].op.outputs[0].name or ""
            shift.add(values[own][: batch.valid] - reference[own])
        if images_done is not None:
            images_done(batch.valid)
    return tuple(_layer(state, site, owner.get(site), ratios, counts, shifts) for site in sites)


def _values_of(site: str, region: Region | None) -> list[str]:
    """The values that say something of a site: what its region reads, computes and gives."""
    if region is None:
        return [site]
    values = [*region.inputs, region.op.outputs[0], region.output]
    return [v.name or "" for v in values]


def _layer(
    state: State, site: str, region: Region | None, ratios: dict[str, _Ratio], counts: dict[str, _CodeCounts],
    shifts: dict[str, _Shift],
) -> Layer:  # fmt: skip
    if region is None:
        return Layer(site=site, region="", sqnr_in_db=None, sqnr_out_db=None, values=counts[site].look())
    weights = None
    if site in shifts:
        spec = state.encoding(site).spec
        axis = spec.axis if spec.axis is not None else _channel_axis(region)
        weights = channel_look(state.tensor(site), axis, spec.axis is not None, shifts[site].share())
    return Layer(
        site=site, region=region.name,
        sqnr_in_db=min((ratios[v.name or ""].decibels() for v in region.inputs), default=None),
        sqnr_out_db=ratios[region.output.name or ""].decibels(), weights=weights,
        values=counts[site].look() if site in counts else None,
    )  # fmt: skip


def _channel_axis(region: Region) -> int:
    """The axis of a weight's output channels."""
    if region.kind == "Gemm":
        return 0 if region.op.attributes.get_int("transB", 0) else 1
    return 1 if region.kind in ("ConvTranspose", "MatMul") else 0
