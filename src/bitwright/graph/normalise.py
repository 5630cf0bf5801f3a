"""Bring every exporter's file to one form.

Functions inlined, one operator set, half precision as float32, constants folded, shapes known, and one spelling for
ops that have several (`respell.py`). Batch norm stays: folding it is a step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from bitwright.errors import UnsupportedError
from bitwright.graph.fold import fold_shapes, input_shapes
from bitwright.graph.names import SCOPES
from bitwright.graph.respell import drop_identities, respell
from bitwright.graph.widen import widen

#: The operator set that everything downstream speaks; newer files keep their own.
OPSET = 21
#: The oldest IR version that allows it.
IR_VERSION = 10
#: Operator domains that ONNX Runtime serves; whether it knows an op of them is asked when shapes are inferred.
KNOWN_DOMAINS = {"", "com.microsoft", "ai.onnx.ml"}


def normalise(
    model: ir.Model, shapes: Mapping[str, Sequence[int | None]] | None = None, where: str = "model"
) -> ir.Model:
    """A normalised copy of `model`; the original is left as it is.

    Args:
        model: an opened network.
        shapes: sizes of input dimensions that the file leaves open, `{input: (None, 3, 224, 224)}`.
        where: what to call the network in errors.

    Raises:
        InputError: an input dimension other than the batch stays open.
        UnsupportedError: an operator set that cannot be converted, an op of an unknown domain, a sequence.
    """
    model = model.clone()
    common.InlinePass()(model)
    _one_domain(model)
    _refuse_unknown_domains(model, where)
    _load_external(model)
    _trim_batchnorm(model)
    _to_opset(model, where)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    _drop_traces(model)
    widen(model)
    given = input_shapes(model, shapes or {})
    for value in model.graph.inputs:
        value.shape = ir.Shape(["batch" if d is None else d for d in given[value.name or ""]])
    fold_shapes(model, given)
    common.RemoveUnusedNodesPass()(model)  # and initializers without readers
    respell(model)
    drop_identities(model)
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
    _refuse_sequences(model, where)
    return model


def _one_domain(model: ir.Model) -> None:
    """`ai.onnx` is another way to write the default domain."""
    opsets = model.graph.opset_imports
    if "ai.onnx" in opsets:
        opsets[""] = opsets.pop("ai.onnx")
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""


def _refuse_unknown_domains(model: ir.Model, where: str) -> None:
    for node in model.graph.all_nodes():
        if node.domain not in KNOWN_DOMAINS:
            raise UnsupportedError(
                where, f"node {node.name!r} is {node.op_type} of the domain {node.domain!r}",
                "ops of ONNX's own domains or com.microsoft", "export the network without this op",
            )  # fmt: skip


def _refuse_sequences(model: ir.Model, where: str) -> None:
    """What no step and no target can hold in a tensor."""
    for node in model.graph:
        for value in node.outputs:
            if "Sequence" in node.op_type or isinstance(value.type, ir.SequenceType | ir.OptionalType):
                raise UnsupportedError(
                    where, f"node {node.name!r} ({node.op_type}) makes a sequence of unknown length", "tensors",
                    "export the network without lists of tensors",
                )  # fmt: skip
            if value.dtype == ir.DataType.STRING:
                raise UnsupportedError(
                    where, f"node {node.name!r} ({node.op_type}) gives text", "numbers",
                    "cut the network off before the conversion to text",
                )  # fmt: skip


def _load_external(model: ir.Model) -> None:
    """Tensors in other files become arrays that are mapped from there, so that the model is complete by itself."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)


def _trim_batchnorm(model: ir.Model) -> None:
    """Before operator set 14 batch norm had outputs for training, which nothing reads when it is done."""
    for node in model.graph:
        if node.op_type == "BatchNormalization" and not any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            if not node.attributes.get_int("training_mode", 0):
                node.resize_outputs(1)


def _to_opset(model: ir.Model, where: str) -> None:
    before = model.graph.opset_imports[""]
    if before < OPSET:
        from onnxscript.version_converter import convert_version  # half a second, for old files alone

        log = logging.getLogger("onnxscript.version_converter")
        level = log.level
        log.setLevel(logging.ERROR)  # it warns of the very fallback that is asked for
        reason = ""
        try:
            convert_version(model, OPSET, fallback=True)
        except Exception as error:  # the converter raises whatever its adapters meet
            reason = f": {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
        finally:
            log.setLevel(level)
        if model.graph.opset_imports[""] != OPSET:
            raise UnsupportedError(
                where, f"operator set {before} could not be converted to {OPSET}{reason}",
                fix=f"export it with opset {OPSET}",
            )  # fmt: skip
    model.ir_version = max(model.ir_version, IR_VERSION)


def _drop_traces(model: ir.Model) -> None:
    """Exporters note where in the user's source each op stood; of that only the module is kept."""
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
        node.doc_string = None
