"""Fold constants and shape arithmetic by evaluating them at two batch sizes.

Exporters write what they know of shapes as chains of Shape, Gather, Concat, Expand ... nodes. Everything but the batch
is known once the file is open, so each such chain is evaluated with the batch set to two different numbers: what
agrees is a constant, and an entry that differs is the batch. `follow.py` writes what follows the batch in one form.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from bitwright.errors import InputError
from bitwright.graph.alone import Sizes, alone, declared, place, reads, title
from bitwright.graph.captures import has_subgraph
from bitwright.graph.follow import constant_reshape, shared_followers
from bitwright.graph.known import PROBES, Known
from bitwright.graph.split import as_slices
from bitwright.lookup import did_you_mean

#: Ops whose result is not a function of their inputs alone.
RANDOM_OPS = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
#: Constants of more elements say nothing about shapes; inference is not shown them.
SHAPE_ELEMENTS = 64


def input_shapes(model: ir.Model, given: Mapping[str, Sequence[int | None]]) -> dict[str, tuple[int | None, ...]]:
    """Shape of each input with None for the batch, the only dimension that may stay open.

    Raises:
        InputError: another dimension is open and `given` does not say its size; `given` names no input of the model.
    """
    names = [value.name or "" for value in model.graph.inputs]
    for name in given:
        if name not in names:
            raise InputError(f"--shape {name}", "the model has no input of this name", fix=did_you_mean(name, names))
    return {value.name or "": _input_shape(value, given.get(value.name or "")) for value in model.graph.inputs}


def _input_shape(value: ir.Value, given: Sequence[int | None] | None) -> tuple[int | None, ...]:
    name = value.name or ""
    if value.shape is None and given is None:
        fix = f"give --shape {name}=Nx3x224x224"
        raise InputError(f"input {name!r}", "the file does not state its shape", fix=fix)
    dims = list(given or ()) if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    if given is not None and value.shape is not None:
        if len(given) != len(dims) or any(
            d is not None and g is not None and d != g for d, g in zip(dims, given, strict=True)
        ):
            raise InputError(
                f"input {name!r}", f"has shape {_show(value.shape)}", f"the given {_show(given)}",
                "correct --shape, or leave it out",
            )  # fmt: skip
        dims = [g if g is not None else d for g, d in zip(given, dims, strict=True)]
    if None in dims[1:]:
        raise InputError(
            f"input {name!r}", f"has shape {_show(value.shape or given or ())}",
            "only the first dimension (the batch) open",
            f"give --shape {name}=Nx" + "x".join(str(d or 224) for d in dims[1:]),
        )  # fmt: skip
    return tuple(dims)


def _show(dims: ir.Shape | Sequence[object]) -> str:
    sizes = [d.value if isinstance(d, ir.SymbolicDim) else d for d in dims]
    return "x".join("N" if d is None else str(d) for d in sizes)


def fold_shapes(model: ir.Model, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Fold, in place, every value that is the same for all inputs; then note all shapes and types."""
    fixed = all(None not in s for s in shapes.values())
    known = Known(model=model, probes=PROBES[:1] if fixed else PROBES)
    for value in model.graph.inputs:
        known.shapes[value] = [tuple(p if d is None else d for d in shapes[value.name or ""]) for p in known.probes]
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        # Large weights are constants too, but no shape arithmetic reads them: their values are loaded only if used.
        known.shapes[value] = [tuple(value.const_value.shape.numpy())] * len(known.probes)
        value.dtype = value.const_value.dtype
    for node in list(model.graph):
        if node.graph is None:  # taken out with the split that it belonged to
            continue
        _visit(known, node)
    shared_followers(known)
    for value, found in known.shapes.items():
        value.shape = ir.Shape([known.dimension(row) for row in zip(*found, strict=True)])


def _visit(known: Known, node: ir.Node) -> None:
    results = _evaluate(known, node)
    if results is None:
        slices = as_slices(known, node)
        for each in [node] if slices is None else slices:
            _infer(known, each)
            constant_reshape(known, each)
        return
    for output, found in zip(node.outputs, results, strict=True):
        known.values[output] = found
        known.shapes[output] = [a.shape for a in found]
        output.dtype = ir.DataType.from_numpy(found[0].dtype)
        if known.agrees(output) and not output.is_graph_output():
            constant = known.replace(output, found[0])
            known.values[constant], known.shapes[constant] = found, [a.shape for a in found]


