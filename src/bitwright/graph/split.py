"""Splits of known sizes as slices.

`chunk`, `split` and `unbind` come as Split, or as SplitToSequence and SequenceAt. Where the sizes are known, each part
is one Slice, which targets run on codes and which has one output, like all other regions.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from bitwright.graph.known import Known
from bitwright.graph.names import fresh_name

SPLITS = {"Split", "SplitToSequence"}


def as_slices(known: Known, node: ir.Node) -> list[ir.Node] | None:
    """The slices that take the place of a split, or None where the node is none or its sizes are open."""
    x = node.inputs[0] if node.inputs else None
    if node.op_type not in SPLITS or node.domain or x is None or x not in known.shapes:
        return None
    axis = node.attributes.get_int("axis", 0) % max(1, len(known.shapes[x][0]))
    lengths = {shape[axis] for shape in known.shapes[x]}
    sizes = _sizes(known, node, lengths.pop()) if len(lengths) == 1 else None
    parts = None if sizes is None else _parts(known, node, len(sizes))
    if sizes is None or parts is None:
        return None
    edges = [0, *itertools.accumulate(sizes)]
    slices = [_slice(known, node, output, axis, edges[i], edges[i + 1]) for output, i in parts]
    readers = [] if node.op_type == "Split" else [use.node for use in node.outputs[0].uses()]
    known.model.graph.remove([*readers, node], safe=True)
    return slices


def _sizes(known: Known, node: ir.Node, length: int) -> list[int] | None:
    """Lengths of the parts along the axis."""
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None:
        found = known.constant(given)
        if found is None or not known.agrees(given):
            return None
        if found[0].ndim == 1:
            return [int(n) for n in found[0]]
        size = int(found[0])
    elif node.op_type == "Split":
        size = -(-length // node.attributes.get_int("num_outputs", len(node.outputs)))
    elif node.attributes.get_int("keepdims", 1):
        size = 1
    else:
        return None
    return [min(size, length - start) for start in range(0, length, size)] if size > 0 else None


def _parts(known: Known, node: ir.Node, n: int) -> list[tuple[ir.Value, int]] | None:
    """Each value that holds a part, with the part's number."""
    if node.op_type == "Split":
        return [(output, i) for i, output in enumerate(node.outputs)] if len(node.outputs) == n else None
    parts = []
    if node.outputs[0].is_graph_output():
        return None
    for use in node.outputs[0].uses():
        position = (
            known.constant(use.node.inputs[1]) if use.node.op_type == "SequenceAt" and use.node.inputs[1] else None
        )
        if position is None or len({int(p) for p in position}) > 1 or not -n <= int(position[0]) < n:
            return None
        parts.append((use.node.outputs[0], int(position[0]) % n))
    return parts


def _slice(known: Known, node: ir.Node, output: ir.Value, axis: int, start: int, end: int) -> ir.Node:
    name = output.name or fresh_name(known.model, "slice")
    output.name = f"{name}/replaced"
    bounds = [
        known.register(fresh_name(known.model, f"{name}/{key}"), np.array([number]))
        for key, number in (("start", start), ("end", end), ("axis", axis))
    ]
    new = ir.Node(
        "", "Slice", [node.inputs[0], *bounds], name=fresh_name(known.model, f"{node.name or name}_{start}"),
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    new.outputs[0].name = name
    new.outputs[0].type = node.inputs[0].type if node.inputs[0] else None
    known.model.graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0], replace_graph_outputs=True)
    return new
