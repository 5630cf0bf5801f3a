"""Fold constants and shape arithmetic by evaluating them at two batch sizes.

Exporters write what they know of shapes as chains of Shape, Gather, Concat, Expand ... nodes. Everything but the batch
is known once the file is open, so each such chain is evaluated with the batch set to two different numbers: what
agrees is a constant, and an entry that differs is the batch. A chain that ends in Reshape becomes its constant shape
with 0 ("keep") or -1 ("the rest") in the batch's place; any other stays in the graph and runs as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from bitwright.errors import InputError

#: Ops whose result is not a function of their inputs alone.
RANDOM_OPS = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
#: Two sizes that no exporter's hard-coded number coincides with.
PROBES = (3, 5)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Known:
    """What each probe found: the values of constants, and the shapes of all tensors that have one."""

    values: dict[ir.Value, list[np.ndarray]] = field(default_factory=dict)
    shapes: dict[ir.Value, list[Shape]] = field(default_factory=dict)


def input_shapes(model: ir.Model, given: Mapping[str, Sequence[int | None]]) -> dict[str, tuple[int | None, ...]]:
    """Shape of each input with None for the batch, the only dimension that may stay open.

    Raises:
        InputError: another dimension is open and `given` does not say its size.
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if value.shape is None:
            raise InputError(f"input {name!r}", "the file does not state its shape", fix=f"give --shape {name}=Nx3x224x224")
        dims: list[int | None] = [d if isinstance(d, int) else None for d in value.shape]
        if name in given:
            want = list(given[name])
            if len(want) != len(dims) or any(d is not None and w is not None and d != w for d, w in zip(dims, want, strict=False)):
                raise InputError(f"input {name!r}", f"has shape {_show(value.shape)}", f"the given {_show(want)}")
            dims = [w if w is not None else d for w, d in zip(want, dims, strict=True)]
        if None in dims[1:]:
            raise InputError(
                f"input {name!r}", f"has shape {_show(value.shape)}", "only the first dimension (the batch) open",
                f"give --shape {name}=Nx" + "x".join(str(d or 224) for d in dims[1:]),
            )  # fmt: skip
        shapes[name] = tuple(dims)
    return shapes


def _show(dims: ir.Shape | Sequence[object]) -> str:
    return "x".join("N" if d is None else str(d) for d in dims)


def fold_shapes(model: ir.Model, shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Fold, in place, every value that is the same for all inputs; then note all shapes and types."""
    known = _Known()
    fixed = all(None not in s for s in shapes.values())
    probes = PROBES[:1] if fixed else PROBES
    for value in model.graph.inputs:
        known.shapes[value] = [tuple(p if d is None else d for d in shapes[value.name or ""]) for p in probes]
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        # Large weights are constants too, but no shape arithmetic reads them: their values are loaded only if used.
        known.shapes[value] = [tuple(value.const_value.shape.numpy())] * len(probes)
        value.dtype = value.const_value.dtype
    for node in list(model.graph):
        _visit(model, node, known, len(probes))
    for value, found in known.shapes.items():
        value.shape = ir.Shape([row[0] if len(set(row)) == 1 else "batch" for row in zip(*found, strict=True)])


def _constant(value: ir.Value, known: _Known, probes: int) -> list[np.ndarray] | None:
    if value in known.values:
        return known.values[value]
    if value.is_initializer() and value.const_value is not None:
        known.values[value] = [value.const_value.numpy()] * probes
        return known.values[value]
    return None


def _visit(model: ir.Model, node: ir.Node, known: _Known, probes: int) -> None:
    inputs = [v for v in node.inputs if v is not None]
    results = _evaluate(model, node, inputs, known, probes)
    if results is None:
        _infer(model, node, inputs, known, probes)
        if node.op_type == "Reshape":
            _constant_reshape(model, node, known)
        return
    for output, found in zip(node.outputs, results, strict=True):
        known.values[output] = found
        known.shapes[output] = [a.shape for a in found]
        output.dtype = ir.DataType.from_numpy(found[0].dtype)
        if all(np.array_equal(found[0], a, equal_nan=found[0].dtype.kind == "f") for a in found) and not output.is_graph_output():
            constant = _replace(model, output, found[0])
            known.values[constant], known.shapes[constant] = found, [a.shape for a in found]


def _replace(model: ir.Model, value: ir.Value, array: np.ndarray) -> ir.Value:
    """The value becomes an initializer of its own name; its node is left to the removal of unused nodes."""
    constant = ir.Value(name=value.name, const_value=ir.tensor(array, name=value.name))
    constant.shape, constant.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    value.name = f"{value.name}/folded"
    ir.convenience.replace_all_uses_with(value, constant)
    model.graph.register_initializer(constant)
    return constant


def _evaluate(
    model: ir.Model, node: ir.Node, inputs: Sequence[ir.Value], known: _Known, probes: int
) -> list[list[np.ndarray]] | None:
    """The node's outputs at each probe, or None when they depend on data."""
    if node.op_type in RANDOM_OPS or node.domain not in ("", "ai.onnx") or _has_subgraph(node):
        return None
    if node.op_type in ("Shape", "Size") and inputs[0] in known.shapes:
        return [[_shape_of(node, shape) for shape in known.shapes[inputs[0]]]]
    if node.op_type == "CastLike" and inputs[1].dtype is not None and _constant(inputs[0], known, probes) is not None:
        return [[a.astype(inputs[1].dtype.numpy()) for a in known.values[inputs[0]]]]
    if any(_depends_on_data(v, known) for v in inputs):
        return None
    constants = [_constant(v, known, probes) for v in inputs]
    # The reference evaluator wants a model; a node's own names serve as its inputs and outputs.
    proto = ir.to_proto(node)
    graph = onnx.helper.make_graph(
        [proto], "node", [onnx.helper.make_empty_tensor_value_info(v.name) for v in dict.fromkeys(inputs)],
        [onnx.helper.make_empty_tensor_value_info(o.name) for o in node.outputs],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", model.graph.opset_imports[""])]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    runs = []
    for probe in range(probes):
        feeds = {v.name: c[probe] for v, c in zip(inputs, constants, strict=True) if c is not None}
        runs.append([np.asarray(a) for a in evaluator.run(None, feeds)])
    return [list(found) for found in zip(*runs, strict=True)]


def _depends_on_data(value: ir.Value, known: _Known) -> bool:
    return value not in known.values and not value.is_initializer()


def _has_subgraph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _shape_of(node: ir.Node, shape: Shape) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), dtype=np.int64)
    start, end = node.attributes.get("start"), node.attributes.get("end")
    first = start.as_int() if start else 0
    return np.array(shape[first : end.as_int() if end else None], dtype=np.int64)


