"""The `light` networks of the onnx package: nine known architectures whose files have no weights.

Their weights are one number repeated (ConstantOfShape of 0.02; a few statistics of ShuffleNet are trained ones), so
that the files are small. Such a network tells nothing about rounding: all channels are equal. Here the structure is
kept and each weight drawn.

Source: `onnx.backend.test`, data/light; He et al., "Delving Deep into Rectifiers", ICCV 2015, for the scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bitwright.errors import InputError
from bitwright.lookup import did_you_mean

#: Files of the onnx package, the smallest number of weights first.
LIGHT = (
    "squeezenet", "shufflenet", "inception_v1", "densenet121", "inception_v2", "resnet50", "bvlc_alexnet", "zfnet512",
    "vgg19",
)  # fmt: skip
#: Ops that weights pass before they are read.
THROUGH = ("Unsqueeze", "Reshape")


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network `light_{name}.onnx` with seeded weights; batch 1, inputs of `[1, 3, 224, 224]`.

        weight ~ N(0, 2 / fan_in), N(0, 1 / fan_in) where no ReLU has halved the input's power
        gamma, var, what multiplies alone ~ U(0.8, 1.2); gamma before a sum ~ U(0.4, 0.6)
        bias, beta, mean, what is added alone ~ N(0, 0.01)

    so that the signal neither vanishes nor grows much from layer to layer.

    Raises:
        InputError: there is no network of this name.

    Example:
        >>> model = light_model("squeezenet")
        >>> len(model.graph.initializer), model.graph.input[0].name
        (52, 'data_0')
    """
    if name not in LIGHT:
        raise InputError(f"light network {name!r}", "does not exist", ", ".join(LIGHT), did_you_mean(name, LIGHT))
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    model = onnx.load(path)
    graph = model.graph
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    filled = {n.output[0]: given[n.input[0]].tolist() for n in graph.node if n.op_type == "ConstantOfShape"}
    filled |= {value: list(array.shape) for value, array in given.items() if array.dtype == np.float32}
    kept = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    roles = _roles(kept)
    draw = np.random.default_rng(seed)
    weights = {value: _drawn(draw, roles[value], shape) for value, shape in filled.items() if value in roles}
    constants = {value: array for value, array in {**given, **weights}.items() if value in roles}
    inputs = [value for value in graph.input if value.name not in given]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, value) for value, array in constants.items())
    graph.input.extend(inputs)
    model.ir_version = 4  # before, initializers had to be inputs too
    return model


def _roles(nodes: list[onnx.NodeProto]) -> Mapping[str, str]:
    """What each value is to the op that reads it, be it in another shape."""
    makers = {value: node.op_type for node in nodes for value in node.output}
    summed = {value for node in nodes if node.op_type == "Sum" for value in node.input}
    roles: dict[str, str] = {}
    for node in nodes:
        for i, value in enumerate(node.input):
            roles[value] = f"{node.op_type} {i}"
        if node.op_type == "BatchNormalization" and node.output[0] in summed:
            roles[node.input[1]] = "residual gamma"
        if node.op_type == "Conv" and makers.get(node.input[0]) == "BatchNormalization":
            roles[node.input[1]] = "linear Conv 1"
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            roles[node.input[1]] = "transposed Gemm 1"
    return {**roles, **{node.input[0]: roles[node.output[0]] for node in nodes if node.op_type in THROUGH}}


def _drawn(draw: np.random.Generator, role: str, shape: list[int]) -> np.ndarray:
    if role.endswith(("Conv 1", "Gemm 1")):
        fan_in = {"Gemm 1": shape[0], "transposed Gemm 1": shape[-1]}.get(role, int(np.prod(shape[1:])))
        gain = 1 if role.startswith("linear") else 2
        return draw.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(gain / fan_in))
    if role in ("BatchNormalization 1", "BatchNormalization 4", "Mul 1"):
        return draw.uniform(0.8, 1.2, shape).astype(np.float32)
    if role == "residual gamma":
        return draw.uniform(0.4, 0.6, shape).astype(np.float32)
    if role in ("Conv 2", "Gemm 2", "BatchNormalization 2", "BatchNormalization 3", "Add 1"):
        return draw.standard_normal(shape, dtype=np.float32) * np.float32(0.1)
    raise KeyError(f"{role}: no weight of this role is known")
