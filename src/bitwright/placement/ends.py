"""The ends of a network: what keeps 8 bits when the rest goes lower.

Network input, weights of first and last layers, input of the last layers, and the logits. A first layer is one that a
graph input reaches without passing another layer with weights; a last layer reaches a graph output so.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from bitwright.graph.regions import Region


def end_sites(model: ir.Model, regions: Sequence[Region]) -> set[ir.Value]:
    """Values (activations and weights) that belong to the ends."""
    ends: set[ir.Value] = set(model.graph.inputs) | set(model.graph.outputs)
    reached = set(model.graph.inputs)
    for region in regions:
        if reached.isdisjoint(region.inputs):
            continue
        if region.weight is not None:
            ends.add(region.weight)
        else:
            reached.add(region.output)
    reached = set(model.graph.outputs)
    for region in reversed(regions):
        if region.output not in reached:
            continue
        if region.weight is not None:
            ends.update((region.weight, *region.inputs))
            ends.add(region.output)
        else:
            reached.update(region.inputs)
    return ends
