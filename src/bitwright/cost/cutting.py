"""One region as a model of its own: cut out of a written file, codes in and codes out; or its float ops alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir

from bitwright.cost.workload import elements
from bitwright.deploy.names import codes_name
from bitwright.errors import InputError
from bitwright.graph.regions import Region
from bitwright.pipeline import State


def written_region(proto: onnx.ModelProto, region: Region, sites: Iterable[str], batch: int = 1) -> onnx.ModelProto:
    """The nodes between the codes that a region reads and those that it gives, with the constants that they unpack.

    Args:
        proto: a file whose regions compute on codes.
        region: of the network that was written; it runs in integers.
        sites: of the plan.
        batch: size of the first axis.

    Raises:
        InputError: a value whose size is open beyond the batch.
    """
    end = codes_name(region.output.name or "")
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    codes = {codes_name(site) for site in sites} - {end}
    entrances: dict[str, None] = {}
    waiting, inside, kept = [end], set(), {}
    while waiting:
        name = waiting.pop()
        if name in constants:
            kept[name] = constants[name]
        elif name in codes or name not in makers:
            entrances[name] = None
        elif name not in inside:
            inside.update(makers[name].output)
            waiting.extend(n for n in makers[name].input if n)
    nodes = [node for node in proto.graph.node if node.output[0] in inside]
    shape = _shape(region.inputs[0], batch)  # of the one value that a region with a weight reads
    inputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UINT8, shape) for n in entrances]
    outputs = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.UINT8, None)]
    graph = onnx.helper.make_graph(nodes, "region", inputs, outputs, list(kept.values()))
    return _model(graph, proto.opset_import, proto.ir_version)


def float_region(state: State, region: Region, batch: int = 1) -> onnx.ModelProto:
    """The float ops of a region.

    Raises:
        InputError: a value whose size is open beyond the batch.
    """
    made = {v for node in region.nodes for v in node.outputs}
    read = [v for node in region.nodes for v in node.inputs if v is not None and v not in made]
    constants = {v.name or "": state.tensor(v.name or "").numpy() for v in read if v.is_initializer()}
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in region.nodes], "region",
        [onnx.helper.make_tensor_value_info(v.name or "", float32, _shape(v, batch)) for v in region.inputs],
        [onnx.helper.make_tensor_value_info(region.output.name or "", float32, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in state.model.graph.opset_imports.items()]
    return _model(graph, opsets, state.model.ir_version or 10)


def signature(region: Region, cut: onnx.ModelProto, target: str, batch: int = 1) -> str:
    """What decides how long a region takes: its ops, their settings and the shapes; regions that agree are timed once.

    Args:
        region: of the network.
        cut: the region in a written file.
        target: that the file is for: it says how weights are packed.
        batch: size of the first axis.
    """
    constants = {tensor.name for tensor in cut.graph.initializer}
    computed, ops = set(constants), []
    for node in cut.graph.node:
        if all(name in computed for name in node.input if name):
            computed.update(node.output)
        else:
            ops.append(node.op_type)
    op, nodes = region.op, " ".join(node.op_type for node in region.nodes)
    settings = [f"{name}={op.attributes[name].value}" for name in sorted(op.attributes)]
    weight = "x".join(
        str(d) for d in (region.weight.shape if region.weight is not None and region.weight.shape else ())
    )
    read = "x".join(map(str, _shape(region.inputs[0], batch)))
    bias = "" if region.bias is None else " + bias"
    return f"{target}: {nodes} {read} as {' '.join(ops)}, weight {weight}{bias} {' '.join(settings)}".strip()


def _shape(value: ir.Value, batch: int) -> list[int]:
    """With the batch set; the first axis may hold several rows of each image.

    Raises:
        InputError: its size is open beyond the batch.
    """
    if value.shape is None or not len(value.shape):
        raise InputError(f"value {value.name!r}", "its shape is not known", "only the batch open", "give --shape")
    rest = [d for d in value.shape[1:] if isinstance(d, int)]
    return [elements(value) // max(1, math.prod(rest)) * batch, *rest]


def _model(graph: onnx.GraphProto, opsets: Sequence[onnx.OperatorSetIdProto], ir_version: int) -> onnx.ModelProto:
    model: onnx.ModelProto = onnx.helper.make_model(graph, opset_imports=list(opsets), ir_version=ir_version)
    return model
