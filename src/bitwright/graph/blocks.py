"""Blocks: the parts of a network that are reconstructed as one, found from its structure alone.

Where paths that parted meet again (a residual addition, a concat, a product with a gate), the value that all of them
come from, the join's immediate dominator, and the join's own value enclose a part of the graph. It is a block when
nothing but the join's value is read outside it: single entry, single exit. Of blocks that hold one another the
outermost counts, as long as it has no more than so many layers; what is in no block is one for itself.

Values that no weight has touched, such as a mask that every attention reads, or the sizes of a shape, are no entrance:
they are the same whatever the block before is made of.

Source: R. Johnson, D. Pearson and K. Pingali, The program structure tree, PLDI 1994 (single entry, single exit); K.
Cooper, T. Harvey and K. Kennedy, A simple, fast dominance algorithm, 2001; blocks as units of reconstruction: Y. Li et
al., BRECQ, ICLR 2021, section 3.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bitwright.graph.regions import Region, find_regions

#: Layers of a block at most; a skip over more of them, as in a U-Net, leaves the blocks that it passes by.
MOST_LAYERS = 16
#: Ops that read the shape of their input alone.
SHAPE_READERS = {"Shape", "Size"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A part of the graph with one value that leaves it.

    Attributes:
        name: the innermost module that all its layers belong to (`layer1.0`), or that of its last region; a second
            block of the same name is `name#2`.
        regions: in execution order; the last gives the output.
        inputs: values computed outside that it reads. Of several regions: the entrance, then those that no weight has
            touched; of one region: all that it reads.
        output: the value that others read.
    """

    name: str
    regions: tuple[Region, ...]
    inputs: tuple[ir.Value, ...]
    output: ir.Value


def find_blocks(model: ir.Model, most: int = MOST_LAYERS) -> list[Block]:
    """Every region of a normalised model in one block; executed in this order, each finds what it reads.

    Args:
        model: normalised; batch norm folded or not.
        most: layers with weights that a block may have, unless it is one region.

    Example:
        >>> x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
        >>> node = ir.Node("", "Softmax", [x], name="a")
        >>> add = ir.Node("", "Add", [x, node.outputs[0]], name="sum")
        >>> graph = ir.Graph([x], add.outputs, nodes=[node, add])
        >>> [[region.name for region in block.regions] for block in find_blocks(ir.Model(graph, ir_version=10))]
        [['a', 'sum']]
    """
    regions = find_regions(model)
    flow = _Flow(model, regions)
    # A skip from the network's input itself encloses what is left of it when the blocks within have been found.
    candidates = [part for way in (True, False) for part in sorted(flow.enclosed(way), key=len, reverse=True)]
    taken: set[Region] = set()
    parts: list[list[Region]] = []
    for part in candidates:
        layers = sum(region.weight is not None for region in part)
        if layers <= most and taken.isdisjoint(part):
            parts.append(sorted(part, key=flow.place.__getitem__))
            taken.update(part)
    parts += [[region] for region in regions if region not in taken]
    # Every region of a block leads to its last one, so this is an order of execution.
    parts.sort(key=lambda part: flow.place[part[-1]])
    return [
        Block(name=name, regions=tuple(part), inputs=flow.inputs(part), output=part[-1].output)
        for name, part in zip(_names(parts), parts, strict=True)
    ]


