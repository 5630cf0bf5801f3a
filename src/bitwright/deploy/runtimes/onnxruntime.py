"""ONNX Runtime on the CPU: run a file, and say which kernels it really uses."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from bitwright.execute.observe import run_session, session_of

#: Ops that only move data between layouts; how many the runtime inserts depends on what is probed.
LAYOUT_OPS = {"Transpose", "Reshape", "ReorderInput", "ReorderOutput", "Identity"}


class OnnxRuntime:
    """One file, loaded.

    Args:
        model: path of a file, or a serialized model.
        threads: threads within an op; 0 for one a core.
        outputs: names of what `run` returns; the graph's outputs if empty.
        precise: on processors without VNNI, use the slower kernels whose products do not saturate.
    """

    name = "onnxruntime"
    version = ort.__version__

    def __init__(
        self, model: str | Path | bytes, threads: int = 0, outputs: Sequence[str] = (), *, precise: bool = False
    ) -> None:
        self.where = "model" if isinstance(model, bytes) else str(model)
        self.session = session_of(model if isinstance(model, bytes) else str(model), threads, precise=precise)
        self.inputs = tuple(i.name for i in self.session.get_inputs())
        self.outputs = tuple(outputs) or tuple(o.name for o in self.session.get_outputs())
        self.shapes = {
            i.name: tuple(d if isinstance(d, int) else None for d in i.shape) for i in self.session.get_inputs()
        }
        self.types = {i.name: str(i.type) for i in self.session.get_inputs()}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named inputs to named outputs."""
        feeds = {name: inputs[name] for name in self.inputs}
        found = run_session(self.session, self.outputs, feeds, self.where)
        return dict(zip(self.outputs, found, strict=True))

    @staticmethod
    def saturates() -> bool:
        """Whether products saturate in pairs here."""
        return products_saturate()


def kernels(model: str | Path | bytes, *, precise: bool = False, without: Sequence[str] = ()) -> dict[str, int]:
    """How many nodes of each op the runtime executes after its own optimisations, layout moves left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimised.onnx")
        session_of(
            model if isinstance(model, bytes) else str(model), 1, optimised_path=path, precise=precise, without=without
        )
        graph = onnx.load(path, load_external_data=False).graph
    # The channels-last form of a kernel computes the same; which one is taken is a matter of layout too.
    counted = Counter(node.op_type.removeprefix("Nhwc") for node in graph.node if node.op_type not in LAYOUT_OPS)
    return dict(sorted(counted.items()))


def computing_kernels(model: str | Path | bytes, *, precise: bool = False) -> dict[str, int]:
    """`kernels` that compute, counted so that reading a value out does not change the number.

    A value that is read out keeps a node of its own, where otherwise two equal nodes become one, and a pair of
    QuantizeLinear and DequantizeLinear may move past a pool or a transpose; neither changes what is computed.
    """
    found = kernels(model, precise=precise, without=["CommonSubexpressionElimination"])
    return {op: n for op, n in found.items() if op not in ("QuantizeLinear", "DequantizeLinear")}


@cache
def products_saturate() -> bool:
    """Whether this machine's kernels add pairs of products in int16 and saturate there (x86-64 without VNNI).

    Found by experiment: 64 products of 255 and 127 are summed, once by the usual kernel. Exact is 64 * 255 * 127 =
    2,072,640; saturated pairs give 32 * 32,767.
    """
    weight = np.full((8, 64, 1, 1), 127, dtype=np.int8)
    one, zero8, zero = np.float32(1), np.int8(0), np.uint8(0)
    scale = np.float32(64 * 255 * 127 / 255)
    constants = {"w": weight, "one": one, "z8": zero8, "z": zero, "s": scale}
    node = onnx.helper.make_node("QLinearConv", ["x", "one", "z", "w", "one", "z8", "s", "z"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "saturation",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 64, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [1, 8, 4, 4])],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    served = OnnxRuntime(model.SerializeToString()).run({"x": np.full((1, 64, 4, 4), 255, dtype=np.uint8)})["y"]
    return int(served.min()) < 255
