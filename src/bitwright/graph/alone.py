"""A node as a model of its own, and what ONNX Runtime says of the node's outputs.

ONNX's shape inference knows ONNX's own operators only, and no branch that reads values around it. The runtime knows
its own operators too (`com.microsoft`), and it is what serves the network: an operator that it does not know has no
place in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from bitwright.errors import UnsupportedError, first_line
from bitwright.graph.captures import captured_values

#: Shape of a value: sizes, None for an open one; None alone where even the number of dimensions is open.
Sizes = Sequence[int | None] | None


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, each value once: its inputs, then what its branches take from the graph around them."""
    given = [value for value in node.inputs if value is not None]
    return list(dict.fromkeys((*given, *captured_values(node))))


def title(node: ir.Node) -> str:
    """Domain and op, as errors and logs call it.

    Example:
        >>> title(ir.Node("com.microsoft", "QuickGelu", [])), title(ir.Node("", "Relu", []))
        ('com.microsoft.QuickGelu', 'Relu')
    """
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def place(node: ir.Node) -> str:
    """A node, as errors call it: by its name, or by its output where it has none.

    Example:
        >>> place(ir.Node("", "Relu", [], name="/act/Relu"))
        "node '/act/Relu'"
        >>> place(ir.Node("", "Relu", [], outputs=[ir.Value(name="y")]))
        "the node of 'y'"
    """
    outputs = [output.name for output in node.outputs if output.name]
    return f"the node of {outputs[0]!r}" if outputs and not node.name else f"node {node.name!r}"


def alone(
    node: ir.Node, opsets: Mapping[str, int], ir_version: int, given: Mapping[str, tuple[ir.DataType, Sizes]],
    constants: Mapping[str, np.ndarray],
) -> bytes:  # fmt: skip
    """The model of one node: serialized, unchecked.

    Args:
        node: attributes and branches go into the model as they are.
        opsets: operator sets of the network that the node stands in.
        ir_version: that of the network.
        given: type and shape of each graph input.
        constants: what the node reads and that never changes.
    """
    domains = {**opsets, node.domain: opsets.get(node.domain, 1)}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)], "node",
        [onnx.helper.make_tensor_value_info(name, int(dtype), shape) for name, (dtype, shape) in given.items()],
        [onnx.ValueInfoProto(name=output.name) for output in node.outputs if output.name],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model: onnx.ModelProto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    data: bytes = model.SerializeToString()
    return data


def declared(model: bytes, where: str, what: str) -> dict[str, tuple[ir.DataType, Sizes]]:
    """Type and shape of each output of a model; the shape is None where the runtime cannot tell it.

    Args:
        model: serialized.
        where: what to call the model in errors.
        what: title of its op.

    Raises:
        UnsupportedError: the runtime knows no such op, or not of these types.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exceptions share no base class
        raise UnsupportedError(
            where, f"ONNX Runtime {ort.__version__} does not run {what}: {first_line(error)}", "an op that it knows",
            "export the network without this op",
        ) from error  # fmt: skip
    return {value.name: (_dtype(value.type), _shape(value.shape)) for value in session.get_outputs()}


def _shape(shape: Sequence[int | str | None]) -> Sizes:
    # The runtime says [] for a scalar and for an unknown number of dimensions.
    return [size if isinstance(size, int) else None for size in shape] or None


def _dtype(text: str) -> ir.DataType:
    """`tensor(float)` -> FLOAT; UNDEFINED for sequences and maps.

    Example:
        >>> _dtype("tensor(int64)"), _dtype("seq(tensor(float))")
        (INT64, UNDEFINED)
    """
    name = text.removeprefix("tensor(").removesuffix(")").upper()
    return ir.DataType[name] if text.startswith("tensor(") else ir.DataType.UNDEFINED
