"""The form of a target: rows of data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: How a region of some kind runs: by an integer kernel with an encoding of its own for the output, by moving codes
#: unchanged (the output shares its input's encoding), or by joining inputs that all share one encoding.
How = Literal["kernel", "codes", "join"]


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """One kind of region that a target runs in integers.

    Attributes:
        kind: `Region.kind`.
        how: kernel, codes or join.
        checks: conditions of `placement.CHECKS` that a region must meet; the first that fails is the reason for
            leaving it in float.
        weight_axis: output-channel axis of the weight; None where there is no weight. For Gemm it is that of
            `transB=1`; placement turns it round for `transB=0`.
    """

    kind: str
    how: How
    checks: tuple[str, ...] = ()
    weight_axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime on a kind of machine.

    Attributes:
        name: row of `TARGETS`.
        runtime: row of `RUNTIMES` that executes its files.
        rules: what runs in integers; all else stays float.
        activation_bits: widths of activations that run at full speed (narrower codes live in uint8).
        weight_packing: `{bits: how weights of this width are stored}`, a row of `deploy.packing.PACKINGS`.
        bias_bits: width of the accumulator and so of the bias.
        saturates: made for kernels that add pairs of products in int16, and saturate there.
        source: where the facts come from.
    """

    name: str
    runtime: str
    rules: tuple[OpRule, ...]
    activation_bits: tuple[int, ...]
    weight_packing: Mapping[int, str]
    bias_bits: int
    saturates: bool
    source: str

    @property
    def widest_weight(self) -> int:
        """Bits of weights where nothing else is asked for."""
        return min(8, max(self.weight_packing))

    def rule(self, kind: str) -> OpRule | None:
        """The rule for a kind of region, or None when it stays float."""
        return next((rule for rule in self.rules if rule.kind == kind), None)