def _evaluate(known: Known, node: ir.Node) -> list[list[np.ndarray]] | None:
    """The node's outputs at each probe, or None when they depend on data."""
    if node.op_type in RANDOM_OPS or node.domain or has_subgraph(node):
        return None
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in ("Shape", "Size") and inputs[0] in known.shapes:
        return [[_shape_of(node, shape) for shape in known.shapes[inputs[0]]]]
    if node.op_type == "CastLike" and inputs[1].dtype is not None and known.constant(inputs[0]) is not None:
        return [[a.astype(inputs[1].dtype.numpy()) for a in known.values[inputs[0]]]]
    constants = [known.constant(v) for v in inputs]
    if any(c is None for c in constants):
        return None
    if node.op_type == "Identity":
        return [constants[0]] if constants[0] is not None else None
    try:
        runs = [
            _run(known, node, {v.name or "": c[i] for v, c in zip(inputs, constants, strict=True) if c is not None})
            for i in range(len(known.probes))
        ]
    except Exception:  # what the reference evaluator cannot run stays in the graph, for the runtime
        return None
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biufV" for run in runs for array in run):
        return None  # sequences, strings
    return [list(found) for found in zip(*runs, strict=True)]


def _run(known: Known, node: ir.Node, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    # The reference evaluator wants a model; a node's own names serve as its inputs and outputs.
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)], "node", [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(o.name or "") for o in node.outputs],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", known.model.graph.opset_imports[""])]
    found = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, dict(feeds))
    return [np.asarray(a) if isinstance(a, np.generic | np.ndarray) else a for a in found]


def _shape_of(node: ir.Node, shape: tuple[int, ...]) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), dtype=np.int64)
    start, end = node.attributes.get("start"), node.attributes.get("end")
    first = start.as_int() if start else 0
    return np.array(shape[first : end.as_int() if end else None], dtype=np.int64)


def _infer(known: Known, node: ir.Node) -> None:
    """Shapes and types of the outputs by ONNX's own inference, when it can tell."""
    if node.domain or has_subgraph(node):
        _infer_in_runtime(known, node)
        return
    inputs = [v for v in node.inputs if v is not None]
    if any(v.dtype is None for v in inputs):
        return
    opset = known.model.graph.opset_imports.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return
    small = {v: c for v in inputs[1:] if _is_small(known, v) and (c := known.constant(v)) is not None}
    proto, opsets = ir.to_proto(node), [onnx.helper.make_opsetid(node.domain, opset)]
    found: list[Mapping[str, onnx.TypeProto]] = []
    for i in range(len(known.probes)):
        types = {
            v.name or "": onnx.helper.make_tensor_type_proto(
                int(v.dtype), known.shapes[v][i] if v in known.shapes else None
            )
            for v in inputs
            if v.dtype is not None
        }
        data = {v.name or "": onnx.numpy_helper.from_array(c[i]) for v, c in small.items()}
        with contextlib.suppress(Exception):  # the checker's errors too: what cannot be inferred stays unknown
            found.append(onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets))
    for output in node.outputs:
        _note(known, output, [types[name] for types in found if (name := output.name or "") in types])


def _is_small(known: Known, value: ir.Value) -> bool:
    return value in known.shapes and known.elements(value) <= SHAPE_ELEMENTS


def _infer_in_runtime(known: Known, node: ir.Node) -> None:
    """The same by ONNX Runtime's inference: for its own operators, and for branches that read what is around them."""
    inputs = reads(node)
    if any(v.dtype is None for v in inputs):
        return
    small = {v: c for v in inputs if _is_small(known, v) and (c := known.constant(v)) is not None}
    found = []
    for i in range(len(known.probes)):
        given: dict[str, tuple[ir.DataType, Sizes]] = {
            v.name or "": (v.dtype, known.shapes[v][i] if v in known.shapes else None)
            for v in inputs
            if v.dtype is not None and v not in small
        }
        constants = {v.name or "": arrays[i] for v, arrays in small.items()}
        model = alone(node, known.model.graph.opset_imports, known.model.ir_version, given, constants)
        found.append(declared(model, place(node), title(node)))
    for output in node.outputs:
        told = [types[output.name] for types in found if output.name]
        if told and told[0][0] != ir.DataType.UNDEFINED:
            output.dtype = told[0][0]
        shapes = [sizes for _, shape in told if (sizes := _closed(shape)) is not None]
        if len(shapes) == len(known.probes):
            known.shapes[output] = shapes


def _closed(shape: Sizes) -> tuple[int, ...] | None:
    sizes = None if shape is None else tuple(size for size in shape if size is not None)
    return None if sizes is None or shape is None or len(sizes) < len(shape) else sizes


def _note(known: Known, output: ir.Value, types: Sequence[onnx.TypeProto]) -> None:
    tensors = [t.tensor_type for t in types if t.HasField("tensor_type")]
    if len(tensors) < len(known.probes):
        return
    output.dtype = ir.DataType(tensors[0].elem_type)
    if all(t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim) for t in tensors):
        known.shapes[output] = [tuple(d.dim_value for d in t.shape.dim) for t in tensors]
