"""Float graphs with quantizers in them: run in ONNX Runtime as they stand, beside our own simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from bitwright.deploy.qonnx import DOMAIN
from bitwright.deploy.writer import to_onnx
from bitwright.execute.program import build as program
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.plan.encoding import Encoding
from bitwright.targets import TARGETS


def constants_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _spelled_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """QONNX's nodes as its documentation defines them: divide, add zero point, clamp, round, and back."""
    known, nodes = constants_of(proto), []
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        x, scale = node.input[:2]
        y = node.output[0]

        def constant(name: str, value: float, y: str = y) -> str:
            proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{y}~{name}"))
            return f"{y}~{name}"

        if node.op_type == "BipolarQuant":
            steps = [
                ("GreaterOrEqual", [x, constant("zero", 0)], f"{y}~right"),
                ("Where", [f"{y}~right", constant("one", 1), constant("minus", -1)], f"{y}~sign"),
                ("Mul", [f"{y}~sign", scale], y),
            ]
        else:
            said, bits = attributes_of(node), int(known[node.input[3]])
            assert node.op_type == "Quant" and said["rounding_mode"] == b"ROUND"
            high = 2 ** (bits - said["signed"]) - 1
            low = -(2 ** (bits - 1)) + said["narrow"] if said["signed"] else 0
            steps = [
                ("Div", [x, scale], f"{y}~quotient"),
                ("Add", [f"{y}~quotient", node.input[2]], f"{y}~moved"),
                ("Clip", [f"{y}~moved", constant("low", low), constant("high", high)], f"{y}~within"),
                ("Round", [f"{y}~within"], f"{y}~code"),
                ("Sub", [f"{y}~code", node.input[2]], f"{y}~centred"),
                ("Mul", [f"{y}~centred", scale], y),
            ]
        nodes += [helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@dataclass(frozen=True, kw_only=True, eq=False)
class Emulated:
    """A file run as a float graph.

    Attributes:
        proto: the file as it was written.
        values: `{name: array}` of every value in the graph.
        constants: of the file.
        output: of the graph.
        quantized: `{site: (value that enters its quantizer, value that leaves it, encoding, simulated value)}`.
        simulated: output of our own program.
    """

    proto: onnx.ModelProto
    values: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    output: np.ndarray
    quantized: Mapping[str, tuple[np.ndarray, np.ndarray, Encoding, np.ndarray]]
    simulated: np.ndarray

    def codes(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        """Whole steps from zero, in the file and in simulation."""
        _, left, encoding, ours = self.quantized[site]
        scale = encoding.scale.double().numpy()
        first, second = (np.rint(a.astype(np.float64) / scale) for a in (left, ours))
        return first, second

    def untouched(self) -> np.ndarray:
        """`[images]`: no code of the image differs from simulation."""
        same = np.ones(len(self.output), dtype=bool)
        for site in self.quantized:
            file, ours = self.codes(site)
            same &= (file == ours).reshape(len(same), -1).all(1)  # tokens of an image stand together
        return same

    def differing(self) -> float:
        """Share of all codes that differ from simulation."""
        pairs = [self.codes(site) for site in self.quantized]
        return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)


def _emulate(state: State, images: np.ndarray) -> Emulated:
    assert state.plan is not None
    written = ir.to_proto(to_onnx(state))
    proto = onnx.ModelProto.FromString(written.SerializeToString())
    known = constants_of(proto)
    entered = {}  # value that leaves a quantizer: the one that enters it
    for node in proto.graph.node:
        if node.op_type in ("Quant", "QuantizeLinear") and node.input[0] not in known:
            left = node.output[0]
            if node.op_type == "QuantizeLinear":
                (left,) = (n.output[0] for n in proto.graph.node if node.output[0] in n.input)
            entered[left] = node.input[0]
    spelled = _spelled_out(onnx.ModelProto.FromString(written.SerializeToString()))
    names = [o for n in proto.graph.node for o in n.output if o]
    ends = {o.name for o in spelled.graph.output}
    kinds = {v.name: v.type.tensor_type.elem_type for v in spelled.graph.value_info}
    for name in names:
        if name not in ends:
            kind = kinds.get(name, onnx.TensorProto.FLOAT)
            spelled.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # constants that the spelled-out nodes no longer read
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else pairs become integer kernels
    session = ort.InferenceSession(spelled.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: images}
    wanted = [o.name for o in session.get_outputs()]
    values = dict(zip(wanted, session.run(None, feeds), strict=True)) | feeds
    # A node that only rounds is a part of the quantizer behind it.
    entered = {left: entered.get(before, before) for left, before in entered.items() if not left.endswith("/rounded")}
    sites = {left: left.removesuffix("/real") for left in entered}
    rules = integer_regions(state.model, state.plan, TARGETS[state.plan.target].load())
    first = state.model.graph.outputs[0].name or ""
    inner = [site for left, site in sites.items() if left == site]  # what float ops give they read unquantized
    whole = program(
        state.model, state.overlay, mode="simulated", plan=state.plan, encodings=state.encodings, integer=list(rules),
        outputs=[first, *inner],
    )  # fmt: skip
    with torch.no_grad():
        ours = dict(zip([first, *inner], whole.module(torch.from_numpy(images)), strict=True))
    quantized = {}
    for left, site in sites.items():
        encoding, real = state.encoding(site), values[entered[left]]
        simulated = ours[site] if left == site else encoding.fake_quantize(torch.from_numpy(real))
        quantized[site] = (real, values[left], encoding, simulated.numpy())
    return Emulated(
        proto=proto, values=values, constants=known, output=values[first], quantized=quantized,
        simulated=ours[first].numpy(),
    )  # fmt: skip


@pytest.fixture(scope="session")
def emulate() -> Callable[[State, np.ndarray], Emulated]:
    """`emulate(state, images)`: the written file, run as the float graph that it is, beside our simulation."""
    return _emulate
