"""The form of a target: rows of data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: How a region of some kind runs: by an integer kernel with an encoding of its own for the output, by moving codes
#: unchanged (the output shares its input's encoding), or by joining inputs that all share one encoding; or it passes
#: on what it reads, in float, without a quantizer.
How = Literal["kernel", "codes", "join", "passes"]

#: When a region of some kind is worth its integer kernel: always; where codes feed it (all its operands are quantized
#: anyway, so that nothing is rounded for its sake); or between integer regions (fed, and one of them reads what it
#: gives). So the pieces of a layer norm or a softmax that is spelled out in float ops stay as exact as they were.
When = Literal["always", "fed", "between"]

#: Where quantizers stand: at every value that an integer region reads or gives; or only at what kernels read, and the
#: runtime itself carries codes across all else; or where that is made which layers with weights read.
Quantizers = Literal["values", "inputs", "producers"]

#: Whether a plan is one that integer kernels can run, or that of the papers (`targets/paper.py`).
PlacementName = Literal["deployable", "paper"]


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """One kind of region that a target runs in integers.

    Attributes:
        kind: `Region.kind`.
        how: kernel, codes, join or passes.
        checks: conditions of `placement.CHECKS` that a region must meet; the first that fails is the reason for
            leaving it in float.
        weight_axis: output-channel axis of the weight; None where there is no weight. For Gemm it is that of
            `transB=1`; placement turns it round for `transB=0`.
        fuses: the runtime joins it to a weighted op whose output nothing else reads; that operand has no quantizer
            (where quantizers stand at inputs).
        when: always, fed or between; a region with a constant operand is worth its kernel only between.
    """

    kind: str
    how: How
    checks: tuple[str, ...] = ()
    weight_axis: int | None = None
    fuses: bool = False
    when: When = "always"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime on a kind of machine.

    Attributes:
        name: row of `TARGETS`.
        runtime: what executes its files: a row of `RUNTIMES`, or the name of a runtime that is none; then accuracy is
            simulated.
        rules: what runs in integers; all else stays float.
        activation_bits: widths of activations that run at full speed (narrower codes live in uint8).
        weight_packing: `{format: {bits: how such weights are stored}}`: rows of `FORMATS`, and one of the packings of
            the target's form.
        activation_formats: rows of `FORMATS` that activations can have.
        bias_bits: width of the accumulator and so of the bias; None where biases stay float.
        saturates: made for kernels that add pairs of products in int16, and saturate there.
        source: where the facts come from.
        form: row of `deploy.forms.FORMS`: how its files spell quantization.
        quantizers: where they stand.
        symmetric_activations: activations are signed integers with zero point 0; else unsigned, with any zero point.
        arithmetic: row of `execute.kernels.ARITHMETICS`: how its integer kernels round.
        thins_first: a 1x1 convolution with strides is written as a pool of single elements with these strides, on
            codes, and a convolution without.
    """

    name: str
    runtime: str
    rules: tuple[OpRule, ...]
    activation_bits: tuple[int, ...]
    weight_packing: Mapping[str, Mapping[int, str]]
    bias_bits: int | None
    saturates: bool
    source: str
    activation_formats: tuple[str, ...] = ("affine", "pow2")
    form: str = "qdq"
    quantizers: Quantizers = "values"
    symmetric_activations: bool = False
    arithmetic: str = "onnxruntime"
    thins_first: bool = False

    @property
    def placement(self) -> PlacementName:
        """What `quantize --placement` calls its plans."""
        return "paper" if self.quantizers == "producers" else "deployable"

    @property
    def passing(self) -> frozenset[str]:
        """Kinds of regions that pass on what they read."""
        return frozenset(rule.kind for rule in self.rules if rule.how == "passes")

    @property
    def widest_weight(self) -> int:
        """Bits of weights where nothing else is asked for."""
        return min(8, max(self.weight_packing["affine"]))

    @property
    def largest_level(self) -> int:
        """Largest magnitude of a weight's integer: two products with 255 fit into int16 where they are added there."""
        return 64 if self.saturates else 127

    def rule(self, kind: str) -> OpRule | None:
        """The rule for a kind of region, or None when it stays float."""
        return next((rule for rule in self.rules if rule.kind == kind), None)
