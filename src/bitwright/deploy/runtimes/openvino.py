"""OpenVINO on the CPU: run a file, and say which layers it really executes, in what precision.

Imported only where it is asked for: it is an extra of the package. Inference is in float32, so that what stays in
float is not computed in bfloat16 on processors that have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bitwright.errors import InputError, first_line

#: Layers that hold, copy or re-lay out values; how many there are depends on what is read out.
LAYOUT_LAYERS = {"Const", "Input", "Output", "Reorder", "Reshape", "Transpose", "Convert"}
#: OpenVINO's names of types, by ONNX's.
TYPES = {"f32": "tensor(float)", "u8": "tensor(uint8)", "i8": "tensor(int8)", "i64": "tensor(int64)"}


def _version() -> str:
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return ""


def _openvino() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            "runtime 'openvino'", "is not installed", "the package openvino", 'pip install "bitwright[openvino]"'
        ) from error
    return openvino


def _compiled(model: str | Path | bytes, threads: int) -> Any:
    where = "model" if isinstance(model, bytes) else str(model)
    core = _openvino().Core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(core.read_model(model), "CPU", settings)
    except Exception as error:  # the runtime's own exceptions share no base class with others
        raise InputError(
            where, f"OpenVINO {_version()} cannot load it: {first_line(error)}", "a network that it runs",
            "run it in onnxruntime",
        ) from error  # fmt: skip


class OpenVino:
    """One file, compiled.

    Args:
        model: path of a file, or a serialized model.
        threads: threads within an op; 0 for one a core.
        outputs: names of what `run` returns; the graph's outputs if empty.
    """

    name = "openvino"
    version = _version()

    def __init__(self, model: str | Path | bytes, threads: int = 0, outputs: Sequence[str] = ()) -> None:
        self.where = "model" if isinstance(model, bytes) else str(model)
        self.compiled = _compiled(model, threads)
        self.request = self.compiled.create_infer_request()
        self.inputs = tuple(port.get_any_name() for port in self.compiled.inputs)
        shapes = {port.get_any_name(): port.get_partial_shape() for port in self.compiled.inputs}
        self.shapes = {
            name: tuple(int(d.get_length()) if d.is_static else None for d in shape) for name, shape in shapes.items()
        }
        self.types = {
            port.get_any_name(): TYPES.get(port.get_element_type().get_type_name(), str(port.get_element_type()))
            for port in self.compiled.inputs
        }
        names = {name: i for i, port in enumerate(self.compiled.outputs) for name in port.get_names()}
        self.outputs = tuple(outputs) or tuple(port.get_any_name() for port in self.compiled.outputs)
        self.places = {name: names[name] for name in self.outputs}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named inputs to named outputs.

        Raises:
            InputError: the runtime stops, as at a size that a node does not take.
        """
        feeds = {name: np.ascontiguousarray(inputs[name]) for name in self.inputs}
        try:
            self.request.infer(feeds, share_inputs=True)
        except Exception as error:  # the runtime's own exceptions share no base class with others
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(
                self.where, f"OpenVINO {self.version} cannot run it: {first_line(error)}",
                f"a network that takes {shapes}", "if it was exported for one batch size, give --batch",
            ) from error  # fmt: skip
        return {name: self.request.get_output_tensor(i).data.copy() for name, i in self.places.items()}

    def layers(self) -> list[Layer]:
        """The layers that the runtime executes, in order; what only holds or re-lays out values is left out."""
        found = []
        for op in self.compiled.get_runtime_model().get_ordered_ops():
            facts = {key: str(value.astype(str)) for key, value in op.get_rt_info().items()}
            layer = Layer(
                type=facts.get("layerType", ""), precision=facts.get("runtimePrecision", ""),
                names=tuple(filter(None, facts.get("originalLayersNames", "").split(","))),
            )  # fmt: skip
            if layer.type not in LAYOUT_LAYERS:
                found.append(layer)
        return found

    @staticmethod
    def saturates() -> bool:
        """Whether products saturate in pairs here."""
        return products_saturate()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the runtime executes as one.

    Attributes:
        type: its own name of the kind, "Convolution", "Eltwise" ...
        precision: of what it reads, "u8", "f32" ...
        names: nodes of the file that it stands for, in order; some are the runtime's own.
    """

    type: str
    precision: str
    names: tuple[str, ...]


def counted(layers: Sequence[Layer]) -> dict[str, int]:
    """How many layers of each kind and precision."""
    return dict(sorted(Counter(f"{layer.type} {layer.precision}" for layer in layers).items()))


@cache
def products_saturate() -> bool:
    """Whether this machine's kernels add pairs of products in int16 and saturate there (x86-64 without VNNI).

    Found by experiment, as for ONNX Runtime: 64 products of 255 and 127 are summed.
    """
    weight = np.full((8, 64, 1, 1), 127, dtype=np.int8)
    scale = np.float32(64 * 127)
    constants = {
        "w": weight, "ones": np.ones(8, dtype=np.float32), "zeros": np.zeros(8, dtype=np.int8),
        "one": np.float32(1), "s": scale, "z": np.uint8(0),
    }  # fmt: skip
    make = onnx.helper.make_node
    nodes = [
        make("DequantizeLinear", ["w", "ones", "zeros"], ["wr"], axis=0),
        make("QuantizeLinear", ["x", "one", "z"], ["q"]), make("DequantizeLinear", ["q", "one", "z"], ["r"]),
        make("Conv", ["r", "wr"], ["c"]), make("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        make("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "saturation",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 64, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 4, 4])],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    x = np.full((1, 64, 4, 4), 255, dtype=np.float32)
    served = OpenVino(model.SerializeToString()).run({"x": x})["y"]
    return float(served.min()) < 254.5 * float(scale)
