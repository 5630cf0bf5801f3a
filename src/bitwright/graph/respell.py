"""One spelling for what exporters write in several: in place, on a graph whose shapes are known.

Sum of two -> Add; mean over the plane -> GlobalAveragePool; Flatten -> Reshape; a product with a constant matrix and
its bias -> Gemm (`products.py`); a bias of zeros -> none; what passes its input on -> nothing.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bitwright.graph.names import fresh_name
from bitwright.graph.products import product_as_gemm
from bitwright.graph.swap import integers, rank, sizes, swap


def respell(model: ir.Model) -> None:
    """Bring every node to the one spelling of its function."""
    rows: dict[ir.Value, ir.Value] = {}
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
            product_as_gemm(model, node, rows)
        elif node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)


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
    same = x.shape is not None and None not in sizes(x) and sizes(x) == sizes(node.outputs[0])
    if node.op_type == "Slice":  # as long as before: whole, unless it is turned round
        return same and (len(node.inputs) < 5 or _is_all(node.inputs[4], 1))
    return node.op_type in ("Expand", "Reshape", "Flatten") and same


def _is_all(value: ir.Value | None, number: int) -> bool:
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())


def _is_zero(value: ir.Value | None) -> bool:
    """Some exporters write a bias of zeros for a convolution that has none."""
    return value is not None and value.is_initializer() and _is_all(value, 0)


def _is_spatial_mean(node: ir.Node) -> bool:
    n = rank(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if n < 3 or axes is None or axes.const_value is None:
        return False
    return sorted(int(a) % n for a in axes.const_value.numpy().ravel()) == list(range(2, n))


def _covers_the_plane(node: ir.Node) -> bool:
    x, attributes = node.inputs[0], node.attributes
    if x is None or x.shape is None or rank(x) < 3:
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
    inner.type, inner.shape = y.type, ir.Shape([*x.shape[:2], *([1] * (rank(x) - 2))])
    pool.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, pool)
    node.name = f"{node.name}_reshape" if node.name else None
    _swap_reshape(model, node, inner, [0, -1])


def _reshape(model: ir.Model, node: ir.Node) -> None:
    x = node.inputs[0]
    axes = sizes(x)[1:] if rank(x) else [None]
    numbers = [d for d in axes if isinstance(d, int)]
    if x is not None and len(numbers) == len(axes) and 0 not in numbers:
        _swap_reshape(model, node, x, [0, math.prod(numbers)])


def _swap_reshape(model: ir.Model, node: ir.Node, x: ir.Value, shape: list[int]) -> None:
    target = integers(model, f"{node.outputs[0].name}/shape", shape)
    swap(model, node, ir.Node("", "Reshape", [x, target]))
