"""Scans: which quantizers the error comes from.

With `y` the float network's outputs and `y~` those with some quantizers on:

    SQNR = 10 log10(sum y^2 / sum (y - y~)^2),   KL = mean sum_c p_c log(p_c / q_c),  p = softmax(y), q = softmax(y~)

Of several outputs noise over signal is the mean of theirs, and divergence the sum. Scan A has one quantizer on and all
others off, scan B has one off and all others on. All sums run over the same images, at the same ranges.

Source: Nagel et al., A White Paper on Neural Network Quantization, 2021, section 3.7 (the debugging flow); Siddegowda
et al., Neural Network Quantization with AI Model Efficiency Toolkit, 2022 (layer-wise analysis).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.execute.observe import float_session, run_session
from bitwright.graph.outputs import real_outputs
from bitwright.graph.overlay import with_overlay
from bitwright.graph.regions import find_regions
from bitwright.pipeline import Progress, State
from bitwright.ptq.diagnosis.switches import Switched, Values

#: Signal to noise, in dB, from which on two float programs of one network count as the same.
SAME_DB = 60.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Outputs beside the float network's.

    Attributes:
        sqnr_db: signal to quantization noise of all outputs of real numbers; infinite where they are equal.
        kl: divergence of their classes, in nats an image; None where one of them has none.
        accuracy: fraction of right answers of the first output; None without labels.
    """

    sqnr_db: float
    kl: float | None
    accuracy: float | None

    @property
    def noise(self) -> float:
        """Noise power over signal power."""
        return 10 ** (-self.sqnr_db / 10)


