"""The step that places quantizers: `placement.place` on the state's graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bitwright.data.batches import Batches
from bitwright.lookup import lookup
from bitwright.pipeline import Progress, State
from bitwright.placement.overrides import parse_override
from bitwright.placement.place import place
from bitwright.placement.separate import separate_constants
from bitwright.targets import TARGETS


@dataclass(frozen=True, kw_only=True)
class Place:
    """Decide how every site is quantized.

    Args:
        target: row of `TARGETS`.
        set: overrides in order, `"W=4,A=8"`, `"layer4.*:W=8"`, `"head.*:float"`.
        ends: bits of network input, first and last layer, last layer's input and logits; 0 for the same as elsewhere.
    """

    target: str = "onnxruntime-x64"
    set: tuple[str, ...] = ()
    ends: int = 8

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    gives: ClassVar[frozenset[str]] = frozenset({"plan"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state with a plan, in whose graph each layer has constants of its own."""
        target = lookup(TARGETS, self.target, "target").load()
        overrides = [parse_override(text) for text in self.set]
        model, copies = separate_constants(state.model, state.overlay, target)
        placement = place(model, target, overrides=overrides, ends=self.ends or None)
        batchnorm = {new: state.batchnorm[old] for new, old in copies.items() if old in state.batchnorm}
        return state.but(model=model, plan=placement.plan, batchnorm={**state.batchnorm, **batchnorm})
