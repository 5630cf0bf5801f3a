"""EasyQuant: scales at which each layer's output points where it did, searched by turns.

    max_{s_w, s_x} cos(O, O~),    O = f(W x) in float,  O~ = f(Q(W; s_w) Q(x; s_x))

All layers' weight scales are searched at fixed activation scales, then activation scales at fixed weights, until
nothing changes or `rounds` have passed. Candidates are what the scale was, and that times `narrowest` to `widest`,
evenly spaced; zero points stay. x is the float network's, f the activation that follows.

Source: Wu et al., EasyQuant: Post-training Quantization via Scale Optimization, 2020; the tensor form is an
estimator (`ranges/cosine.py`). Choices: a weight's channel is compared over all images and positions at once; an
activation that several layers read counts in each of them, one cosine an image; as the cosine does not see a common
gain, equal ones are decided by the squared error; sums and pools, whose operands have no layer, keep their scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.program import Program
from bitwright.graph.regions import Region
from bitwright.lookup import lookup
from bitwright.pipeline import Event, Progress, State
from bitwright.placement.place import integer_regions
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec
from bitwright.ptq.calibrate import fit_biases
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.ptq.settle import settle
from bitwright.ranges.cosine import cosine_and_error
from bitwright.targets import TARGETS

#: Cosines that differ by less are equal.
SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class EasyQuant:
    """Search the scales of weights and activations on layers' outputs.

    Args:
        images: calibration images.
        narrowest: smallest factor on a scale.
        widest: largest factor.
        candidates: how many factors are tried.
        rounds: how often weights and activations take turns at most.
        seed: of the images that are taken.
    """

    images: int = 50
    narrowest: float = 0.5
    widest: float = 2.0
    candidates: int = 100
    rounds: int = 3
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset()
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.narrowest < self.widest:
            raise InputError(
                "easyquant.narrowest, widest", f"{self.narrowest}, {self.widest}", "0 < narrowest < widest"
            )
        for key, least in (("images", 1), ("candidates", 2), ("rounds", 1)):
            if getattr(self, key) < least:
                raise InputError(f"easyquant.{key}", f"is {getattr(self, key)}", f"a whole number from {least} on")

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with other scales of weights and activations; weights are rounded to nearest.

        Raises:
            InputError: no plan, no encodings, or no data.
        """
        if state.plan is None or not state.encodings:
            raise InputError("easyquant", "the network has no ranges", fix="run 'place' and 'calibrate' before it")
        if batches is None:
            raise InputError("easyquant", "no data", "images to compare outputs on", "give --data")
        few = batches if len(batches) <= self.images else batches.limited(self.images, self.seed)
        search = _Search(state, few, self, images_done)
        before = search.mean_cosine()
        rounds, changes = 0, True
        while changes and rounds < self.rounds:
            rounds += 1
            changed = [search.weights(layer) for layer in search.layers]
            changes = any(changed + [search.activation(site) for site in search.readers])
        told = {"cosine": [before, search.mean_cosine()], "rounds": rounds}
        state = fit_biases(settle(state.but(encodings=search.encodings)))
        return state.but(log=(*state.log, Event(step="easyquant", seconds=0.0, facts=told)))


class Held(nn.Module):
    """A quantizer that gives what it is told to hold."""

    value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The value that is held."""
        return self.value


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A layer, its float input and output."""

    weight: str
    site: str
    float_weight: Tensor
    held: Held
    program: Program
    x: Tensor
    expected: Tensor


