"""Prove a written file: what is simulated is what the runtime serves, code by code.

Every quantized tensor of the served file is read out while real data pass. Each integer region gets the codes that the
runtime served at its entrance, and must give the codes that the runtime served at its exit; so an error names the
region that makes it and does not travel. That reading tensors out changes nothing is checked: the runtime uses the
same kernels and gives the same outputs without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batch
from bitwright.deploy.names import codes_name
from bitwright.deploy.reader import read
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, computing_kernels, kernels, products_saturate
from bitwright.errors import GoalError, InputError
from bitwright.execute.integer import kernel_operands, region_kernel
from bitwright.execute.program import Program, Quantize, build
from bitwright.graph.regions import Region
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.targets import TARGETS

#: The runtime's integer kernel for each op that the writer puts between DequantizeLinear and QuantizeLinear.
INTEGER_KERNELS = {
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "Add": "QLinearAdd",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
}


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
        float_kernels: of these, the ones that compute in float although the plan has them in integers.
        unplanned_kernels: of these, the ones that compute in integers although the plan has them in float.
        runtime: name and version.
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
    threads: int = 0,
    precise: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Compare simulation and served file on every quantized tensor.

    Args:
        path: file that bitwright wrote.
        batches: images.
        threads: threads of the runtime within an op; 0 for one a core.
        precise: on processors without VNNI, use the runtime's slower kernels whose products do not saturate.
        progress: told the number of images of each batch.

    Raises:
        InputError: the file was not written by bitwright.
        GoalError: reading tensors out changed the runtime's kernels or outputs, so nothing can be said.
    """
    state = read(path)
    probe = _Probe(state, Path(path), threads, precise)
    counts = _Counts()
    for batch in batches:
        probe.compare(batch, counts)
        if progress is not None:
            progress(batch.valid)
    if not counts.images:
        raise InputError(str(path), "no image to verify it with", "at least one")
    first = next((site for site in probe.compared if counts.by_tensor.get(site)), None)
    return Verification(
        images=counts.images, tensors=len(probe.compared), codes=counts.codes,
        mismatches=sum(counts.by_tensor.values()), borrowed=0, first_mismatch=first, by_tensor=counts.by_tensor,
        top1_agreement=counts.agreeing / counts.images if probe.classifies else None,
        fake_quant_mismatches=counts.fake, kernels=probe.kernels, float_kernels=probe.float_kernels(),
        unplanned_kernels=probe.unplanned_kernels(),
        runtime=f"{OnnxRuntime.name} {OnnxRuntime.version}", saturates=products_saturate() and not precise,
        made_for_saturation=TARGETS[state.plan.target].load().saturates if state.plan else False,
    )  # fmt: skip


@dataclass
class _Counts:
    images: int = 0
    codes: int = 0
    agreeing: int = 0
    fake: int = 0
    by_tensor: dict[str, int] = field(default_factory=dict)


