"""Small networks on their way to integers, placed and calibrated."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.data.opening import open_data
from bitwright.graph.normalise import normalise
from bitwright.pipeline import State, run_chain
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place
from bitwright.verbs.preparing import float_network

TARGET = "onnxruntime-x64-avx2"


@pytest.fixture(scope="session")
def placed(exported: Callable[[str], Path]) -> Callable[..., State]:
    """`placed("small_residual", "W=4,A=4", target=...)`: a state with a plan; each is made once."""

    @cache
    def found(name: str, *settings: str, target: str = TARGET, ends: int = 8) -> State:
        network = float_network(name if name.endswith(".onnx") else exported(name))
        state = State(model=network, reference=network)
        return run_chain([FoldBatchNorm(), Place(target=target, set=settings, ends=ends)], state, None)

    return found


@pytest.fixture(scope="session")
def calibrated(placed: Callable[..., State]) -> Callable[..., State]:
    """`calibrated("small_residual", "W=4,A=4", target=...)`: a state with a plan and encodings; each is made once."""

    @cache
    def found(name: str, *settings: str, target: str = TARGET) -> State:
        state = placed(name, *settings, target=target)
        shape = tuple(d if isinstance(d, int) else None for d in state.model.graph.inputs[0].shape or ())
        x = np.random.default_rng(0).standard_normal((4, *(d for d in shape[1:] if d is not None))).astype(np.float32)
        name_of_input = state.model.graph.inputs[0].name or ""
        batches = open_data({name_of_input: x}, {name_of_input: (shape, "float32")}, batch_size=4)
        return run_chain([Calibrate()], state, batches)

    return found


@pytest.fixture(scope="session")
def residual() -> State:
    """Two 1x1 convolutions and a sum on `x [N, 4, 2, 2]`: `h = relu(a(x))`, `y = h + b(h)`, flattened; a: 4 -> 8."""
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((8, n, 1, 1)).astype(np.float32) for n in (4, 8))
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["c"], name="a"),
        helper.make_node("Relu", ["c"], ["h"], name="relu"),
        helper.make_node("Conv", ["h", "b"], ["d"], name="b"),
        helper.make_node("Add", ["h", "d"], ["s"], name="sum"),
        helper.make_node("Flatten", ["s"], ["y"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for w, n in ((a, "a"), (b, "b"))],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    model = normalise(model)
    state = State(model=model, reference=model)
    return run_chain([FoldBatchNorm(), Place(target=TARGET, set=("h:A=4",))], state, None)
