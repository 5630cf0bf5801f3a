"""Scales at which every runtime gives the codes of our tables and sums; for whatever step changes scales."""

from __future__ import annotations

from bitwright.execute import settle as scales
from bitwright.graph.regions import Region
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.targets import TARGETS


def _regions(state: State) -> list[Region]:
    """Regions whose codes depend on where their scales lie; none where files hold float ops and no codes."""
    assert state.plan is not None
    target = lookup(TARGETS, state.plan.target, "target").load()
    regions = integer_regions(state.model, state.plan, target)
    return [r for r in regions if scales.needs_settling(r, target.arithmetic)] if target.form == "qdq" else []


def settle(state: State) -> State:
    """The state with scales of such regions' outputs enlarged, by parts of 2^-14, until they hold (`execute.settle`).

    Raises:
        UnsupportedError: no scale is found, or a table's function is not defined on the range of its input.
    """
    regions = _regions(state)
    if not regions or state.plan is None:
        return state
    resolve = state.plan.resolve
    found = scales.settle(
        regions, lambda v: resolve(v.name or "")[0], state.encodings, lambda v: state.tensor(v.name or "")
    )
    return state.but(encodings=found)


def unsettled(state: State) -> list[str]:
    """Names of the regions whose codes would depend on the runtime, or on the layout it chooses."""
    return [
        region.name for region in _regions(state)
        if not scales.holds(region, lambda v: state.encoding(v.name or ""), lambda v: state.tensor(v.name or ""))
    ]  # fmt: skip
