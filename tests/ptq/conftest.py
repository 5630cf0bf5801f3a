"""Small graphs, written as nodes, on their way to integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.graph.normalise import normalise
from bitwright.pipeline import State, run_chain
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place

Arrays = Mapping[str, np.ndarray]


def _folded(
    nodes: Sequence[tuple[Any, ...]], constants: Arrays, shape: Sequence[int], outputs: Sequence[str] = ("y",)
) -> State:
    made = [
        helper.make_node(op, reads.split(), [gives], name=gives, **(attributes[0] if attributes else {}))
        for op, reads, gives, *attributes in nodes
    ]
    graph = helper.make_graph(
        made, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    model = normalise(model)
    return run_chain([FoldBatchNorm()], State(model=model, reference=model), None)


def _placed(
    nodes: Sequence[tuple[Any, ...]], constants: Arrays, shape: Sequence[int], *settings: str,
    outputs: Sequence[str] = ("y",), **place: Any,
) -> State:  # fmt: skip
    return run_chain([Place(set=settings, **place)], _folded(nodes, constants, shape, outputs), None)


@pytest.fixture(scope="session")
def folded() -> Callable[..., State]:
    """`folded([("Conv", "x w", "y", {...})], {"w": array}, (3, 8, 8))`: a state without a plan."""
    return _folded


@pytest.fixture(scope="session")
def placed() -> Callable[..., State]:
    """`placed([("Conv", "x w", "y", {...})], {"w": array}, (3, 8, 8), "W=4")`: a state with a plan.

    A node is op, inputs, output, attributes, and is called after its output; the input is `x [N, *shape]`.
    """
    return _placed


@pytest.fixture(scope="session")
def batches_of() -> Callable[..., Batches]:
    """`batches_of(state, x, batch=2)`: rows of an array for the input `x`."""

    def make(state: State, x: np.ndarray, batch: int = 2) -> Batches:
        shape = tuple(d if isinstance(d, int) else None for d in state.model.graph.inputs[0].shape or ())
        return open_data({"x": x}, {"x": (shape, "float32")}, batch_size=batch)

    return make
