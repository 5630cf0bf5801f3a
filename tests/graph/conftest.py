"""Small ONNX files of any operator set, and the runtime that says what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.graph.normalise import normalise

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, Sequence[int | str | None]]


def _serve(model: ir.Model | onnx.ModelProto | bytes, inputs: Arrays) -> list[np.ndarray]:
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


@pytest.fixture
def serve() -> Callable[..., list[np.ndarray]]:
    """`serve(model, inputs)`: what ONNX Runtime gives."""
    return _serve


@pytest.fixture
def make() -> Callable[..., onnx.ModelProto]:
    """`make(nodes, inputs, outputs, constants)`: a checked file; `ir_version` and `listed` for old ones."""

    def build(
        nodes: Sequence[onnx.NodeProto], inputs: Shapes, outputs: Shapes, constants: Arrays | None = None, *,
        opset: int = 21, ir_version: int = 10, listed: bool = False, dtype: int = TensorProto.FLOAT,
        opsets: Mapping[str, int] | None = None, functions: Sequence[Any] = (), check: bool = True,
    ) -> onnx.ModelProto:  # fmt: skip
        tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
        given = [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()]
        if listed:  # up to IR version 3 constants are inputs with a default
            given += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
        found = [helper.make_tensor_value_info(n, dtype, s) for n, s in outputs.items()]
        imports = [helper.make_opsetid(d, v) for d, v in ({"": opset} | dict(opsets or {})).items()]
        graph = helper.make_graph(list(nodes), "network", given, found, tensors)
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))
        if check:
            onnx.checker.check_model(model)
        return model

    return build


@pytest.fixture
def normal() -> Callable[..., np.ndarray]:
    """`normal(3, 4)`: normal float32 numbers, other ones at each call."""
    generator = np.random.default_rng(3)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)


@pytest.fixture
def normalised() -> Callable[..., ir.Model]:
    """`normalised(proto, *inputs)`: checked, complete, and in the runtime the same function of these inputs.

    The tolerance is 1e-4 of the largest value, `tolerance` for files in half precision; shapes and types of all values
    are known but for the batch.
    """

    def check(
        proto: onnx.ModelProto | ir.Model, *inputs: Arrays, shapes: Any = None, tolerance: float = 1e-4
    ) -> ir.Model:
        model = normalise(ir.from_proto(proto) if isinstance(proto, onnx.ModelProto) else proto, shapes)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        for node in model.graph:
            for value in node.outputs:
                assert value.dtype is not None and value.shape is not None, value
                assert all(isinstance(size, int) or str(size.value).endswith("batch") for size in value.shape), value
        for arrays in inputs:
            wide = {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in arrays.items()}
            for found, expected in zip(_serve(model, wide), _serve(proto, arrays), strict=True):
                assert found.shape == expected.shape
                expected = expected.astype(found.dtype)
                assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
        return model

    return check
