"""The layers of a network in order, and the value by which each is judged: MSQ's feature points.

A layer is a region with a weight. Its feature is what it gives after its activation; of the last layer of a residual
block, what the block gives (after the addition and its activation). Layers that end in one feature are one index: the
convolution of a shortcut is none of its own, it belongs to the last layer of its block.

Source: MSQ (see `msq.py`), section 3.2. Which of the layers that are added is the block's last is ours: the one behind
the most layers, then the one that is computed last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.errors import InputError
from bitwright.graph.regions import Region, find_regions
from bitwright.mixed.space import Space
from bitwright.pipeline import State

#: Regions of one input that a layer's feature is looked for behind: activations that stand alone, and uses of a value.
FOLLOWING = ("Table", "Relu", "Clip", "Identity")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One index of MSQ.

    Attributes:
        feature: name of the value.
        layer: region with the weight.
        parallel: regions with a weight that end in the same feature; their bits are those of `layer`.
    """

    feature: str
    layer: str
    parallel: tuple[str, ...] = ()


def points(model: ir.Model) -> tuple[Point, ...]:
    """All indices, in the order in which their features are computed.

    Args:
        model: normalised; batch norm folded.

    Example:
        >>> text = '''<ir_version: 10, opset_import: ["": 21]> net (float[N,1,4,4] x) => (float[N,1,4,4] y)
        ... <float[1,1,1,1] v = {2.0}, float[1,1,1,1] w = {3.0}> {
        ...     a = Conv(x, v)  h = Relu(a)  b = Conv(h, w)  s = Add(b, x)  y = Relu(s) }'''
        >>> [(point.layer, point.feature) for point in points(ir.from_onnx_text(text))]
        [('v', 'h'), ('w', 'y')]
    """
    regions = find_regions(model)
    readers: dict[ir.Value, list[Region]] = defaultdict(list)
    for region in regions:
        for value in region.inputs:
            readers[value].append(region)
    computed = {region.output: i for i, region in enumerate(regions)}
    depth: dict[ir.Value, int] = defaultdict(int)
    ending: dict[ir.Value, list[Region]] = defaultdict(list)
    for region in regions:
        depth[region.output] = (region.weight is not None) + max((depth[v] for v in region.inputs), default=0)
        if region.weight is not None:
            ending[_feature(region, readers)].append(region)
    found = []
    for feature in sorted(ending, key=lambda value: computed[value]):
        layers = ending[feature]
        last = max(layers, key=lambda region: (depth[region.output], computed[region.output]))
        parallel = tuple(region.name for region in layers if region is not last)
        found.append(Point(feature=feature.name or "", layer=last.name, parallel=parallel))
    return tuple(found)


def _feature(layer: Region, readers: dict[ir.Value, list[Region]]) -> ir.Value:
    """What a layer gives after its activation, or after that of the addition which alone reads it."""
    value, added = layer.output, False
    while len(readers[value]) == 1 and not value.is_graph_output():
        (reader,) = readers[value]
        is_sum = reader.kind == "Add" and len(reader.inputs) == 2
        if not (is_sum and not added) and not (reader.kind in FOLLOWING and len(reader.inputs) == 1):
            break
        value, added = reader.output, added or is_sum
    return value


def tied(state: State) -> list[tuple[str, ...]]:
    """Names of regions of one index, for `space_of(ties=...)`: last layers of blocks, and their shortcuts' layers."""
    return [(point.layer, *point.parallel) for point in points(state.model) if point.parallel]


def of_groups(found: Sequence[Point], space: Space) -> tuple[dict[str, list[int]], list[str]]:
    """`{group: its indices}`, and the groups that hold the first layer, which are never lowered.

    Raises:
        InputError: a group that is no index of its own.
    """
    indices: dict[str, list[int]] = {}
    held: list[str] = []
    first = {found[0].layer, *found[0].parallel}
    for group in space.groups:
        names = [product.name for product in space.products[group.name]]
        indices[group.name] = [i for i, point in enumerate(found) if point.layer in names]
        if not first.isdisjoint(names):
            held.append(group.name)
        elif not indices[group.name]:
            last = next(point.layer for point in found if names[0] in point.parallel)
            raise InputError(
                f"group {group.name!r}", "is the shortcut of a block and moves alone",
                f"the bits of {last!r}, the last layer of the block", "tie them: space_of(ties=tied(state))",
            )  # fmt: skip
    return indices, held
