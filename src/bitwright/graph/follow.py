"""Values that follow the batch, in one form.

The target of a Reshape becomes a constant with 0 ("keep") or -1 ("the rest") in the batch's place. Any other vector of
sizes is made new from the first input's batch: `Concat(Shape(x, 0:1), constants)`, whatever chain an exporter wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bitwright.graph.known import Known
from bitwright.graph.names import fresh_name


def constant_reshape(known: Known, node: ir.Node) -> None:
    """Replace a shape that follows the batch by a constant one, where 0 or -1 can say the same."""
    if node.op_type != "Reshape":
        return
    data, target, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if data is None or target is None or target.is_initializer() or data not in known.shapes:
        return
    if output in known.shapes:
        rows = list(zip(*known.shapes[output], strict=True))
    elif target in known.values:
        rows = list(zip(*(a.tolist() for a in known.values[target]), strict=True))
    else:
        return
    shape = _reshape_target(rows, list(zip(*known.shapes[data], strict=True)))
    if shape is None:
        return
    node.replace_input_with(1, known.register(fresh_name(known.model, f"{output.name}/shape"), np.array(shape)))
    node.attributes.pop("allowzero", None)


def _reshape_target(rows: Sequence[tuple[int, ...]], data: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Sizes at each probe -> target of Reshape; None where it cannot be said by constants.

    Example:
        >>> _reshape_target([(3, 5), (8, 8)], [(3, 5), (2, 2), (4, 4)])
        [0, 8]
        >>> _reshape_target([(12, 20), (6, 6)], [(3, 5), (4, 4), (6, 6)])
        [-1, 6]
    """
    if any(0 in row for row in rows):  # an empty tensor; 0 would mean "keep"
        return None
    shape = [
        row[0] if len(set(row)) == 1 else 0 if i < len(data) and data[i] == row else -1 for i, row in enumerate(rows)
    ]
    return shape if shape.count(-1) < 2 else None


def shared_followers(known: Known) -> None:
    """Make sizes that follow the batch new, from one Shape node, where ops that compute on data read them."""
    followers = {v for v, found in known.values.items() if _is_follower(known, v, found)}
    read = [v for v in followers if any(o not in followers for use in v.uses() for o in use.node.outputs)]
    if not read:
        return
    batch = _batch(known)
    for value in sorted(read, key=lambda v: v.name or ""):
        if value is not batch:
            _make_new(known, value, batch)


def _is_follower(known: Known, value: ir.Value, found: Sequence[np.ndarray]) -> bool:
    if value.producer() is None or value.is_graph_output() or known.agrees(value):
        return False
    if found[0].dtype != np.int64 or found[0].ndim > 1 or len({a.shape for a in found}) > 1:
        return False
    rows = zip(*(a.ravel().tolist() for a in found), strict=True)
    return all(len(set(row)) == 1 or row == known.probes for row in rows)


def _batch(known: Known) -> ir.Value:
    """The batch as a vector of one element: that of the graph, or a new one."""
    source = next(v for v in known.model.graph.inputs if known.shapes[v] and _varies(known.shapes[v]))
    for node, _ in source.uses():
        found = known.values.get(node.outputs[0], [])
        if node.op_type == "Shape" and [a.tolist() for a in found] == [[probe] for probe in known.probes]:
            return node.outputs[0]
    node = ir.Node("", "Shape", [source], {"start": ir.AttrInt64("start", 0), "end": ir.AttrInt64("end", 1)})
    return _insert(known, node, fresh_name(known.model, "batch"), [1])


def _varies(shapes: Sequence[tuple[int, ...]]) -> bool:
    return len({s[:1] for s in shapes}) > 1


def _insert(known: Known, node: ir.Node, name: str, shape: Sequence[int]) -> ir.Value:
    """A node at the beginning of the graph, which is sorted afterwards."""
    node.name = node.outputs[0].name = name
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(shape), ir.DataType.INT64
    known.model.graph.insert_before(known.model.graph[0], node)
    return node.outputs[0]


def _make_new(known: Known, value: ir.Value, batch: ir.Value) -> None:
    name, found = value.name or "", known.values[value]
    value.name = f"{name}/replaced"
    if found[0].ndim == 0:
        axes = known.register(fresh_name(known.model, f"{name}/axes"), np.array([0]))
        node = ir.Node("", "Squeeze", [batch, axes])
    else:
        node = ir.Node("", "Concat", _parts(known, name, found, batch), {"axis": ir.AttrInt64("axis", 0)})
    new = _insert(known, node, name, found[0].shape)
    ir.convenience.replace_all_uses_with(value, new)


def _parts(known: Known, name: str, found: Sequence[np.ndarray], batch: ir.Value) -> list[ir.Value]:
    """The batch, and the constants before and after it."""
    parts: list[ir.Value] = []
    constants: list[int] = []
    for i, row in enumerate(zip(*(a.tolist() for a in found), strict=True)):
        if len(set(row)) == 1:
            constants.append(row[0])
        if constants and (len(set(row)) > 1 or i == len(found[0]) - 1):
            parts.append(known.register(fresh_name(known.model, f"{name}/sizes"), np.array(constants)))
            constants = []
        if len(set(row)) > 1:
            parts.append(batch)
    return parts
