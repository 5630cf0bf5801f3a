"""One spelling for what exporters write in several: in place, on a graph whose shapes are known.

Sum of two -> Add; mean over the plane -> GlobalAveragePool; Flatten -> Reshape; a matrix product of two axes and its
bias -> Gemm; a bias of zeros -> none; what passes its input on -> nothing.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bitwright.graph.names import fresh_name


def respell(model: ir.Model) -> None:
    """Bring every node to the one spelling of its function."""
    for node in list(model.graph):
        if node.graph is None or node.domain:
            continue
        x = node.inputs[0] if node.inputs else None
        if x is not None and _passes_on(node, x):
            swap(model, node, ir.Node("", "Identity", [x]))
        elif node.op_type == "Sum" and len(node.inputs) == 2:
            swap(model, node, ir.Node("", "Add", list(node.inputs)))
        elif (node.op_type == "ReduceMean" and _is_spatial_mean(node)) or (
            node.op_type == "AveragePool" and _covers_the_plane(node)
        ):
            _global_average_pool(model, node)
        elif node.op_type == "Flatten" and node.attributes.get_int("axis", 1) == 1:
            _reshape(model, node)
        elif node.op_type == "MatMul":
            _gemm(model, node)
        elif node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)


def swap(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`; node and output keep the old ones' names, shape and type."""
    before, after = old.outputs[0], new.outputs[0]
    new.name = old.name
    new.metadata_props.update(old.metadata_props)
    after.shape, after.type = before.shape, before.type
    model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    name = before.name
    before.name = f"{name}/replaced"
    after.name = name
    model.graph.remove(old, safe=True)


def drop_identities(model: ir.Model) -> None:
    """Take out Identity nodes; those in branches stay, and one that joins an output to an input of the network."""
    for node in list(model.graph):
        if node.op_type != "Identity" or node.domain or node.inputs[0] is None:
            continue
        x, y = node.inputs[0], node.outputs[0]
        if not y.is_graph_output():
            ir.convenience.replace_all_uses_with(y, x)
        elif x.graph is model.graph and x.producer() is not None and not x.is_graph_output():
            ir.convenience.replace_all_uses_with(y, x, replace_graph_outputs=True)
            name, y.name = y.name, f"{y.name}/dropped"
            x.name = name
        else:
            continue
        model.graph.remove(node, safe=True)


def _passes_on(node: ir.Node, x: ir.Value) -> bool:
    """Whether a node gives its first input unchanged."""
    if node.op_type == "Dropout":  # without its mask, when the network is not being trained
        return not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]) and len(node.inputs) < 3
    if node.op_type == "Cast":
        return x.dtype is not None and x.dtype == node.attributes.get_int("to", 0)
    if node.op_type in ("Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    same = x.shape is not None and None not in _sizes(x) and _sizes(x) == _sizes(node.outputs[0])
    if node.op_type == "Slice":  # as long as before: whole, unless it is turned round
        return same and (len(node.inputs) < 5 or _is_all(node.inputs[4], 1))
    return node.op_type in ("Expand", "Reshape", "Flatten") and same


def _sizes(value: ir.Value) -> list[int | str | None]:
    return [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else [None]


def _is_all(value: ir.Value | None, number: int) -> bool:
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())


def _is_zero(value: ir.Value | None) -> bool:
    """Some exporters write a bias of zeros for a convolution that has none."""
    return value is not None and value.is_initializer() and _is_all(value, 0)


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _is_spatial_mean(node: ir.Node) -> bool:
    rank = _rank(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if rank < 3 or axes is None or axes.const_value is None:
        return False
    return sorted(int(a) % rank for a in axes.const_value.numpy().ravel()) == list(range(2, rank))


def _covers_the_plane(node: ir.Node) -> bool:
    x, attributes = node.inputs[0], node.attributes
    if x is None or x.shape is None or _rank(x) < 3:
        return False
    return (
        list(attributes["kernel_shape"].as_ints()) == list(x.shape[2:])
        and not any(attributes.get_ints("pads", ()))
        and all(d == 1 for d in attributes.get_ints("dilations", ()))
        and attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _global_average_pool(model: ir.Model, node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    keepdims = node.attributes.get_int("keepdims", 1)
    pool = ir.Node("", "GlobalAveragePool", [x])
    if node.op_type == "AveragePool" or keepdims:
        swap(model, node, pool)
        return
    # keepdims=0: the pooled plane, then its ones dropped; the inner value takes a name of its own.
    assert x is not None and x.shape is not None
    inner = pool.outputs[0]
    inner.name, pool.name = fresh_name(model, f"{y.name}/pooled"), node.name
    inner.type, inner.shape = y.type, ir.Shape([*x.shape[:2], *([1] * (_rank(x) - 2))])
    pool.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, pool)
    node.name = f"{node.name}_reshape" if node.name else None
    _swap_reshape(model, node, inner, [0, -1])


def _reshape(model: ir.Model, node: ir.Node) -> None:
    x = node.inputs[0]
    sizes = _sizes(x)[1:] if x is not None and _rank(x) else [None]
    numbers = [s for s in sizes if isinstance(s, int)]
    if x is not None and len(numbers) == len(sizes) and 0 not in numbers:
        _swap_reshape(model, node, x, [0, math.prod(numbers)])


def _swap_reshape(model: ir.Model, node: ir.Node, x: ir.Value, shape: list[int]) -> None:
    name = fresh_name(model, f"{node.outputs[0].name}/shape")
    target = ir.Value(name=name, const_value=ir.tensor(np.array(shape, dtype=np.int64), name=name))
    target.dtype, target.shape = ir.DataType.INT64, ir.Shape([len(shape)])
    model.graph.register_initializer(target)
    swap(model, node, ir.Node("", "Reshape", [x, target]))


def _gemm(model: ir.Model, node: ir.Node) -> None:
    """`x W` of two axes, and the vector that is added to it alone."""
    x, weight = node.inputs
    if _rank(x) != 2 or weight is None or _rank(weight) != 2 or not weight.is_initializer():
        return
    uses = list(node.outputs[0].uses())
    add = uses[0].node if len(uses) == 1 and not node.outputs[0].is_graph_output() else None
    bias = None
    if add is not None and add.op_type == "Add":
        other = add.inputs[1 - uses[0].idx]
        if other is not None and other.is_initializer() and _sizes(other) == _sizes(weight)[1:]:
            bias = other
    if add is None or bias is None:
        swap(model, node, ir.Node("", "Gemm", [x, weight]))
        return
    gemm = ir.Node("", "Gemm", [x, weight, bias])
    add.name = node.name
    add.metadata_props.update(node.metadata_props)
    swap(model, add, gemm)
    model.graph.remove(node, safe=True)
