"""Products with a constant matrix as Gemm, whatever the rank of what they multiply.

`x W + b` of the last axis is a product for each row, so `[..., K]` is read as `[rows, K]`:
Reshape -> Gemm (-> Relu or Clip) -> Reshape. Linear layers are then one kind of region, with a bias, in every file.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bitwright.graph.names import fresh_name
from bitwright.graph.regions import activation_bounds, only_consumer
from bitwright.graph.swap import integers, rank, sizes, swap


def product_as_gemm(model: ir.Model, node: ir.Node, rows: dict[ir.Value, ir.Value]) -> None:
    """Replace a MatMul with a constant matrix, and the bias that is added to it alone, in place.

    The last value keeps its name, and the node of the product its own; inner values get new ones. Left as it is: a
    product of other types, of two activations, or of more than one open axis.

    Args:
        model: the graph, shapes known.
        node: the MatMul.
        rows: `{x: x as [rows, K]}` of the products before, added to; several layers often read one value.
    """
    x, weight = node.inputs
    if x is None or weight is None or rank(weight) != 2 or not weight.is_initializer() or x.is_initializer():
        return
    if rank(x) == 2:
        add, bias = _bias(node, weight)
        swap(model, add or node, _gemm(node, x, weight, bias))
        if add is not None:
            model.graph.remove(node, safe=True)
    elif rank(x) > 2 and x.dtype is not None and x.dtype.is_floating_point() and _row_count(x) is not None:
        _by_rows(model, node, x, weight, rows)


def _gemm(node: ir.Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Node:
    return ir.Node(
        "", "Gemm", [x, weight] if bias is None else [x, weight, bias], name=node.name,
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip


def _bias(node: ir.Node, weight: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add that alone reads a product, and the vector that it adds."""
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None, None
    other = add.inputs[1 if add.inputs[0] is node.outputs[0] else 0]
    if other is None or not other.is_initializer() or sizes(other) != sizes(weight)[1:]:
        return None, None
    return add, other


def _row_count(x: ir.Value) -> int | str | None:
    """Number of rows as a dimension, `17*batch`; None where Reshape cannot say it."""
    outer = sizes(x)[:-1]
    numbers = [d for d in outer if isinstance(d, int)]
    names = [d for d in outer if not isinstance(d, int)]
    if 0 in numbers or not isinstance(sizes(x)[-1], int) or len(names) > 1 or None in names:
        return None
    count = math.prod(numbers)
    if not names:
        return count
    factor, star, name = str(names[0]).rpartition("*")
    count *= int(factor) if star else 1
    return name if count == 1 else f"{count}*{name}"


def _by_rows(model: ir.Model, node: ir.Node, x: ir.Value, weight: ir.Value, rows: dict[ir.Value, ir.Value]) -> None:
    count, k = _row_count(x), sizes(x)[-1]
    assert isinstance(k, int)
    if x not in rows:
        flat = ir.Node("", "Reshape", [x, integers(model, f"{x.name}/rows_shape", [-1, k])])
        _insert(model, node, flat, f"{x.name}/rows", [count, k], node)
        rows[x] = flat.outputs[0]
    add, bias = _bias(node, weight)
    parts = [node] if add is None else [node, add]
    gemm = _gemm(node, rows[x], weight, bias)
    outputs = sizes(weight)[1]
    _insert(model, node, gemm, f"{parts[-1].outputs[0].name}/rows", [count, outputs], None)
    last = gemm.outputs[0]
    act = only_consumer(parts[-1].outputs[0])
    if act is not None and activation_bounds(act) is not None:  # in front of the Reshape, where the layer absorbs it
        moved = ir.Node(
            act.domain, act.op_type, [last, *act.inputs[1:]], act.attributes.values(), name=act.name,
            metadata_props=dict(act.metadata_props),
        )  # fmt: skip
        _insert(model, node, moved, f"{act.outputs[0].name}/rows", [count, outputs], None)
        parts.append(act)
        last = moved.outputs[0]
    y = parts[-1].outputs[0]
    shape = [d if isinstance(d, int) else -1 for d in [*sizes(x)[:-1], outputs]]
    back = ir.Node("", "Reshape", [last, integers(model, f"{y.name}/shape", shape)])
    swap(model, parts[-1], back)
    _call(back, node, "back")
    for part in reversed(parts[:-1]):
        model.graph.remove(part, safe=True)


def _insert(
    model: ir.Model, before: ir.Node, new: ir.Node, wish: str, shape: list[int | str | None], caller: ir.Node | None
) -> None:
    """A node with one new value, of the type of the node that it is inserted before."""
    value = new.outputs[0]
    value.name = fresh_name(model, wish)
    value.type, value.shape = before.outputs[0].type, ir.Shape(shape)
    if caller is not None:
        _call(new, caller, "rows")
    model.graph.insert_before(before, new)


def _call(reshape: ir.Node, product: ir.Node, suffix: str) -> None:
    """A Reshape is called by the module of its product, in either exporter's way to say that."""
    reshape.name = f"{product.name or reshape.outputs[0].name}_{suffix}"
    reshape.metadata_props.clear()
    reshape.metadata_props.update(product.metadata_props)
