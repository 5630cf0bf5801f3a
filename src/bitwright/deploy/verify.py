"""Prove a written file: what is simulated is what the runtime serves, code by code.

The quantized tensors of the served file are read out while real data pass. Each integer region gets the codes that
the runtime served at its entrance, and must give the codes that the runtime served at its exit; so an error names the
region that makes it and does not travel. That reading tensors out changes nothing is checked. How it is done, and what
a runtime keeps inside its layers, is the matter of its probe (`deploy/probes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batch
from bitwright.deploy.probes import PROBES
from bitwright.deploy.probes.probe import Probe, Subject, made_by, unwritten_sites
from bitwright.deploy.reader import read
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import Runtime, processor
from bitwright.deploy.simulate import require_served
from bitwright.errors import InputError
from bitwright.execute.integer import arithmetic_of, kernel_operands, region_kernel
from bitwright.execute.program import Mode, Program, Quantize, build
from bitwright.graph.regions import Region
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.targets import TARGETS
from bitwright.targets.target import Target


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared, and what was found.

    Attributes:
        images: images that passed.
        tensors: quantized tensors compared.
        codes: codes compared.
        mismatches: codes that differ; 0 is the claim.
        borrowed: regions whose formula is a table read from the runtime.
        first_mismatch: the first tensor, in execution order, that differs; None if none does.
        by_tensor: mismatches of each tensor that has any.
        top1_agreement: fraction of images with the same top-1 in simulation (integer mode, run from the image) and in
            the runtime; None where outputs are no class scores.
        fake_quant_mismatches: codes that differ in plain float simulation, which other toolkits rely on.
        kernels: nodes of each op that the runtime executes.
        float_kernels: ops that compute in float although the plan has them in integers, by how many integer kernels
            are missing.
        unplanned_kernels: of these, the ones that compute in integers although the plan has them in float.
        runtime: name and version.
        processor: model, and the features on which integer kernels depend.
        saturates: this machine's kernels add pairs of products in int16 (no VNNI).
        made_for_saturation: the file's target allows for that.
    """

    images: int
    tensors: int
    codes: int
    mismatches: int
    borrowed: int
    first_mismatch: str | None
    by_tensor: Mapping[str, int]
    top1_agreement: float | None
    fake_quant_mismatches: int
    kernels: Mapping[str, int]
    float_kernels: Mapping[str, int]
    unplanned_kernels: Mapping[str, int]
    runtime: str
    processor: str
    saturates: bool
    made_for_saturation: bool

    @property
    def proven(self) -> bool:
        """Every code agrees, and so does every top-1."""
        as_planned = not self.float_kernels and not self.unplanned_kernels
        return self.mismatches == 0 and as_planned and self.top1_agreement in (None, 1.0)