class _Search:
    """Layers, and the scales so far."""

    def __init__(self, state: State, batches: Batches, step: EasyQuant, done: Progress | None) -> None:
        assert state.plan is not None
        self.plan, self.encodings = state.plan, dict(state.encodings)
        steps = torch.linspace(step.narrowest, step.widest, step.candidates, dtype=torch.float64)
        self.factors = steps.float().tolist()
        target = lookup(TARGETS, state.plan.target, "target").load()
        regions = [r for r in integer_regions(state.model, state.plan, target) if self._searched(state, r)]
        names = list(dict.fromkeys(n for r in regions for n in (r.inputs[0].name or "", r.output.name or "")))
        values = _values(state, batches, names, done)
        self.layers = [self._layer(state, region, values) for region in regions]
        self.readers: dict[str, list[_Layer]] = {}
        for layer in self.layers:
            if self.encodings[layer.site].spec.format == "affine":
                self.readers.setdefault(layer.site, []).append(layer)

    def _searched(self, state: State, region: Region) -> bool:
        spec = None if region.weight is None else self.plan.sites.get(region.weight.name or "")
        return isinstance(spec, QSpec) and spec.format == "affine" and len(region.inputs) == 1

    def _layer(self, state: State, region: Region, values: Mapping[str, Tensor]) -> _Layer:
        assert region.weight is not None
        weight, x, y = (v.name or "" for v in (region.weight, region.inputs[0], region.output))
        site, held = self.plan.resolve(x)[0], Held()
        off = {s: nn.Identity() for s in (site, self.plan.resolve(y)[0]) if s in self.encodings}
        if region.bias is not None:
            off[region.bias.name or ""] = nn.Identity()
        program = simulated_program(state, inputs=[x], outputs=[y], quantizers={**off, weight: held})
        return _Layer(
            weight=weight, site=site, float_weight=state.tensor(weight), held=held, program=program, x=values[x],
            expected=values[y],
        )  # fmt: skip

    @torch.no_grad()
    def _output(self, layer: _Layer, weight: Encoding, x: Encoding) -> Tensor:
        layer.held.value = weight.fake_quantize(layer.float_weight)
        y: Tensor = layer.program.module(x.fake_quantize(layer.x))[0]
        return y

    def mean_cosine(self) -> float:
        """Of all layers and images, as scales are now."""
        found = [self._cosine(layer, self.encodings[layer.site])[0].mean() for layer in self.layers]
        return float(torch.stack(found).mean()) if found else 1.0

    def _cosine(self, layer: _Layer, x: Encoding) -> tuple[Tensor, Tensor]:
        y = self._output(layer, _nearest(self.encodings[layer.weight]), x)
        return cosine_and_error(layer.expected.flatten(1), y.flatten(1), None)

    def weights(self, layer: _Layer) -> bool:
        """Search the scale of each channel; whether any changed."""
        start = _nearest(self.encodings[layer.weight])
        x, axis = self.encodings[layer.site], None if start.spec.axis is None else _channels(layer.expected)

        def score(factor: float) -> tuple[Tensor, Tensor]:
            y = self._output(layer, dataclasses.replace(start, scale=start.scale * factor), x)
            return cosine_and_error(_rows(layer.expected, axis), _rows(y, axis), None)

        best = self._best(score)
        self.encodings[layer.weight] = dataclasses.replace(start, scale=start.scale * best.reshape(start.scale.shape))
        return bool((best != 1).any())

    def activation(self, site: str) -> bool:
        """Search the scale of one activation over all layers that read it; whether it changed."""
        start = self.encodings[site]

        def score(factor: float) -> tuple[Tensor, Tensor]:
            moved = dataclasses.replace(start, scale=start.scale * factor)
            found = [self._cosine(layer, moved) for layer in self.readers[site]]
            cosine, error = (torch.stack([part[i].mean() for part in found]).mean()[None] for i in range(2))
            return cosine, error

        best = self._best(score)
        self.encodings[site] = dataclasses.replace(start, scale=start.scale * best.reshape(()))
        return bool((best != 1).any())

    def _best(self, score: Callable[[float], tuple[Tensor, Tensor]]) -> Tensor:
        """The factor of the greatest cosine, of equal ones that of the least error, for each row of the scores."""
        cosine, error = score(1.0)
        best = torch.ones(cosine.shape)
        for factor in self.factors:
            found, distance = score(factor)
            better = (found > cosine + SAME) | (((found - cosine).abs() <= SAME) & (distance < error))
            cosine, error = torch.where(better, found, cosine), torch.where(better, distance, error)
            best = torch.where(better, factor, best)
        return best


def _nearest(encoding: Encoding) -> Encoding:
    return dataclasses.replace(encoding, codes=None)


def _channels(y: Tensor) -> int:
    return 1 if y.ndim in (2, 4, 5) else y.ndim - 1


def _rows(y: Tensor, axis: int | None) -> Tensor:
    return y.reshape(1, -1) if axis is None else y.movedim(axis, 0).flatten(1)


def _values(state: State, batches: Batches, names: list[str], done: Progress | None) -> dict[str, Tensor]:
    """Values of the float network for all images."""
    if not names:
        return {}
    program = float_program(state, outputs=names)
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        with torch.no_grad():
            found = program.module(*(torch.from_numpy(batch.inputs[name]) for name in program.inputs))
        parts.append(tuple(value[: batch.valid] for value in found))
        if done is not None:
            done(batch.valid)
    return {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
