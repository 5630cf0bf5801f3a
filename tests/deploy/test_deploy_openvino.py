"""OpenVINO: what is simulated is what it serves, in an arithmetic of its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import bitwright as bw
from bitwright.deploy.reader import read
from bitwright.deploy.runtimes.openvino import OpenVino, products_saturate
from bitwright.deploy.verify import Verification, verify
from bitwright.deploy.writer import write
from bitwright.errors import GoalError
from bitwright.execute.integer import arithmetic_of
from bitwright.execute.kernels.sums import Sum
from bitwright.graph.regions import Region
from bitwright.models import build
from bitwright.pipeline import State
from bitwright.placement.place import integer_regions
from bitwright.targets import TARGETS
from bitwright.verbs.preparing import data_for
from bitwright.verbs.terminal import Terminal

pytest.importorskip("openvino", reason='OpenVINO is not installed: pip install "bitwright[openvino]"')

SHARED = Path(__file__).parents[2].parent / "shared"
ASSETS = Path(__file__).parents[1] / "assets"
TARGET = "openvino-cpu-avx2"
#: Small networks of `models`; the others are like these, and take long to export.
SMALL = ("inverted_residual", "shuffle")
OTHERS = ("residual", "inception", "dense", "squeeze_excite", "unet", "conv_transpose")
GENERATOR = np.random.default_rng(1)
SHAPE = (6, 9, 11)

Model = Callable[[], ir.Model]


def proof(state: State, data: dict[str, np.ndarray], folder: Path, **settings: Any) -> Verification:
    path = folder / "model.onnx"
    write(state, path)
    batch = settings.pop("batch", 32)
    return verify(path, data_for(state.model, data, Terminal(), batch=batch), threads=1, **settings)


def random_images(*shape: int, count: int = 24) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal((count, *shape)).astype(np.float32)}


# --- whole networks


@pytest.mark.parametrize("widths", ["A=8", "W=4,A=4"])
@pytest.mark.parametrize("batch, threads", [(1, 1), (16, 2)])
def test_digits(widths: str, batch: int, threads: int, tmp_path: Path) -> None:
    network = bw.quantize(ASSETS / "digits.onnx", ASSETS / "digits_calib.npz", target=TARGET, set=[widths])
    found = network.verify(ASSETS / "digits.npz", batch=batch, limit=64, threads=threads)
    assert found.mismatches == 0, found.by_tensor
    assert found.proven and found.images == 64 and found.tensors >= 10
    assert found.runtime.startswith("openvino ") and found.processor


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_small_network(name: str, exported: Callable[[str], Path]) -> None:
    data = random_images(*build(f"small_{name}").input_shape)
    quantized = bw.quantize(exported(f"small_{name}"), data, target=TARGET)
    found = quantized.verify(data, batch=12)
    assert found.mismatches == 0, found.by_tensor
    assert found.proven
    assert quantized.integer_mac_share() >= 0.99


@pytest.mark.real_data
def test_resnet20() -> None:
    cifar = SHARED / "data" / "cifar10"
    model = SHARED / "data" / "models" / "resnet20_cifar10.onnx"
    quantized = bw.quantize(model, cifar / "calib", target=TARGET, limit=64)
    found = quantized.verify(cifar / "dev", limit=16)
    assert found.mismatches == 0, found.by_tensor
    assert found.proven and quantized.integer_mac_share() == 1.0
    assert sum(n for kind, n in found.kernels.items() if kind == "Convolution u8") == 19


@pytest.mark.parametrize(
    "name", ["sum", "sum of two convolutions", "sum with a mean", "gemm", "conv 1x1 with strides"]
)
def test_the_file_as_it_is_gives_what_is_simulated(name: str, tmp_path: Path) -> None:
    """Nothing is read out here: outputs of the whole file against the whole simulation."""
    data = random_images(*SHAPE, count=64)
    quantized = bw.quantize(FORMULAS[name](), data, target=TARGET)
    quantized.save(tmp_path / "model.onnx")
    served = OpenVino(tmp_path / "model.onnx").run(data)["y"]
    with torch.no_grad():
        (simulated,) = quantized.torch("integer")(torch.from_numpy(data["x"]))
    np.testing.assert_allclose(served, simulated.numpy(), rtol=0, atol=1e-6 * np.abs(served).max())


def test_a_file_for_the_other_runtime_is_proven_here_too(tmp_path: Path) -> None:
    """The formulas are those of the runtime that serves, whatever target the file was made for."""
    quantized = bw.quantize(ASSETS / "digits.onnx", ASSETS / "digits_calib.npz", target="onnxruntime-x64-avx2")
    quantized.save(tmp_path / "model.onnx")
    batches = data_for(quantized.state.model, ASSETS / "digits.npz", Terminal(), limit=32)
    found = verify(tmp_path / "model.onnx", batches, runtime="openvino")
    assert found.proven and found.runtime.startswith("openvino")


@pytest.mark.parametrize("setting", ["W=2", "W=3", "W=4", "W=5", "W=6", "W=7", "W=binary", "W=log2-4"])
def test_weights_of_every_width_run_as_int8(setting: str, tmp_path: Path) -> None:
    data = random_images(*SHAPE)
    quantized = bw.quantize(FORMULAS["depthwise"](), data, target=TARGET, set=[setting], ends=0)
    found = proof(quantized.state, data, tmp_path)
    assert found.mismatches == 0 and found.float_kernels == {} and found.proven


# --- formulas, at scales that put results on the middle between two codes


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((GENERATOR.standard_normal(shape) * 0.3).astype(np.float32), name)


def network(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], shape: tuple[int, ...] = SHAPE
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


class Graph:
    """Nodes and constants, written down as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def conv(self, x: str, y: str, channels: int = 6, k: int = 3, bias: bool = True, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        self.constants.append(constant(f"{y}.w", channels, 6 // group, k, k))
        if bias:
            self.constants.append(constant(f"{y}.b", channels))
        inputs = [x, f"{y}.w", *([f"{y}.b"] if bias else [])]
        return self.op("Conv", inputs, y, **{"pads": [k // 2] * 4} | attributes)

    def relu(self, x: str, y: str) -> str:
        return self.op("Relu", [x], y)

    def last(self, x: str) -> ir.Model:
        """A convolution at the end, so that what comes before it stays in codes."""
        self.conv(x, "y", 4, 1)
        return network(self.nodes, self.constants)


def convolution(bias: bool, relu: bool, k: int = 3, group: int = 1) -> Model:
    def made() -> ir.Model:
        g = Graph()
        h = g.conv(g.relu(g.conv("x", "a"), "ar"), "b", 6, k, bias, group=group)
        return g.last(g.relu(h, "br") if relu else h)

    return made


def gemm(bias: bool) -> Model:
    def made() -> ir.Model:
        g = Graph()
        g.op("GlobalAveragePool", [g.conv("x", "a")], "p")
        g.op("Flatten", ["p"], "f")
        g.constants += [constant("g.w", 7, 6), constant("h.w", 5, 7)] + ([constant("g.b", 7)] if bias else [])
        g.op("Gemm", ["f", "g.w", *(["g.b"] if bias else [])], "g", transB=1)
        g.op("Gemm", ["g", "h.w"], "y", transB=1)
        return network(g.nodes, g.constants)

    return made


def residual(*, relu: bool = True, order: int = 0, again: str = "", point: bool = False) -> Model:
    """`s = conv(relu(conv(a))) + a`; `again` names what is read a second time, after the sum."""

    def made() -> ir.Model:
        g = Graph()
        a = g.conv("x", "a")
        a = g.relu(a, "ar") if relu else a
        if point:
            a = g.op("GlobalAveragePool", [a], "pooled")
        b = g.conv(g.relu(g.conv(a, "h"), "hr"), "b")
        s = g.op("Add", [b, a] if order == 0 else [a, b], "s")
        s = g.relu(s, "sr") if relu else s
        if again:
            s = g.op("Add", [g.conv(s, "t"), {"a": a, "b": b}[again]], "u")
        return g.last(s)

    return made


def two_branches(order: int = 0) -> Model:
    def made() -> ir.Model:
        g = Graph()
        a = g.relu(g.conv("x", "a"), "ar")
        pair = [g.conv(a, "b"), g.conv(a, "c", 6, 1)]
        return g.last(g.relu(g.op("Add", pair[:: 1 - 2 * order], "s"), "sr"))

    return made


def moved(op: str) -> Model:
    """A sum of a convolution and of codes that were moved on their way."""

    def made() -> ir.Model:
        g = Graph()
        a = g.relu(g.conv("x", "a"), "ar")
        g.constants.append(numpy_helper.from_array(np.array([0, 3, 1, 2], np.int64), "perm"))
        if op == "MaxPool":
            m = g.op(op, [a], "m", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        else:
            m = g.op("AveragePool", [a], "m", kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        return g.last(g.op("Add", [m, g.conv(a, "b")], "s"))

    return made


def strided_points() -> ir.Model:
    """1x1 convolutions with strides of a value that others read, and of one that nothing else reads; 8 channels."""
    g = Graph()
    g.constants += [constant("d.w", 5, 8, 1, 1), constant("d.b", 5), constant("e.w", 5, 5, 1, 1), constant("e.b", 5)]
    a = g.relu(g.conv("x", "a", 8), "ar")
    d = g.op("Conv", [a, "d.w", "d.b"], "d", strides=[2, 2])
    e = g.op("Conv", [d, "e.w", "e.b"], "e", strides=[2, 1])
    g.op("GlobalAveragePool", [a], "p")
    g.constants += [constant("f.w", 5, 8, 1, 1), constant("f.b", 5), constant("y.w", 4, 5, 1, 1)]
    g.op("Conv", ["p", "f.w", "f.b"], "f")
    g.op("GlobalAveragePool", [e], "q")
    g.op("Add", ["f", "q"], "s")
    g.op("Conv", ["s", "y.w"], "y")
    return network(g.nodes, g.constants)


def pool(op: str, **attributes: Any) -> Model:
    def made() -> ir.Model:
        g = Graph()
        return g.last(g.op(op, [g.conv("x", "a")], "p", **attributes))

    return made


FORMULAS: dict[str, Model] = {
    "conv": convolution(bias=True, relu=True),
    "conv, zero point": convolution(bias=True, relu=False),
    "conv without bias": convolution(bias=False, relu=True),
    "conv without bias, zero point": convolution(bias=False, relu=False),
    "conv 1x1": convolution(bias=True, relu=True, k=1),
    "depthwise": convolution(bias=True, relu=True, group=6),
    "depthwise without bias": convolution(bias=False, relu=False, group=6),
    "conv 1x1 with strides": strided_points,
    "gemm": gemm(bias=True),
    "gemm without bias": gemm(bias=False),
    "sum": residual(),
    "sum, other order": residual(order=1),
    "sum, zero points": residual(relu=False),
    "sum, zero points, other order": residual(relu=False, order=1),
    "sum, other operand read later": residual(again="a"),
    "sum, convolution read later": residual(again="b"),
    "sum of one element a channel": residual(point=True, relu=False),
    "sum of two convolutions": two_branches(),
    "sum of two convolutions, other order": two_branches(order=1),
    "sum with a maximum": moved("MaxPool"),
    "sum with a mean": moved("AveragePool"),
    "global mean": pool("GlobalAveragePool"),
    "mean": pool("AveragePool", kernel_shape=[2, 3], strides=[2, 2]),
    "mean, padded": pool("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
}


def at_ties(state: State) -> State:
    """The state with scales near its own at which many results lie on the middle between two codes.

    Whichever product is rounded first then decides the code: an order of roundings that is not the runtime's shows in
    hundreds of codes, not in one of a million.
    """
    assert state.plan is not None
    encodings = dict(state.encodings)

    def scale_of(value: ir.Value) -> float:
        return float(encodings[state.plan.resolve(value.name or "")[0]].scale)  # type: ignore[union-attr]

    def change(value: ir.Value, scale: Any) -> None:
        root = state.plan.resolve(value.name or "")[0]  # type: ignore[union-attr]
        made = torch.as_tensor(scale, dtype=torch.float32)
        encodings[root] = dataclasses.replace(encodings[root], scale=made)

    for region in integer_regions(state.model, state.plan, TARGETS[state.plan.target].load()):
        y, size = region.output, 1
        if region.kind in ("GlobalAveragePool", "AveragePool"):
            x = region.inputs[0]
            window = region.op.attributes.get_ints("kernel_shape", list(x.shape or ())[2:])
            size = math.prod(d for d in window if isinstance(d, int))
            ratio = max(2, round(scale_of(y) / scale_of(x) * size / 2))
            change(y, scale_of(x) * 2 * ratio / size)
        elif region.kind == "Add":
            a, b = (v for v in region.op.inputs if v is not None)
            unit = min(scale_of(a), scale_of(b), scale_of(y))
            change(y, unit * round(16 * scale_of(y) / unit) / 16)
    for region in integer_regions(state.model, state.plan, TARGETS[state.plan.target].load()):
        if region.weight is not None:
            x, y, name = region.inputs[0], region.output, region.weight.name or ""
            own = encodings[name].scale.double()
            steps = torch.clamp(torch.round(scale_of(y) / (2 * scale_of(x) * own)), min=2)
            encodings[name] = dataclasses.replace(
                encodings[name], scale=(scale_of(y) / (2 * steps) / scale_of(x)).float()
            )
    return state.but(encodings=encodings)


@pytest.mark.parametrize("widths", ["", "W=4,A=4"])
@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, widths: str, tmp_path: Path) -> None:
    data = random_images(*SHAPE, count=96)
    quantized = bw.quantize(FORMULAS[name](), data, target=TARGET, set=[widths] * bool(widths))
    found = proof(at_ties(quantized.state), data, tmp_path)
    assert found.mismatches == 0, found.by_tensor
    assert found.float_kernels == {} and found.unplanned_kernels == {} and found.codes > 20_000


def at_halves(state: State, operand: int) -> State:
    """The state in which a sum's scale is an even multiple of an operand's.

    Where the other operand is zero, odd codes lie on the middle between two codes, exactly so only if they are not
    rescaled: so it shows which operand is.
    """
    assert state.plan is not None
    encodings = dict(state.encodings)
    for region in integer_regions(state.model, state.plan, TARGETS[state.plan.target].load()):
        if region.kind == "Add":
            read = [v.name or "" for v in region.op.inputs if v is not None][operand]
            x, y = (state.plan.resolve(site)[0] for site in (read, region.output.name or ""))
            even = 2 * max(1, round(float(encodings[y].scale / encodings[x].scale) / 2))
            encodings[y] = dataclasses.replace(encodings[y], scale=encodings[x].scale * even)
    return state.but(encodings=encodings)


@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("widths", ["", "W=4,A=4"])
@pytest.mark.parametrize("name", [name for name in FORMULAS if name.startswith("sum")])
def test_which_operand_is_rescaled(name: str, widths: str, operand: int, tmp_path: Path) -> None:
    data = random_images(*SHAPE, count=32)
    quantized = bw.quantize(FORMULAS[name](), data, target=TARGET, set=[widths] * bool(widths))
    found = proof(at_halves(at_ties(quantized.state), operand), data, tmp_path)
    assert found.mismatches == 0, found.by_tensor


def test_the_other_runtimes_formulas_do_not_hold_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At these scales formulas that round in another order are found out: the tests above can fail."""
    import bitwright.deploy.verify as verifying

    data = random_images(*SHAPE, count=96)
    state = at_ties(bw.quantize(FORMULAS["conv, zero point"](), data, target=TARGET).state)
    monkeypatch.setattr(verifying, "arithmetic_of", lambda name, *args: arithmetic_of("onnxruntime", *args))
    found = proof(state, data, tmp_path)
    assert found.mismatches > 20 and not found.proven


def sums(state: State) -> Mapping[Region, Sum]:
    """How the runtime is said to compute each sum."""
    target = TARGETS[TARGET].load()
    assert state.plan is not None
    regions = list(integer_regions(state.model, state.plan, target))
    return arithmetic_of("openvino", target, regions, lambda v: state.encoding(v.name or "")).sums


def test_a_sum_that_a_convolution_computes_is_not_rounded_before(tmp_path: Path) -> None:
    data = random_images(*SHAPE)
    state = bw.quantize(FORMULAS["sum"](), data, target=TARGET).state
    assert state.plan is not None
    regions = list(integer_regions(state.model, state.plan, TARGETS[TARGET].load()))
    (found,) = arithmetic_of(
        "openvino", TARGETS[TARGET].load(), regions, lambda v: state.encoding(v.name or "")
    ).sums.values()
    assert (found.rescaled, found.absorbing, found.at_once) == (0, 0, True)
    assert found.convolution is not None and found.convolution.output.name == "b"
    write(state, tmp_path / "model.onnx")
    layers = OpenVino(tmp_path / "model.onnx").layers()
    together = [layer for layer in layers if {"b/codes", "sr/codes"} <= set(layer.names)]
    assert [layer.type for layer in together] == ["Convolution"]


@pytest.mark.parametrize("again, alone", [("a", ["s"]), ("b", ["s"])])
def test_what_others_read_later_is_not_overwritten(again: str, alone: list[str]) -> None:
    """A convolution that others read, or whose other operand they read later, leaves the sum to a layer of its own."""
    state = bw.quantize(residual(again=again, relu=False)(), random_images(*SHAPE), target=TARGET).state
    assert [r.output.name for r, s in sums(state).items() if s.absorbing is None] == alone


# --- what is refused, and what must not pass


def test_products_saturate_only_where_the_target_says_so(tmp_path: Path) -> None:
    """8-bit weights of largest magnitude: exact on processors with VNNI, found out on the others."""
    g = Graph()
    g.constants += [numpy_helper.from_array(np.full((4, 64, 1, 1), 0.5, np.float32), "w")]
    g.op("Conv", ["x", "w"], "h")
    g.op("Relu", ["h"], "y")
    model = network(g.nodes, g.constants, (64, 4, 4))
    data = {"x": np.random.default_rng(0).uniform(0.5, 1, (8, 64, 4, 4)).astype(np.float32)}
    wide = proof(bw.quantize(model, data, target="openvino-cpu").state, data, tmp_path)
    assert wide.saturates == products_saturate() and (wide.mismatches > 0) == products_saturate()
    narrow = proof(bw.quantize(model, data, target=TARGET).state, data, tmp_path)
    assert narrow.proven and narrow.made_for_saturation


def test_counted_padding_stays_float() -> None:
    model = pool("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)()
    plan = bw.quantize(model, random_images(*SHAPE), target=TARGET).plan
    assert list(plan.refused.values()) == ["AveragePool: its mean counts padding (count_include_pad=1)"]


def test_strides_of_1x1_convolutions_are_pools(tmp_path: Path) -> None:
    """The runtime would compute such a convolution in float, or, with several threads, differently in each run."""
    data = random_images(*SHAPE)
    write(bw.quantize(strided_points(), data, target=TARGET).state, tmp_path / "model.onnx")
    nodes = {node.name: node for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert [nodes[f"{site}/thinned"].op_type for site in "de"] == ["MaxPool"] * 2
    assert not any(a.name == "strides" for site in "de" for a in nodes[f"{site}/sum"].attribute)
    assert all(layer.precision == "u8" for layer in OpenVino(tmp_path / "model.onnx").layers() if "Conv" in layer.type)
    read_by = {name for node in nodes.values() for name in node.input} | {"y"}
    assert all(set(node.output) & read_by for node in nodes.values()), "no node is left over"


def test_what_the_plan_keeps_in_float_is_float(tmp_path: Path) -> None:
    data = random_images(*SHAPE)
    quantized = bw.quantize(FORMULAS["sum"](), data, target=TARGET, set=["h*:float"])
    found = proof(quantized.state, data, tmp_path)
    assert found.proven and found.unplanned_kernels == {}
    assert found.kernels["Convolution f32"] == 1


def test_a_file_that_was_tampered_with_is_not_proven(tmp_path: Path) -> None:
    data = random_images(*SHAPE)
    write(bw.quantize(FORMULAS["conv"](), data, target=TARGET).state, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    for node in proto.graph.node:
        if node.op_type == "Conv" and "br/sum" in node.output:
            next(a for a in node.attribute if a.name == "pads").ints[:] = [2, 2, 2, 2]
            node.attribute.append(helper.make_attribute("dilations", [2, 2]))
    onnx.save(proto, tmp_path / "other.onnx")
    found = verify(tmp_path / "other.onnx", data_for(read(tmp_path / "model.onnx").model, data, Terminal()))
    assert found.mismatches > 0 and found.first_mismatch == "br" and not found.proven


def test_layers_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a value that a sum reads were read out where it is read, the sum would be computed in another way."""
    import bitwright.deploy.probes.openvino as probes

    data = random_images(*SHAPE)
    state = bw.quantize(FORMULAS["sum"](), data, target=TARGET).state
    monkeypatch.setattr(probes, "_doors", lambda *args: [([], [])])
    with pytest.raises(GoalError, match="reading codes out changes layers"):
        proof(state, data, tmp_path)