class _Probe:
    """The served file with its codes read out, and the simulations to hold against it."""

    def __init__(self, state: State, path: Path, threads: int, precise: bool) -> None:
        assert state.plan is not None
        self.state, self.plan, self.path = state, state.plan, path
        target = TARGETS[state.plan.target].load()
        self.rules = integer_regions(state.model, state.plan, target)
        proto = onnx.load(str(path))
        made = {o for n in proto.graph.node for o in n.output}
        every = {v.name: v for r in self.rules for v in (*r.inputs, r.output)}
        self.sites = [s for s in every if s is not None and codes_name(s) in made]
        # A ReLU or Clip that bounds nothing is not in the file: its codes are those that it reads.
        self.unwritten = {
            r.output.name or "": r.inputs[0].name or "" for r in self.rules
            if r.op.op_type in ("Relu", "Clip") and codes_name(r.output.name or "") not in made
        }  # fmt: skip
        probed = _probed(proto, [codes_name(s) for s in self.sites])
        self.kernels = kernels(path, precise=precise)
        usual, seen = (computing_kernels(m, precise=precise) for m in (path, probed))
        if seen != usual:
            raise GoalError(
                str(path), f"reading codes out changes the kernels to {seen}", f"{usual}",
                "the runtime cannot be observed without changing it; report this network",
            )  # fmt: skip
        self.plain = OnnxRuntime(path, threads, precise=precise)
        self.served = OnnxRuntime(probed, threads, precise=precise)
        self.entrances = {s: Quantize(self.state.encoding(s)) for s in self.sites if s in self.plain.inputs}
        self.modules: list[tuple[Region, nn.Module]] = [(r, self._kernel(r)) for r in self.rules]
        self.compared = [*self.entrances, *(r.output.name or "" for r in self.rules if r.output.name in self.sites)]
        self.integer = self._program("integer")
        self.fake = self._program("simulated", self.compared)
        output = state.model.graph.outputs[0]
        self.classifies = output.shape is not None and len(output.shape) == 2

    def _kernel(self, region: Region) -> nn.Module:
        def bias_codes(value: ir.Value) -> Tensor | None:
            return self.state.encodings[value.name or ""].codes

        return region_kernel(
            region, lambda v: self.state.encoding(v.name or ""), lambda v: self.state.tensor(v.name or ""), bias_codes
        )

    def _program(self, mode: Any, outputs: list[str] | None = None) -> Program:
        return build(
            self.state.model, self.state.overlay, mode=mode, plan=self.plan, encodings=self.state.encodings,
            integer=list(self.rules), outputs=outputs or (), codes=outputs is not None,
        )  # fmt: skip

    def float_kernels(self) -> dict[str, int]:
        """Float kernels beyond those that the plan itself leaves in float."""
        inside = {n for r in self.rules for n in r.nodes}
        allowed: dict[str, int] = {}
        for node in self.state.model.graph:
            if node not in inside:
                allowed[node.op_type] = allowed.get(node.op_type, 0) + 1
        computing = {r.op.op_type for r, rule in self.rules.items() if rule.how == "kernel"} | {"FusedConv"}
        extra = {op: n - allowed.get(op, 0) for op, n in self.kernels.items() if op in computing}
        return {op: n for op, n in extra.items() if n > 0}

    def unplanned_kernels(self) -> dict[str, int]:
        """Integer kernels beyond those that the plan asks for."""
        planned = Counter(INTEGER_KERNELS[r.op.op_type] for r in self.rules if r.op.op_type in INTEGER_KERNELS)
        made = {op: n for op, n in self.kernels.items() if op.startswith("QLinear") or op in ("QGemm", "QAttention")}
        extra = {op: n - planned.get(op, 0) for op, n in made.items()}
        return {op: n for op, n in extra.items() if n > 0}

    @torch.no_grad()
    def compare(self, batch: Batch, counts: _Counts) -> None:
        """One batch: served codes against the formulas, served outputs against the whole simulation."""
        feeds = {name: batch.inputs[name] for name in self.plain.inputs}
        plain, served = self.plain.run(feeds), self.served.run(feeds)
        for name, expected in plain.items():
            if not np.array_equal(expected, served[name], equal_nan=True):
                raise GoalError(str(self.path), f"reading codes out changes output {name!r}", "the same output")
        codes = {s: torch.from_numpy(served[codes_name(s)]) for s in self.sites}
        for site, source in self.unwritten.items():
            codes[site] = codes[source]
        inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
        expected_codes = {s: module(inputs[s]) for s, module in self.entrances.items()}
        for region, module in self.modules:
            arguments = [codes[v.name or ""] for v in kernel_operands(region)]
            if region.output.name not in self.unwritten:
                expected_codes[region.output.name or ""] = module(*arguments)
        valid = batch.valid
        for site, expected in expected_codes.items():
            wrong = int((expected[:valid] != codes[site][:valid]).sum())
            counts.codes += codes[site][:valid].numel()
            if wrong:
                counts.by_tensor[site] = counts.by_tensor.get(site, 0) + wrong
        whole = self.integer.run(inputs)
        name = self.integer.outputs[0]
        if self.classifies:
            counts.agreeing += int((whole[name].argmax(1).numpy() == plain[name].argmax(1))[:valid].sum())
        for site, simulated in self.fake.run(inputs).items():
            counts.fake += int((simulated[:valid] != codes[site][:valid]).sum())
        counts.images += valid


def _probed(proto: onnx.ModelProto, names: list[str]) -> bytes:
    """The file with tensors added to its outputs."""
    known = {o.name for o in proto.graph.output}
    for name in names:
        if name not in known:
            proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    data: bytes = proto.SerializeToString()
    return data
