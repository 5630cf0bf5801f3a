"""Numbers for sites that nothing has calibrated: enough to write the file of a plan and to see how long it is.

What the state knows stays as it is. A weight without an encoding of the plan's format gets its own smallest and
largest value; an activation the range that it had at another width, else 0 to 1 after a ReLU and -1 to 1 elsewhere.
The file so written is as long as the calibrated one but for what its bytes tell of the numbers: zero points that all
channels have are stored once, and a bound that the range of uint8 makes needless is left out.
"""

from __future__ import annotations

import torch

from bitwright.formats.affine import scale_and_zero_point
from bitwright.graph.regions import find_regions
from bitwright.lookup import lookup
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan
from bitwright.plan.spec import QSpec
from bitwright.ptq.calibrate import weight_encoding
from bitwright.ranges.minmax import MinMax
from bitwright.targets import TARGETS


def completed(state: State, plan: Plan) -> State:
    """The state under `plan`, with an encoding for every quantized site.

    Args:
        state: what is known; its plan may be another one for the same graph.
        plan: what the encodings are to be of.
    """
    target = lookup(TARGETS, plan.target, "target").load()
    positive = {r.output.name for r in find_regions(state.model) if r.bounds is not None and r.bounds[0] >= 0}
    encodings: dict[str, Encoding] = {}
    for site, spec in plan.sites.items():
        known = state.encodings.get(site)
        if not isinstance(spec, QSpec):
            if known is not None:
                encodings[site] = known
        elif known is not None and known.spec == spec:
            encodings[site] = known
        elif site in state.model.graph.initializers:
            encodings[site] = weight_encoding(
                state.tensor(site), spec, MinMax(), f"weight {site!r}", target.largest_level
            )
        else:
            encodings[site] = _activation(spec, known, site in positive)
    return state.but(plan=plan, encodings=encodings)


def _activation(spec: QSpec, known: Encoding | None, positive: bool) -> Encoding:
    if known is not None and known.levels is None:
        grid = known.spec.grid
        ends = torch.tensor([grid.qmin, grid.qmax]) - known.zero_point.reshape(-1)[0]
        lo, hi = (ends * known.scale.reshape(-1)[0]).unsqueeze(1)
    else:
        lo, hi = torch.tensor([0.0 if positive else -1.0]), torch.tensor([1.0])
    scale, zero = scale_and_zero_point(lo, hi, spec.grid, symmetric=spec.symmetric)
    return Encoding(spec=spec, scale=scale.reshape(()), zero_point=zero.reshape(()))
