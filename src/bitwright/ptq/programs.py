"""The programs of a state: its float network and its simulation, whole or in part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from bitwright.execute.program import Program, build
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.targets import TARGETS


def float_program(state: State, *, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Program:
    """The float network of a state, or the part of it between `inputs` and `outputs`."""
    return build(state.model, state.overlay, mode="float", inputs=inputs, outputs=outputs)


def simulated_program(
    state: State, *, inputs: Sequence[str] = (), outputs: Sequence[str] = (),
    quantizers: Mapping[str, nn.Module] | None = None,
) -> Program:  # fmt: skip
    """The simulation of a state, or the part of it between `inputs` and `outputs`; with gradients.

    Args:
        state: placed and calibrated.
        inputs: values that the part starts from, quantized already where they are to be.
        outputs: what it gives.
        quantizers: `{site: module}` in place of a site's own quantizer; `nn.Identity()` leaves it in float.
    """
    assert state.plan is not None
    target = lookup(TARGETS, state.plan.target, "target").load()
    return build(
        state.model, state.overlay, mode="simulated", plan=state.plan, encodings=state.encodings,
        integer=list(integer_regions(state.model, state.plan, target)), inputs=inputs, outputs=outputs,
        quantizers=quantizers,
    )  # fmt: skip
