"""Small graphs, written as nodes, and the reference networks that have every pattern of placement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.pipeline import State
from bitwright.ptq.fold_batchnorm import FoldBatchNorm

Nodes = Sequence[tuple[Any, ...]]


def _network(
    nodes: Nodes, constants: Mapping[str, tuple[int, ...] | np.ndarray], outputs: Sequence[str] = ("y",),
    inputs: Mapping[str, Sequence[int | str]] | None = None,
) -> ir.Model:  # fmt: skip
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value
        for name, value in constants.items()
    }
    made = [
        helper.make_node(op, reads.split(), gives.split(), name=gives.split()[0], **(settings[0] if settings else {}))
        for op, reads, gives, *settings in nodes
    ]
    graph = helper.make_graph(
        made, "network",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": ["N", 3, 8, 8]}).items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    return normalise(
        ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    )


@pytest.fixture(scope="session")
def network() -> Callable[..., ir.Model]:
    """`network([("Conv", "x c.weight", "y", {...})], {"c.weight": (4, 3, 3, 3)})`, normalised.

    A node is op, inputs, outputs, attributes, and is called after its first output; a constant is an array, or the
    shape of random numbers; the input is `x [N, 3, 8, 8]` and the output `y`, if nothing else is given.
    """
    return _network


@pytest.fixture(scope="session")
def folded(exported: Callable[[str], Path]) -> Callable[[str | Path], ir.Model]:
    """`folded(name or path)`: a reference network or a file, batch norm folded; do not change it."""

    @cache
    def found(source: str | Path) -> ir.Model:
        model = normalise(open_model(source if isinstance(source, Path) else exported(source)))
        return FoldBatchNorm()(State(model=model, reference=model)).model

    return found