def verify(
    path: str | Path,
    batches: Iterable[Batch],
    *,
    runtime: str = "",
    threads: int = 0,
    precise: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Compare simulation and served file on every quantized tensor.

    Args:
        path: file that bitwright wrote.
        batches: images.
        runtime: row of `RUNTIMES`; "" for that of the file's target.
        threads: threads of the runtime within an op; 0 for one a core.
        precise: on processors without VNNI, use the runtime's slower kernels whose products do not saturate.
        progress: told the number of images of each batch.

    Raises:
        InputError: the file was not written by bitwright.
        UnsupportedError: no runtime here executes the file.
        UnsupportedError: no formula is known for one of the file's ops in another runtime than its target's.
        GoalError: reading tensors out changed the runtime's kernels or outputs, so nothing can be said.
    """
    state = read(path)
    require_served(state, str(path), "verify")
    assert state.plan is not None
    target: Target = TARGETS[state.plan.target].load()
    name = runtime or target.runtime
    served: type[Runtime] = lookup(RUNTIMES, name, "runtime").load()
    if precise and name != "onnxruntime":
        raise InputError("--precise", f"is set for {name}", "onnxruntime, whose slower kernels it asks for")
    comparison = _Comparison(state, Path(path), name, threads, precise)
    probe = comparison.probe
    counts = _Counts()
    for batch in batches:
        comparison.compare(batch, counts)
        if progress is not None:
            progress(batch.valid)
    if not counts.images:
        raise InputError(str(path), "no image to verify it with", "at least one")
    first = next((site for site in comparison.compared if counts.by_tensor.get(site)), None)
    return Verification(
        images=counts.images, tensors=len(comparison.compared), codes=counts.codes,
        mismatches=sum(counts.by_tensor.values()), borrowed=0, first_mismatch=first, by_tensor=counts.by_tensor,
        top1_agreement=counts.agreeing / counts.images if comparison.classifies else None,
        fake_quant_mismatches=counts.fake, kernels=probe.kernels, float_kernels=probe.float_kernels,
        unplanned_kernels=probe.unplanned_kernels, runtime=f"{served.name} {served.version}", processor=processor(),
        saturates=served.saturates() and not precise, made_for_saturation=target.saturates,
    )  # fmt: skip


@dataclass
class _Counts:
    images: int = 0
    codes: int = 0
    agreeing: int = 0
    fake: int = 0
    by_tensor: dict[str, int] = field(default_factory=dict)


class _Comparison:
    """The served file with its codes read out, and the simulations to hold against it."""

    def __init__(self, state: State, path: Path, runtime: str, threads: int, precise: bool) -> None:
        assert state.plan is not None
        self.state, self.plan = state, state.plan
        target: Target = TARGETS[state.plan.target].load()
        self.rules = integer_regions(state.model, state.plan, target)
        if not self.rules:
            raise InputError(
                str(path), "has no quantized activation, so no codes to compare", "a file with integer regions",
                "`bitwright evaluate --against` compares outputs",
            )  # fmt: skip
        self.arithmetic = arithmetic_of(runtime, target, list(self.rules), lambda v: state.encoding(v.name or ""))
        subject = Subject(
            path=path, state=state, regions=list(self.rules), arithmetic=self.arithmetic, threads=threads,
            precise=precise,
        )  # fmt: skip
        self.probe: Probe = PROBES[runtime].load()(subject)
        made = made_by(onnx.load(str(path), load_external_data=False))
        self.unwritten = unwritten_sites(subject, made)
        self.inputs = tuple(v.name or "" for v in state.model.graph.inputs)
        sites = dict.fromkeys(v.name or "" for r in self.rules for v in (*r.inputs, r.output))
        self.entrances = {
            s: Quantize(state.encoding(s), self.arithmetic) for s in sites if s in (*self.inputs, *self.probe.given)
        }
        self.modules: list[tuple[Region, nn.Module]] = [(r, self._kernel(r)) for r in self.rules]
        read = set(self.probe.read)
        self.compared = [*(s for s in self.inputs if s in read and s in self.entrances)]
        self.compared += [r.output.name or "" for r in self.rules if r.output.name in read]
        self.outputs = tuple(v.name or "" for v in state.model.graph.outputs)
        self.integer = self._program("integer", (*self.outputs, *self.probe.given))
        self.fake = self._program("simulated", self.compared, codes=True)
        output = state.model.graph.outputs[0]
        self.classifies = output.shape is not None and len(output.shape) == 2

    def _kernel(self, region: Region) -> nn.Module:
        def bias_codes(value: ir.Value) -> Tensor | None:
            return self.state.encodings[value.name or ""].codes

        return region_kernel(
            region, lambda v: self.state.encoding(v.name or ""), lambda v: self.state.tensor(v.name or ""),
            bias_codes, self.arithmetic,
        )  # fmt: skip

    def _program(self, mode: Mode, outputs: Sequence[str], codes: bool = False) -> Program:
        return build(
            self.state.model, self.state.overlay, mode=mode, plan=self.plan, encodings=self.state.encodings,
            integer=list(self.rules), outputs=outputs, codes=codes, arithmetic=self.arithmetic,
        )  # fmt: skip

    @torch.no_grad()
    def compare(self, batch: Batch, counts: _Counts) -> None:
        """One batch: served codes against the formulas, served outputs against the whole simulation."""
        feeds = {name: batch.inputs[name] for name in self.inputs}
        inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
        whole = self.integer.run(inputs)
        observed = self.probe.observe(feeds, {site: whole[site].numpy() for site in self.probe.given})
        real = {**inputs, **{site: whole[site] for site in self.probe.given}}
        entering = {site: module(real[site]) for site, module in self.entrances.items()}
        # What regions read: what was served, or what came in by a door, or what a layer keeps to itself.
        codes = {**observed.codes, **{s: entering[s] for s in entering if s not in self.compared or s in real}}
        codes = {**codes, **{s: observed.codes[s] for s in self.inputs if s in observed.codes}}
        expected = {site: entering[site] for site in self.inputs if site in entering}
        for region, module in self.modules:
            site = region.output.name or ""
            if site in self.unwritten:
                codes[site] = codes[self.unwritten[site]]
                continue
            expected[site] = module(*(codes[v.name or ""] for v in kernel_operands(region)))
            codes.setdefault(site, expected[site])
        valid = batch.valid
        for site in self.compared:
            served = observed.codes[site][:valid]
            wrong = int((expected[site][:valid] != served).sum())
            counts.codes += served.numel()
            if wrong:
                counts.by_tensor[site] = counts.by_tensor.get(site, 0) + wrong
        name = self.outputs[0]
        if self.classifies:
            same = whole[name].argmax(1).numpy() == observed.outputs[name].argmax(1)
            counts.agreeing += int(same[:valid].sum())
        for site, simulated in self.fake.run(inputs).items():
            counts.fake += int((simulated[:valid] != observed.codes[site][:valid]).sum())
        counts.images += valid