class _Flow:
    """Which region reads what of which other."""

    def __init__(self, model: ir.Model, regions: Sequence[Region]) -> None:
        self.place = {region: i for i, region in enumerate(regions)}
        self.maker = {value: region for region in regions for node in region.nodes for value in node.outputs}
        self.readers: dict[ir.Value, set[Region]] = defaultdict(set)
        for region in regions:
            for value in region.inputs:
                self.readers[value].add(region)
        self.outputs = set(model.graph.outputs)
        # What depends on the network's input by more than its shape, and what has met a weight on the way.
        self.data = set(model.graph.inputs)
        self.weighted: set[ir.Value] = set()
        for region in regions:
            read = self.data.intersection(region.inputs)
            made = [value for node in region.nodes for value in node.outputs]
            if read and region.op.op_type not in SHAPE_READERS:
                self.data.update(made)
                if _has_weights(region) or not self.weighted.isdisjoint(read):
                    self.weighted.update(made)

    def enclosed(self, weighted: bool) -> list[list[Region]]:
        """The part that each join encloses with its dominator, where only the join's value leaves it.

        Args:
            weighted: whether values that no weight has touched are overlooked.
        """
        flowing = self.weighted if weighted else self.data
        before = {region: [v for v in region.inputs if v in flowing] for region in self.place}
        above = _dominators(before)
        found = []
        for join, values in before.items():
            entrance = above.get(join)
            if len(values) < 2 or entrance is None:
                continue
            part = self._between(entrance, join, before)
            if len(part) > 1 and self._is_closed(part, join):
                found.append(part)
        return found

    def _between(self, entrance: ir.Value, join: Region, before: Mapping[Region, list[ir.Value]]) -> list[Region]:
        part = {join}
        waiting = [join]
        while waiting:
            for value in before[waiting.pop()]:
                region = self.maker.get(value)
                if value is not entrance and region is not None and region not in part:
                    part.add(region)
                    waiting.append(region)
        return list(part)

    def _is_closed(self, part: list[Region], join: Region) -> bool:
        """Whether nothing outside reads what a region of the part gives, but for the last, which gives one value."""
        inside = set(part)
        for region in part:
            for value in (v for node in region.nodes for v in node.outputs):
                if region is join and value is join.output:
                    continue
                if value in self.outputs or not self.readers[value] <= inside:
                    return False
        return True

    def inputs(self, part: Sequence[Region]) -> tuple[ir.Value, ...]:
        """What a block reads, the entrance first."""
        made = {value for region in part for node in region.nodes for value in node.outputs}
        read = dict.fromkeys(v for region in part for v in region.inputs if v not in made)
        return tuple(sorted(read, key=lambda v: (v not in self.weighted, v not in self.data)))


def _dominators(before: Mapping[Region, list[ir.Value]]) -> dict[Region, ir.Value]:
    """For each region, in execution order, the last value that every path to it passes, where there is one."""
    above: dict[ir.Value, ir.Value | None] = {}
    depth: dict[ir.Value, int] = {}
    found: dict[Region, ir.Value] = {}

    def visit(value: ir.Value, parent: ir.Value | None) -> None:
        above[value], depth[value] = parent, 0 if parent is None else depth[parent] + 1

    for region, values in before.items():
        common: ir.Value | None = None
        for i, value in enumerate(values):
            if value not in above:  # an input of the network, or what is computed from overlooked values alone
                visit(value, None)
            common = value if i == 0 else _nearest(common, value, above, depth)
        if common is not None:
            found[region] = common
        for node in region.nodes:
            for value in node.outputs:
                visit(value, common)
    return found


def _nearest(
    a: ir.Value | None, b: ir.Value | None, above: Mapping[ir.Value, ir.Value | None], depth: Mapping[ir.Value, int]
) -> ir.Value | None:
    """The deepest value that dominates both."""
    while a is not b:
        if a is None or b is None:
            return None
        if depth[a] >= depth[b]:
            a = above[a]
        else:
            b = above[b]
    return a


def _has_weights(region: Region) -> bool:
    return any(
        v is not None
        and v.const_value is not None
        and v.const_value.size > 1
        and v.const_value.dtype.is_floating_point()
        for node in region.nodes
        for v in node.inputs
    )


def _names(parts: Sequence[Sequence[Region]]) -> list[str]:
    names: list[str] = []
    seen: dict[str, int] = {}
    for part in parts:
        layers = [region.name.partition("#")[0].split(".") for region in part if region.weight is not None]
        shared = layers[0] if layers else []
        for path in layers[1:]:
            equal = [a == b for a, b in zip(shared, path, strict=False)]
            shared = shared[: [*equal, False].index(False)]
        if len(layers) == 1:
            shared = shared[:-1]
        name = ".".join(shared) if len(part) > 1 and shared else part[-1].name
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