@dataclass(frozen=True, kw_only=True)
class SiteScan:
    """One quantizer.

    Attributes:
        site: whose quantizer.
        kind: `weight` or `activation`.
        region: the region that it belongs to; of an activation, the one that gives it ("" for a network input).
        bits: width.
        only: with this quantizer on alone (scan A).
        without: with all others on (scan B).
        repaired: share of the whole noise power that is gone in scan B; negative where it grew.
    """

    site: str
    kind: str
    region: str
    bits: int
    only: Measured
    without: Measured
    repaired: float


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was measured.

    Attributes:
        images: images seen.
        bypassed: all quantizers off, beside the float file in ONNX Runtime.
        simulated: the same, beside ONNX Runtime on the network that is quantized, which steps such as equalization
            may have changed: the check of the simulation itself.
        float_accuracy: of the float file; None without labels.
        weights, activations, both: with these quantizers on.
        sites: each site, the one that hurts most alone first; empty where sites were not scanned.
    """

    images: int
    bypassed: Measured
    simulated: Measured
    float_accuracy: float | None
    weights: Measured
    activations: Measured
    both: Measured
    sites: tuple[SiteScan, ...]

    @property
    def sound(self) -> bool:
        """Whether the simulation without quantizers is the network that is quantized, to SAME_DB."""
        return self.simulated.sqnr_db >= SAME_DB

    @property
    def moved(self) -> bool:
        """Whether the network that is quantized is another function than the float file."""
        return self.bypassed.sqnr_db < SAME_DB

    @property
    def guilty(self) -> str:
        """`weights` or `activations` where one gives most of the noise, `both` where each does, or both together."""
        w, a, joint = self.weights.noise, self.activations.noise, self.both.noise
        if joint == 0:
            return "none"
        if w >= 3 * a:
            return "weights"
        return "activations" if a >= 3 * w else "both"


class _Sum:
    """Signal and noise of each output, divergence and right answers, batch after batch."""

    def __init__(self) -> None:
        self.signal: list[float] = []
        self.noise: list[float] = []
        self.kl = 0.0
        self.right = self.images = self.labelled = 0
        self.has_classes = True

    def add(self, ys: Sequence[Tensor], references: Sequence[Tensor], labels: np.ndarray | None) -> None:
        self.images += len(references[0])
        pairs = [(y[: len(r)].double(), r.double()) for y, r in zip(ys, references, strict=True)]
        if not self.signal:
            self.signal, self.noise = [0.0] * len(pairs), [0.0] * len(pairs)
        for i, (y, reference) in enumerate(pairs):
            self.signal[i] += float(reference.square().sum())
            self.noise[i] += float((reference - y).square().sum())
        self.has_classes &= all(y.ndim == 2 for y, _ in pairs)
        if self.has_classes:
            for y, reference in pairs:
                p, q = reference.log_softmax(1), y.log_softmax(1)
                self.kl += float((p.exp() * (p - q)).sum())
        scores = pairs[0][0]
        if labels is not None and scores.ndim == 2:
            self.labelled += len(labels)
            self.right += int((scores.argmax(1).numpy() == labels).sum())

    def result(self) -> Measured:
        return Measured(
            sqnr_db=_decibels(self.signal, self.noise), kl=self.kl / self.images if self.has_classes else None,
            accuracy=self.right / self.labelled if self.labelled else None,
        )  # fmt: skip


def _decibels(signal: Sequence[float], noise: Sequence[float]) -> float:
    if not all(s or not n for s, n in zip(signal, noise, strict=True)):
        return -math.inf
    part = math.fsum(n / s for s, n in zip(signal, noise, strict=True) if n) / len(signal)
    return -10 * math.log10(part) if part else math.inf


def scan(
    state: State, batches: Batches, *, labelled: bool = True, each: bool = True, images_done: Progress | None = None
) -> Scan:
    """Measure a state with all, some, single and all but single quantizers on.

    Args:
        state: placed and calibrated.
        batches: images; the memory of a run is that of all values of two batches.
        labelled: count right answers, where the data have labels.
        each: scan the sites one by one, too: about as many passes as there are sites.
        images_done: told the images of each batch that has passed.

    Raises:
        InputError: the state is not calibrated, or outputs are not finite.
    """
    switched, real = Switched(state), real_outputs(state.model)
    session, changed = float_session(state.reference), float_session(with_overlay(state.model, state.overlay))
    sums: dict[tuple[str, str], _Sum] = {}

    def count(key: tuple[str, str], ys: Sequence[Tensor], references: Sequence[Tensor], labels: Any) -> None:
        sums.setdefault(key, _Sum()).add(ys, references, labels)

    def run(known: Values | None = None) -> tuple[list[Tensor], Values]:
        ys, values = switched.run(inputs, known)
        return [ys[i] for i in real], values

    for batch in batches:
        labels = batch.labels if labelled else None
        served, own = (
            [torch.from_numpy(found[i])[: batch.valid] for i in real]
            for found in (run_session(runs, None, _feeds(runs, batch.inputs)) for runs in (session, changed))
        )
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        switched.turn(())
        ys, none = run()
        references = [y[: batch.valid] for y in ys]
        if not all(torch.isfinite(reference).all() for reference in references):
            raise InputError("network", "NaN or infinity among its outputs", "finite values", "check weights and data")
        count(("float", ""), served, served, labels)
        count(("bypassed", ""), references, served, labels)
        count(("simulated", ""), references, own, labels)
        for name, on in (("weights", switched.weights), ("activations", switched.activations)):
            switched.turn(on)
            count((name, ""), run()[0], references, labels)
        switched.turn(switched.sites)
        ys, every = run()
        count(("both", ""), ys, references, labels)
        for site in switched.sites if each else ():
            switched.turn((site,))
            count(("only", site), run(switched.unchanged(none, site))[0], references, labels)
            switched.turn(set(switched.sites) - {site})
            count(("without", site), run(switched.unchanged(every, site))[0], references, labels)
        if images_done is not None:
            images_done(batch.valid)
    found = {key: total.result() for key, total in sums.items()}
    return Scan(
        images=sums["both", ""].images, bypassed=found["bypassed", ""],
        simulated=found["simulated", ""], float_accuracy=found["float", ""].accuracy,
        weights=found["weights", ""], activations=found["activations", ""], both=found["both", ""],
        sites=_sites(state, switched, found) if each else (),
    )  # fmt: skip


def _feeds(session: object, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {entry.name: inputs[entry.name] for entry in session.get_inputs()}  # type: ignore[attr-defined]


def _sites(state: State, switched: Switched, found: Mapping[tuple[str, str], Measured]) -> tuple[SiteScan, ...]:
    assert state.plan is not None
    joint = found["both", ""].noise
    region = {v.name: r.name for r in find_regions(state.model) for v in (r.weight, r.output) if v is not None}
    rows = []
    for site in switched.sites:
        spec = state.plan.qspec(site)
        assert spec is not None
        without = found["without", site]
        rows.append(
            SiteScan(
                site=site, kind="weight" if site in switched.weights else "activation", region=region.get(site, ""),
                bits=spec.bits, only=found["only", site], without=without,
                repaired=(joint - without.noise) / joint if joint else 0.0,
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda row: row.only.sqnr_db))
