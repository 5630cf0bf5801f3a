"""Bring every exporter's file to one form.

Functions inlined, one operator set, constants folded, shapes known, and one spelling for ops that have several:
global pooling (ReduceMean, AveragePool over the whole plane), Add (Sum of two). Batch norm stays: folding it is a step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.version_converter import convert_version

from bitwright.errors import UnsupportedError
from bitwright.graph.fold import fold_shapes, input_shapes
from bitwright.graph.names import fresh_name

#: The operator set that everything downstream speaks; newer files keep their own.
OPSET = 21


def normalise(model: ir.Model, shapes: Mapping[str, Sequence[int | None]] | None = None) -> ir.Model:
    """A normalised copy of `model`; the original is left as it is.

    Args:
        model: an opened network.
        shapes: sizes of input dimensions that the file leaves open, `{input: (None, 3, 224, 224)}`.

    Raises:
        InputError: an input dimension other than the batch stays open.
        UnsupportedError: the operator set cannot be converted.
    """
    model = model.clone()
    common.InlinePass()(model)
    _to_opset(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    _drop_inference_no_ops(model)
    common.IdentityEliminationPass()(model)
    given = input_shapes(model, shapes or {})
    for value in model.graph.inputs:
        value.shape = ir.Shape(["batch" if d is None else d for d in given[value.name or ""]])
    fold_shapes(model, given)
    for node in list(model.graph):
        _respell(model, node)
    common.RemoveUnusedNodesPass()(model)  # initializers without readers too
    common.TopologicalSortPass()(model)
    return model


def _to_opset(model: ir.Model) -> None:
    if "ai.onnx" in model.graph.opset_imports:
        model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx")
    before = model.graph.opset_imports[""]
    if before >= OPSET:
        return
    log = logging.getLogger("onnxscript.version_converter")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of the very fallback that is asked for
    try:
        convert_version(model, OPSET, fallback=True)
    finally:
        log.setLevel(level)
    if model.graph.opset_imports[""] != OPSET:
        raise UnsupportedError(
            "model", f"operator set {before} could not be converted to {OPSET}", fix=f"export it with opset {OPSET}"
        )


def _drop_inference_no_ops(model: ir.Model) -> None:
    """Dropout without its mask passes its input on when a network is not being trained."""
    for node in list(model.graph):
        if node.op_type == "Dropout" and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            node.resize_inputs(1)
            node.resize_outputs(1)
            identity = ir.Node("", "Identity", [node.inputs[0]], outputs=[ir.Value(name=f"{node.outputs[0].name}/kept")])
            _swap(model, node, identity)


def _swap(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`; the output keeps the old value's name, shape and type."""
    before, after = old.outputs[0], new.outputs[0]
    after.shape, after.dtype = before.shape, before.dtype
    model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    name = before.name
    before.name = f"{name}/replaced"
    after.name = name
    model.graph.remove(old, safe=True)


def _respell(model: ir.Model, node: ir.Node) -> None:
    if node.op_type == "Sum" and len(node.inputs) == 2:
        _swap(model, node, ir.Node("", "Add", list(node.inputs), name=node.name))
    elif (node.op_type == "ReduceMean" and _is_spatial_mean(node)) or (
        node.op_type == "AveragePool" and _covers_the_plane(node)
    ):
        _global_average_pool(model, node)
    elif node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
        # Some exporters write a bias of zeros for a convolution that has none.
        node.resize_inputs(2)


def _is_zero(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.const_value.numpy().any()


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _is_spatial_mean(node: ir.Node) -> bool:
    rank = _rank(node.inputs[0])
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if rank < 3 or axes is None or axes.const_value is None:
        return False
    return sorted(int(a) % rank for a in axes.const_value.numpy().ravel()) == list(range(2, rank))


def _covers_the_plane(node: ir.Node) -> bool:
    x = node.inputs[0]
    if x is None or x.shape is None or _rank(x) < 3 or any(not isinstance(d, int) for d in x.shape[2:]):
        return False
    pads = node.attributes.get("pads")
    dilations = node.attributes.get("dilations")
    return (
        list(node.attributes["kernel_shape"].as_ints()) == list(x.shape[2:])
        and not (pads and any(pads.as_ints()))
        and not (dilations and any(d != 1 for d in dilations.as_ints()))
    )


def _global_average_pool(model: ir.Model, node: ir.Node) -> None:
    keep = node.attributes.get("keepdims")
    pool = ir.Node("", "GlobalAveragePool", [node.inputs[0]], name=node.name)
    if node.op_type == "AveragePool" or keep is None or keep.as_int():
        _swap(model, node, pool)
        return
    # keepdims=0: the pooled plane, then its ones dropped; the inner value takes a name of its own.
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and x.shape is not None and y.shape is not None
    inner = pool.outputs[0]
    inner.name = fresh_name(model, f"{y.name}/pooled")
    inner.dtype, inner.shape = y.dtype, ir.Shape([*x.shape[:2], *([1] * (_rank(x) - 2))])
    target = ir.Value(name=fresh_name(model, f"{y.name}/shape"), const_value=ir.tensor(np.array([0, -1], dtype=np.int64)))
    target.dtype, target.shape = ir.DataType.INT64, ir.Shape([2])
    model.graph.register_initializer(target)
    model.graph.insert_before(node, pool)
    _swap(model, node, ir.Node("", "Reshape", [inner, target], name=f"{node.name}/flatten"))