def _infer(model: ir.Model, node: ir.Node, inputs: Sequence[ir.Value], known: _Known, probes: int) -> None:
    """Shapes and types of the outputs by ONNX's own inference, when it can tell."""
    if _has_subgraph(node) or any(v not in known.shapes or v.dtype is None for v in inputs):
        return
    opset = model.graph.opset_imports.get(node.domain, 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return
    proto = ir.to_proto(node)
    small = {v: c for v in inputs[1:] if not _depends_on_data(v, known) and _count(v, known) <= 64 and (c := _constant(v, known, probes))}
    for probe in range(probes):
        types = {
            v.name: onnx.helper.make_tensor_type_proto(int(v.dtype), known.shapes[v][probe])  # type: ignore[arg-type]
            for v in inputs
        }
        data = {v.name: onnx.numpy_helper.from_array(c[probe]) for v, c in small.items()}
        with contextlib.suppress(onnx.shape_inference.InferenceError):
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)]
            )
            for output in node.outputs:
                _note(output, found.get(output.name or ""), known)


def _count(value: ir.Value, known: _Known) -> int:
    return int(np.prod(known.shapes[value][0]))


def _note(output: ir.Value, found: onnx.TypeProto | None, known: _Known) -> None:
    if found is None or not found.HasField("tensor_type"):
        return
    output.dtype = ir.DataType(found.tensor_type.elem_type)
    dims = found.tensor_type.shape.dim
    if found.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
        known.shapes.setdefault(output, []).append(tuple(d.dim_value for d in dims))


def _constant_reshape(model: ir.Model, node: ir.Node, known: _Known) -> None:
    """Replace a shape that follows the batch by a constant one, where 0 or -1 can say the same."""
    data, target = node.inputs[0], node.inputs[1]
    if data is None or target is None or target.is_initializer() or target not in known.values:
        return
    rows = list(zip(*(a.tolist() for a in known.values[target]), strict=True))
    # allowzero=1 reads 0 as an empty dimension; without empty dimensions it says nothing and 0 is free for "keep".
    if data not in known.shapes or (node.attributes.get_int("allowzero", 0) and any(0 in row for row in rows)):
        return
    shape: list[int] = []
    for i, row in enumerate(rows):
        if len(set(row)) == 1:
            shape.append(row[0])
        elif all(i < len(s) and s[i] == size for s, size in zip(known.shapes[data], row, strict=True)):
            shape.append(0)
        else:
            shape.append(-1)
    if shape.count(-1) > 1:
        return
    constant = ir.Value(name=f"{node.outputs[0].name}/shape", const_value=ir.tensor(np.array(shape, dtype=np.int64)))
    constant.dtype, constant.shape = ir.DataType.INT64, ir.Shape([len(shape)])
    model.graph.register_initializer(constant)
    node.replace_input_with(1, constant)
    node.attributes.pop("allowzero", None)
