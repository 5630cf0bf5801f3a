"""Tables: chains of float ops between codes give the same codes in simulation and in the runtime, once settled."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitwright import quantize
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.deploy.writer import write
from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.integer import region_kernel
from bitwright.execute.kernels.table import MARGIN, entries, is_settled
from bitwright.execute.settle import settle
from bitwright.graph.overlay import initializer
from bitwright.graph.regions import Region, find_regions
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec
from bitwright.ptq.settle import settle as settle_state
from bitwright.ptq.settle import unsettled

#: Chains from x to y; an operand that is a number is a scalar constant.
CHAINS: dict[str, list[tuple[Any, ...]]] = {
    "hardswish": [("HardSwish", "x", "y")],
    "hardswish, as clip": [("Add", "x 3", "a"), ("Clip", "a 0 6", "c"), ("Mul", "x c", "m"), ("Div", "m 6", "y")],
    "hardsigmoid": [("HardSigmoid", "x", "y", {"alpha": 1 / 6})],
    "silu": [("Sigmoid", "x", "s"), ("Mul", "x s", "y")],
    "quick gelu": [("Mul", "x 1.702", "t"), ("Sigmoid", "t", "s"), ("Mul", "x s", "y")],
    "gelu, as erf": [
        ("Div", "x 1.4142135", "d"), ("Erf", "d", "e"), ("Add", "e 1", "a"), ("Mul", "x a", "m"),
        ("Mul", "m 0.5", "y"),
    ],
    "gelu": [("Gelu", "x", "y")],
    "gelu by tanh": [("Gelu", "x", "y", {"approximate": "tanh"})],
    "gelu by tanh, in parts": [
        ("Pow", "x 3", "c"), ("Mul", "c 0.044715", "h"), ("Add", "x h", "w"), ("Mul", "w 0.7978846", "v"),
        ("Tanh", "v", "t"), ("Add", "t 1", "a"), ("Mul", "x a", "m"), ("Mul", "m 0.5", "y"),
    ],
    "mish": [("Mish", "x", "y")],
    "mish, in parts": [("Softplus", "x", "p"), ("Tanh", "p", "t"), ("Mul", "x t", "y")],
    "sigmoid": [("Sigmoid", "x", "y")],
    "tanh": [("Tanh", "x", "y")],
    "elu": [("Elu", "x", "y")],
    "selu": [("Selu", "x", "y")],
    "celu": [("Celu", "x", "y", {"alpha": 1.3})],
    "leaky relu": [("LeakyRelu", "x", "y", {"alpha": 0.1})],
    "prelu": [("PRelu", "x 0.25", "y")],
    "softplus": [("Softplus", "x", "y")],
    "softsign": [("Softsign", "x", "y")],
    "square": [("Mul", "x x", "y")],
    "scale": [("Mul", "x 0.35355338", "y")],
    "shift": [("Sub", "1.5 x", "y")],
    "root": [("Abs", "x", "a"), ("Add", "a 0.01", "b"), ("Sqrt", "b", "y")],
}  # fmt: skip
#: Functions that ONNX Runtime turns into look-ups of its own.
LOOKUPS = {"sigmoid": "QLinearSigmoid", "leaky relu": "QLinearLeakyRelu", "square": "QLinearMul"}


def is_number(name: str) -> bool:
    return name.replace(".", "").isdigit()


def nodes_of(chain: str, x: str = "x", y: str = "y", mark: str = "") -> tuple[list[onnx.NodeProto], set[str]]:
    """Nodes that compute a chain from `x` to `y`, and the numbers among their operands."""
    names = {"x": x, "y": y}
    nodes, numbers = [], set()
    for op, reads, gives, *settings in CHAINS[chain]:
        numbers |= {r for r in reads.split() if is_number(r)}
        inputs = [r if is_number(r) else names.get(r, f"{r}{mark}") for r in reads.split()]
        output = names.get(gives, f"{gives}{mark}")
        nodes.append(helper.make_node(op, inputs, [output], name=output, **(settings[0] if settings else {})))
    return nodes, numbers


def model_of(
    nodes: list[onnx.NodeProto], numbers: set[str], shape: list[int | str], **constants: np.ndarray
) -> onnx.ModelProto:
    held = {n: np.array(float(n), np.float32) for n in numbers} | constants
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def table_of(chain: str) -> tuple[Region, ir.Model]:
    model = ir.from_proto(model_of(*nodes_of(chain), ["n"]))
    (region,) = find_regions(model)
    assert region.is_table
    return region, model


def encoding(scale: float, zero_point: int, bits: int = 8) -> Encoding:
    return Encoding(
        spec=QSpec(bits=bits), scale=torch.tensor(scale, dtype=torch.float32),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
    )  # fmt: skip


def encoding_in(encodings: dict[str, Encoding], value: ir.Value) -> Encoding:
    return encodings[value.name or ""]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def random_input(trial: int) -> Encoding:
    """Ranges from 0.25 to 50 wide; each fourth lies below zero, where functions are nearly flat."""
    rng = np.random.default_rng(trial)
    return encoding(10 ** rng.uniform(-3, -0.7), 255 if trial % 4 == 0 else int(rng.integers(0, 256)))


def range_of(exact: torch.Tensor) -> Encoding:
    """What calibration would choose for these values."""
    low, high = min(float(exact.min()), 0.0), max(float(exact.max()), 0.0)
    scale = max((high - low) / 255, 1e-8)
    return encoding(scale, round(-low / scale))


@pytest.mark.parametrize("chain", CHAINS)
def test_the_runtime_errs_less_than_half_of_what_is_allowed_for(chain: str) -> None:
    """On all codes, at many scales, at lengths that leave remainders of every vector width."""
    region, model = table_of(chain)
    proto = model_of(*nodes_of(chain), ["n"])
    for trial in range(12):
        x = random_input(trial)
        exact, error = entries(region, x, lambda v: initializer(model, {}, v.name or ""))
        real = x.dequantize(torch.arange(256)).numpy()
        for length in (256, 263):
            index = np.resize(np.arange(256), length)
            served = run(proto, {"x": real[index]}).astype(np.float64)
            assert (np.abs(served - exact.numpy()[index]) <= 0.5 * error.numpy()[index]).all()


@pytest.mark.parametrize("chain", CHAINS)
def test_settled_codes_are_the_runtimes(chain: str) -> None:
    """DequantizeLinear, the chain, QuantizeLinear in the runtime, on all codes, beside the table."""
    region, model = table_of(chain)

    def tensor(value: ir.Value) -> torch.Tensor:
        return initializer(model, {}, value.name or "")

    for trial in range(12):
        x = random_input(trial)
        before = range_of(entries(region, x, tensor)[0])
        before = dataclasses.replace(before, scale=before.scale * (1.0 if trial % 3 else 0.6))  # some are clipped
        found = settle([region], lambda v: v.name or "", {"x": x, "y": before}, tensor)
        assert found["x"] is x and float(found["y"].scale) >= float(before.scale)
        kernel = region_kernel(region, partial(encoding_in, found), tensor)
        chain_nodes, numbers = nodes_of(chain, "real", "result")
        nodes = [
            helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["real"]), *chain_nodes,
            helper.make_node("QuantizeLinear", ["result", "sy", "zy"], ["y"]),
        ]  # fmt: skip
        numerals = {n: np.array(float(n), np.float32) for n in numbers}
        constants = {
            "sx": found["x"].scale.numpy(), "zx": found["x"].zero_point.to(torch.uint8).numpy(),
            "sy": found["y"].scale.numpy(), "zy": found["y"].zero_point.to(torch.uint8).numpy(), **numerals,
        }  # fmt: skip
        graph = helper.make_graph(
            nodes, "table", [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n"])],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        )  # fmt: skip
        served = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        for length in (256, 263, 31):
            codes = np.resize(np.arange(256, dtype=np.uint8), length)
            assert np.array_equal(run(served, {"x": codes}), kernel(torch.from_numpy(codes)).numpy())


def one() -> np.ndarray:
    return np.ones((1, 1, 1, 1), np.float32)


def between_convolutions(chain: str) -> ir.Model:
    """x -> conv -> chain -> conv, each convolution a product with one, on one channel."""
    nodes, numbers = nodes_of(chain, "before", "after")
    first = helper.make_node("Conv", ["x", "one"], ["before"])
    last = helper.make_node("Conv", ["after", "two"], ["y"])
    return ir.from_proto(model_of([first, *nodes, last], numbers, ["batch", 1, 37, 7], one=one(), two=one()))


@pytest.mark.parametrize("chain", CHAINS)
def test_a_written_network_is_proven(chain: str) -> None:
    model = between_convolutions(chain)
    data = {"x": np.linspace(-4, 6, 4 * 37 * 7, dtype=np.float32).reshape(4, 1, 37, 7)}
    for target, settings in (("onnxruntime-x64-avx2", ()), ("onnxruntime-x64", ()), ("onnxruntime-x64", ("A=5",))):
        quantized = quantize(model, data, target=target, set=settings, ends=0)
        assert quantized.plan.refused == {} and quantized.plan.float_sites() == {}
        precise = target == "onnxruntime-x64" and products_saturate()
        for batch, threads in ((1, 1), (4, 2)):
            found = quantized.verify(data, batch=batch, threads=threads, precise=precise)
            assert found.mismatches == 0, found.by_tensor
            assert found.float_kernels == {} and found.unplanned_kernels == {}
            assert (LOOKUPS[chain] in found.kernels) if chain in LOOKUPS else ("QLinearMul" not in found.kernels)


def state_of(nodes: list[onnx.NodeProto], numbers: set[str]) -> State:
    first, last = helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Conv", ["m", "v"], ["y"])
    shape: list[int | str] = ["batch", 1, 16, 16]
    model = ir.from_proto(model_of([first, *nodes, last], numbers, shape, w=one(), v=one()))
    data = {"x": np.linspace(-4, 6, 4 * 256, dtype=np.float32).reshape(4, 1, 16, 16)}
    quantized = quantize(model, data, ends=0)
    assert quantized.verify(data, precise=products_saturate()).mismatches == 0
    return quantized.state


def joined(*chains: str, with_input: bool = False) -> State:
    """Chains of one value, side by side: their outputs share an encoding, and their input too if it is joined."""
    parts = [nodes_of(chain, "h", f"m{i}", f"/{i}") for i, chain in enumerate(chains)]
    names = [*(["h"] if with_input else []), *(f"m{i}" for i in range(len(chains)))]
    concat = helper.make_node("Concat", names, ["m"], axis=2)
    return state_of([*(n for nodes, _ in parts for n in nodes), concat], {c for _, numbers in parts for c in numbers})


def test_tables_of_one_encoding_are_settled_together() -> None:
    state = joined("silu", "gelu", "mish", "hardswish", "elu", "softplus")
    assert state.plan is not None
    assert len({state.plan.resolve(f"m{i}")[0] for i in range(6)}) == 1
    assert unsettled(state) == []


def test_an_input_may_share_the_encoding_of_the_output() -> None:
    state = joined("silu", "gelu", with_input=True)
    assert state.plan is not None
    assert state.plan.resolve("h")[0] == state.plan.resolve("m1")[0]
    assert unsettled(state) == []


def test_a_state_that_is_not_settled_is_not_written(tmp_path: Path) -> None:
    """An entry on the very middle between two codes: f(x) = 0.5 x at the scale of x."""
    state = state_of([helper.make_node("Mul", ["h", "0.5"], ["m"], name="m")], {"0.5"})
    loose = state.but(encodings={**state.encodings, "m": state.encodings["h"]})
    assert unsettled(loose) == ["m"]
    with pytest.raises(
        InputError, match="the codes of m would depend on how a runtime rounds; expected settled scale"
    ):
        write(loose, tmp_path / "m.onnx")
    again = settle_state(loose)
    assert unsettled(again) == []
    growth = float(again.encodings["m"].scale / loose.encodings["m"].scale)
    assert 1 < growth < 1.01, "no more than is needed"
    assert write(again, tmp_path / "m.onnx") > 0


def test_what_holds_stays_as_it_is() -> None:
    state = joined("silu")
    assert settle_state(state).encodings == state.encodings


def test_a_function_that_is_not_defined_is_refused_by_name() -> None:
    nodes = [helper.make_node("Log", ["h"], ["l"], name="l"), helper.make_node("Mul", ["l", "h"], ["m"], name="m")]
    first, last = helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Conv", ["m", "v"], ["y"])
    model = ir.from_proto(model_of([first, *nodes, last], set(), ["batch", 1, 16, 16], w=one(), v=one()))
    data = {"x": np.linspace(1, 6, 4 * 256, dtype=np.float32).reshape(4, 1, 16, 16)}  # 0 is a code all the same
    with pytest.raises(
        UnsupportedError, match=r"region 'l': gives NaN within the range of its input; .*--set 'l:float'"
    ):
        quantize(model, data, ends=0)
    found = quantize(model, data, ends=0, set=["l:float"]).verify(data, precise=products_saturate())
    assert found.proven


def test_an_entry_between_two_codes_is_seen() -> None:
    exact, error = torch.tensor([0.0, 2.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert not is_settled(exact, error, encoding(1.0, 10))
    assert is_settled(exact, error, encoding(1.1, 10)) and not is_settled(exact, error + 0.3, encoding(1.1, 10))
    assert is_settled(exact, error, encoding(0.005, 10)), "500 steps: beyond every code"
    assert not is_settled(exact + 1 - 0.9 * MARGIN, error, encoding(1.0, 10))


def test_a_scale_too_small_for_a_softmax_grows() -> None:
    """Among 4 elements, e_255 * floor(1 / s) passes float32 from s = 1 / 600 down."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "Softmax", [x], {"axis": ir.AttrInt64("axis", -1)})
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 21})
    (region,) = find_regions(ir.Model(graph, ir_version=10))
    before = {"x": encoding(0.1, 128), "y": encoding(1.6e-3, 0)}
    after = settle([region], lambda v: v.name or "", before, lambda v: torch.zeros(0))
    assert float(after["y"].scale) > 1.6e-3 and float(after["y"].scale) < 1.8e-3
    assert settle([region], lambda v: v.name or "", after, lambda v: torch.zeros(0)) == after


def test_powers_of_two_stay_powers_of_two() -> None:
    region, model = table_of("scale")
    step = 2.0**-7
    x = encoding(113.5 * step / 0.35355338 / 228, 0)  # code 228 gives 113.5 steps; twice the step has no such code
    before = dataclasses.replace(encoding(step, 0), spec=QSpec(bits=8, format="pow2"))
    found = settle(
        [region], lambda v: v.name or "", {"x": x, "y": before}, lambda v: initializer(model, {}, v.name or "")
    )
    assert float(found["y"].scale) == 2 * step
