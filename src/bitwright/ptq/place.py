"""The step that places quantizers, or takes a plan as given: `placement.place` on the state's graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_ir as ir

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.graph.regions import find_regions
from bitwright.graph.uses import ARROW, split_uses
from bitwright.lookup import lookup
from bitwright.pipeline import BatchNorm, Progress, State
from bitwright.placement.given import check_plan, edit
from bitwright.placement.overrides import Override, parse_override
from bitwright.placement.place import Scales, place
from bitwright.placement.separate import separate_constants
from bitwright.placement.transposed import transposed_as_convolutions
from bitwright.plan.plan import Plan, read_plan
from bitwright.targets import TARGETS
from bitwright.targets.target import Target

#: Bits of the network's ends where nothing else is said.
ENDS = 8


@dataclass(frozen=True, kw_only=True)
class Place:
    """Decide how every site is quantized.

    Args:
        target: row of `TARGETS`.
        set: overrides in order, `"W=4,A=8"`, `"layer4.*:W=8"`, `"head.*:float"`.
        ends: bits of network input, first and last layer, last layer's input and logits; 0 for the same as elsewhere.
        plan: a plan, or the path of its JSON file, that is taken instead of placing; `set` changes its widths.
        granularity: `channel`, one scale for each output channel of a weight, or `tensor`, one for the whole weight.
    """

    target: str = "onnxruntime-x64"
    set: tuple[str, ...] = ()
    ends: int = ENDS
    plan: Plan | str | None = field(default=None, repr=False)
    granularity: str = "channel"

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with a plan, in whose graph each layer has constants of its own.

        Transposed convolutions are convolutions there, where the target has no kernel for them.

        Raises:
            InputError: a plan that does not fit the network or the target, or ends beside a plan.
            UnsupportedError: a width that the target lacks, or no quantizable op at all.
        """
        if self.granularity not in ("channel", "tensor"):
            raise InputError("place.granularity", f"is {self.granularity!r}", "channel or tensor")
        target = lookup(TARGETS, self.target, "target").load()
        overrides = [parse_override(text) for text in self.set]
        model, overlay, phases = transposed_as_convolutions(state.model, state.overlay, target)
        model, copies = separate_constants(self._with_uses(model, overrides), overlay, target)
        plan = self._plan(model, target, overrides)
        batchnorm = {
            key: _with_new_weights(getattr(state, key), phases, copies, outputs=key == "batchnorm")
            for key in ("batchnorm", "input_batchnorm")
        }
        return state.but(model=model, overlay=overlay, plan=plan, **batchnorm)

    def _with_uses(self, model: ir.Model, overrides: list[Override]) -> ir.Model:
        """The model in which each use that an override or a given plan names is a value of its own."""
        patterns = {o.pattern for o in overrides if ARROW in o.pattern}
        given = read_plan(self.plan) if isinstance(self.plan, str) else self.plan
        planned = {site for site in given.sites if ARROW in site} if isinstance(given, Plan) else set()
        used: set[str] = set()

        def wanted(name: str) -> bool:
            found = {p for p in patterns if fnmatchcase(name, p)}
            used.update(found)
            return bool(found) or name in planned

        model, _ = split_uses(model, lambda m: [(r.name, r.op) for r in find_regions(m)], wanted)
        for pattern in patterns - used:
            if given is None or not given.match(pattern):
                raise InputError(
                    f"--set {pattern!r}", "matches no use of a value", "'value -> region:input', either may be a glob",
                    "`bitwright inspect` lists the regions and what they read",
                )  # fmt: skip
        return model

    def _plan(self, model: ir.Model, target: Target, overrides: list[Override]) -> Plan:
        if self.plan is None:
            scales: Scales = "tensor" if self.granularity == "tensor" else "channel"
            return place(model, target, overrides=overrides, ends=self.ends or None, granularity=scales).plan
        if self.ends != ENDS:
            raise InputError(
                "--ends", f"is {self.ends}, but the plan says every width", "one of them", "name sites with --set"
            )
        if self.granularity != "channel":
            raise InputError(
                "place.granularity", f"is {self.granularity}, but the plan says every weight's scales", "one of them",
                "leave it out",
            )  # fmt: skip
        given, where = (read_plan(self.plan), self.plan) if isinstance(self.plan, str) else (self.plan, "plan")
        if not isinstance(given, Plan):
            raise InputError("place.plan", f"is {given!r}", "the path of a plan's JSON file")
        return edit(check_plan(given, model, target, where), overrides, target)


def _with_new_weights(
    batchnorm: Mapping[str, BatchNorm], phases: Mapping[str, tuple[str, int]], copies: Mapping[str, str], outputs: bool
) -> dict[str, BatchNorm]:
    """The statistics under the names of the weights that took the place of others, or stand beside them.

    Args:
        batchnorm: `{weight: statistics}`.
        phases: `{new weight: (old one, channels that each output channel became)}`.
        copies: `{new weight: the one that it is a copy of}`.
        outputs: whether the statistics are those of output channels.
    """
    replaced = {old for old, _ in phases.values()}
    found = {weight: bn for weight, bn in batchnorm.items() if weight not in replaced}
    for new, (old, n) in phases.items():
        if old in batchnorm:
            found[new] = batchnorm[old].repeated(n if outputs else 1)
    return found | {new: found[old] for new, old in copies.items() if old in found}
