"""Set the range of every quantized site.

Weights: each channel's own range. Activations: the float network runs over the data once, streaming; sites that share
an encoding feed one estimator. Channels whose bias would not fit into its int32 code get a larger weight scale.

Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.observe import Watch, observe
from bitwright.formats.affine import SMALLEST_SCALE, scale_and_zero_point
from bitwright.formats.pow2 import pow2_scale_and_zero_point, power_of_two
from bitwright.lookup import lookup
from bitwright.pipeline import Event, Progress, State
from bitwright.placement.place import integer_regions
from bitwright.placement.widths import ASYMMETRIC_WEIGHT_BITS
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, QSpec, Shared
from bitwright.ptq.moments import moments_of
from bitwright.ptq.settle import settle
from bitwright.ranges import ESTIMATORS
from bitwright.ranges.minmax import MinMax
from bitwright.targets import TARGETS

#: Largest code of a bias; half of int32, so that the products still fit beside it.
BIAS_LIMIT = 2**30
#: What stands in place of an estimator where activation ranges come from batch norm and not from data.
BATCHNORM = "batchnorm"


def weight_encoding(weight: Tensor, spec: QSpec, estimator: Any, site: str, largest_level: int = 127) -> Encoding:
    """Ranges of a weight by an estimator, one row a channel; a table of levels is fitted by its format instead.

    Args:
        weight: the tensor.
        spec: its number format.
        estimator: an instance of a row of `ESTIMATORS`; formats with levels, which fit themselves, do not use it.
        site: for errors.
        largest_level: bound of fitted levels, so that the kernel's products fit.
    """
    rows = spec.granularity.rows(weight)
    if spec.has_levels:
        return _levels_encoding(weight, rows, spec, site, largest_level)
    state = estimator.update(estimator.init(), rows, site=site)
    return _encoding(estimator, state, spec, site)


def _encoding(estimator: Any, state: Any, spec: QSpec, site: str) -> Encoding:
    lo, hi = estimator.finish(state, spec.grid, symmetric=spec.symmetric, site=site)
    fit = pow2_scale_and_zero_point if spec.format == "pow2" else scale_and_zero_point
    scale, zero_point = fit(lo, hi, spec.grid, symmetric=spec.symmetric)
    if spec.axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return Encoding(spec=spec, scale=scale, zero_point=zero_point)


def _levels_encoding(weight: Tensor, rows: Tensor, spec: QSpec, site: str, largest: int) -> Encoding:
    if not torch.isfinite(rows).all():
        raise InputError(site, "NaN or infinity in the data", "finite values", "check the network's weights")
    levels_format = spec.levels_format()
    if "largest" in levels_format.__dataclass_fields__:
        levels_format = dataclasses.replace(levels_format, largest=largest)
    parameters = levels_format.fit(rows)
    codes = levels_format.encode(rows, *parameters)
    fixed = getattr(levels_format, "levels", None)
    levels = parameters[1].to(torch.int32) if fixed is None else torch.tensor(fixed, dtype=torch.int32)
    scale = parameters[0] if spec.axis is not None else parameters[0].reshape(())
    shape = weight.shape if spec.axis is None else weight.movedim(spec.axis, 0).shape
    codes = codes.reshape(shape) if spec.axis is None else codes.reshape(shape).movedim(0, spec.axis)
    return Encoding(
        spec=spec, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), codes=codes.contiguous(),
        levels=levels,
    )  # fmt: skip


def fit_bias(weight: Encoding, bias: Tensor, input_scale: Tensor) -> Encoding:
    """The weight's encoding, its scale raised where `|b / (s_x s_w)|` would pass `BIAS_LIMIT`.

    Example:
        >>> spec = QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=0)
        >>> tiny = Encoding(spec=spec, scale=torch.tensor([1e-8]), zero_point=torch.zeros(1, dtype=torch.int32))
        >>> raised = fit_bias(tiny, torch.tensor([1.0]), torch.tensor(0.01)).scale
        >>> round(1.0 / (0.01 * float(raised))) <= BIAS_LIMIT
        True
    """
    # One part in a thousand more than needed, so that rounding to float32 cannot bring it back over the limit.
    least = (bias.double().abs() / (input_scale.double() * BIAS_LIMIT) * 1.001).float()
    if weight.spec.format == "pow2":
        least = power_of_two(least.clamp(min=SMALLEST_SCALE), "ceil")
    scale = torch.maximum(weight.scale, least if weight.scale.ndim else least.max())
    if weight.codes is None or bool((scale == weight.scale).all()):
        return dataclasses.replace(weight, scale=scale)
    # Codes that were chosen at the smaller scale: at the new one the nearest to the same values.
    raised = dataclasses.replace(weight, scale=scale)
    return dataclasses.replace(raised, codes=raised.quantize(weight.dequantize(weight.codes)))


def fit_biases(state: State) -> State:
    """The state with scales of weights at which all biases fit (`fit_bias`)."""
    assert state.plan is not None
    encodings = dict(state.encodings)
    for site, spec in state.plan.sites.items():
        if isinstance(spec, Derived):
            source = encodings[state.plan.resolve(spec.input)[0]]
            encodings[spec.weight] = fit_bias(encodings[spec.weight], state.tensor(site), source.scale)
    return state.but(encodings=encodings)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Set the ranges of weights and activations.

    Args:
        activations: row of `ESTIMATORS` for activations; `batchnorm` takes no data, but the statistics of batch norm.
        weights: row of `ESTIMATORS` for weights of more than 4 bits.
        low_bit_weights: row of `ESTIMATORS` for weights of 4 bits and less.
        percentile: percent of values inside the range, for `percentile`.
        deviations: standard deviations to each side of the mean, for `batchnorm`.
        input_low: low end of the network's input, for `batchnorm`; images normalised to mean 0 and deviation 1, by
            the usual constants, lie within 3.
        input_high: high end of it.
    """

    activations: str = "minmax"
    weights: str = "minmax"
    low_bit_weights: str = "mse"
    percentile: float = 99.99
    deviations: float = 6.0
    input_low: float = -3.0
    input_high: float = 3.0

    needs: ClassVar[frozenset[str]] = frozenset({"plan"})
    gives: ClassVar[frozenset[str]] = frozenset({"encodings"})

    @property
    def needs_data(self) -> bool:
        """Whether it cannot do without images."""
        return self.activations != BATCHNORM

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with an encoding for every quantized site; its log has the extremes of each batch, for the audit."""
        if state.plan is None:
            raise InputError("calibrate", "the network has no plan", fix="run the step 'place' before it")
        encodings = self._weights(state, state.plan)
        biases = {site: spec for site, spec in state.plan.sites.items() if isinstance(spec, Derived)}
        for site in biases:  # before the activations, where a bad bias would show under another name
            if not torch.isfinite(state.tensor(site)).all():
                raise InputError(
                    f"bias {site!r}", "NaN or infinity in the data", "finite values", "check the network's weights"
                )
        activations, extremes = self._activations(state, state.plan, batches, images_done)
        encodings |= activations
        state = fit_biases(settle(state.but(encodings=encodings)))
        told = Event(step="calibrate", seconds=0.0, facts={"extremes": extremes})
        return state.but(log=(*state.log, told))

    def estimator(self, name: str) -> Any:
        """A row of `ESTIMATORS` with this step's parameters."""
        row = lookup(ESTIMATORS, name, "estimator").load()
        return row(percentile=self.percentile) if "percentile" in row.__dataclass_fields__ else row()

    def _weights(self, state: State, plan: Plan) -> dict[str, Encoding]:
        encodings = {}
        target = lookup(TARGETS, plan.target, "target").load()
        for site, spec in plan.sites.items():
            if isinstance(spec, QSpec) and site in state.model.graph.initializers:
                name = self.low_bit_weights if spec.bits <= ASYMMETRIC_WEIGHT_BITS else self.weights
                encodings[site] = weight_encoding(
                    state.tensor(site), spec, self.estimator(name), f"weight {site!r}", target.largest_level
                )
        return encodings

    def _activations(
        self, state: State, plan: Plan, batches: Batches | None, images_done: Progress | None
    ) -> tuple[dict[str, Encoding], dict[str, Tensor]]:
        """Encodings, and smallest and largest value of each site and batch, `[batches, 2]`."""
        speakers = sources(state, plan)
        if not speakers:
            return {}, {}
        if self.activations == BATCHNORM:
            return self._without_data(state, plan, speakers), {}
        if batches is None:
            raise InputError("calibrate", "no data", "images to set activation ranges from", "give --data")
        estimator = self.estimator(self.activations)
        states = dict.fromkeys(speakers.values(), estimator.init())
        members = Counter(speakers.values())
        waiting: dict[str, list[Tensor]] = {speaker: [] for speaker in members}
        extremes: dict[str, list[Tensor]] = {speaker: [] for speaker in members}

        def consume(site: str, values: Tensor) -> None:
            """One update for each encoding and batch, with the values of all sites that share it."""
            speaker = speakers[site]
            waiting[speaker].append(values.reshape(1, -1))
            if len(waiting[speaker]) == members[speaker]:
                rows = torch.cat(waiting[speaker], dim=1) if len(waiting[speaker]) > 1 else waiting[speaker][0]
                states[speaker] = estimator.update(states[speaker], rows, site=f"site {site!r}")
                extremes[speaker].append(torch.stack(torch.aminmax(rows)))
                waiting[speaker].clear()

        for site, speaker in joined_constants(state, plan).items():
            rows = state.tensor(site).reshape(1, -1)
            states[speaker] = estimator.update(states[speaker], rows, site=f"constant {site!r}")
        watches = [Watch(site=site, extremes=estimator.extremes_only) for site in speakers]
        observe(state.model, state.overlay, watches, batches, consume, progress=images_done)
        found = {}
        for site, seen in states.items():
            spec = plan.sites[site]
            assert isinstance(spec, QSpec)
            found[site] = _encoding(estimator, seen, spec, f"site {site!r}")
        return found, {site: torch.stack(each) for site, each in extremes.items()}

    def _without_data(self, state: State, plan: Plan, speakers: Mapping[str, str]) -> dict[str, Encoding]:
        """Encodings from the statistics of batch norm; sites that share one have the union of their ranges."""
        if not self.input_low < self.input_high:
            found = f"is {self.input_low}, and the high end {self.input_high}"
            raise InputError("calibrate.input_low", found, "the lower of the two")
        known = moments_of(state, deviations=self.deviations, input_range=(self.input_low, self.input_high))
        estimator = MinMax()
        states = dict.fromkeys(speakers.values(), estimator.init())
        for site, speaker in speakers.items():
            if site not in known.moments:
                reason = known.unknown.get(site, "no batch norm is before it")
                raise InputError(
                    f"site {site!r}", f"its range cannot be told without data: {reason}", "images",
                    f"give --data, or keep what reads it in float: --set '{site}:float'",
                )  # fmt: skip
            moments = known.moments[site]
            rows = torch.stack([moments.low.min(), moments.high.max()]).reshape(1, 2)
            states[speaker] = estimator.update(states[speaker], rows, site=f"site {site!r}")
        for site, speaker in joined_constants(state, plan).items():
            rows = state.tensor(site).reshape(1, -1)
            states[speaker] = estimator.update(states[speaker], rows, site=f"constant {site!r}")
        specs = {site: plan.qspec(site) for site in states}
        return {
            site: _encoding(estimator, seen, spec, f"site {site!r}")
            for site, seen in states.items() if (spec := specs[site]) is not None
        }  # fmt: skip


def joined_constants(state: State, plan: Plan) -> dict[str, str]:
    """`{constant: site whose encoding it shares}`: constants that are joined to activations."""
    shared = (s for s, spec in plan.sites.items() if isinstance(spec, Shared) and s in state.model.graph.initializers)
    return {site: plan.resolve(site)[0] for site in shared}


def sources(state: State, plan: Plan) -> Mapping[str, str]:
    """`{site to watch: site whose encoding it feeds}`: activations that no copy or concat repeats."""
    target = lookup(TARGETS, plan.target, "target").load()
    regions = integer_regions(state.model, plan, target)
    repeats = target.quantizers == "values"  # else the output of a copy has an encoding of its own
    repeated = {r.output.name for r, rule in regions.items() if rule.how != "kernel" and repeats}
    quantized = (s for s in plan.sites if plan.qspec(s) is not None and s not in state.model.graph.initializers)
    return {site: plan.resolve(site)[0] for site in quantized if site not in repeated}
