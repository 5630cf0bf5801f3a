"""Sums of operands that differ in shape: the runtime's layout decides the order of the operands, and no code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitwright import quantize
from bitwright.deploy.runtimes.onnxruntime import OnnxRuntime, products_saturate
from bitwright.deploy.writer import write
from bitwright.errors import InputError
from bitwright.execute.kernels.binary import is_free_of_order, may_change_places, sum_of_codes
from bitwright.execute.settle import needs_settling, settle
from bitwright.graph.regions import Region, find_regions
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec
from bitwright.ptq.settle import settle as settle_state
from bitwright.ptq.settle import unsettled

GENERATOR = np.random.default_rng(29)
#: Every pair of codes.
ROWS, COLUMNS = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
POINT, WHOLE = ("N", 16, 1, 1), ("N", 16, 32, 32)


def encoding(scale: float, zero_point: int, bits: int = 8) -> Encoding:
    return Encoding(
        spec=QSpec(bits=bits), scale=torch.tensor(scale, dtype=torch.float32),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
    )  # fmt: skip


#: Encodings at which `a + b` and `b + a` differ for some pair of codes.
LOOSE = {"a": encoding(0.05, 128), "b": encoding(0.02, 128), "y": encoding(0.1, 128)}


def served(op: str, a: np.ndarray, b: np.ndarray, encodings: dict[str, Encoding]) -> np.ndarray:
    """What the runtime's own kernel gives."""
    constants = {f"s{n}": e.scale.numpy() for n, e in encodings.items()}
    constants |= {f"z{n}": e.zero_point.numpy().astype(np.uint8) for n, e in encodings.items()}
    node = helper.make_node(op, ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info(n, TensorProto.UINT8, x.shape) for n, x in (("a", a), ("b", b))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(number, name) for name, number in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return OnnxRuntime(model.SerializeToString(), threads=1).run({"a": a, "b": b})["y"]


def layouts(op: str, encodings: dict[str, Encoding]) -> dict[str, np.ndarray]:
    """Codes of all pairs, `[a, b]`, the first operand with one number a channel, by the order that they follow."""
    innermost_spatial = served(op, ROWS[:, :1].reshape(1, 256, 1, 1), COLUMNS.reshape(1, 256, 16, 16), encodings)
    # Channels last: the codes of `a` are channels, those of `b` are places.
    channels_last = served(op, ROWS[:, 0].reshape(1, 1, 1, 256), ROWS.reshape(1, 16, 16, 256), encodings)
    return {"b + a": innermost_spatial.reshape(256, 256), "a + b": channels_last.reshape(256, 256).T}


def sums(a: Encoding, b: Encoding, y: Encoding) -> dict[str, np.ndarray]:
    """Codes of all pairs, `[a, b]`, by both formulas."""
    rows, columns = torch.from_numpy(ROWS), torch.from_numpy(COLUMNS)
    found = {"a + b": sum_of_codes(rows, columns, a, b, y), "b + a": sum_of_codes(columns, rows, b, a, y)}
    return {order: codes.clamp(0, 255).to(torch.uint8).numpy() for order, codes in found.items()}


def random_encodings() -> dict[str, Encoding]:
    a, b = np.exp(GENERATOR.uniform(-5, 0, 2))
    y = (a + b) * np.exp(GENERATOR.uniform(-1.5, 0.3))
    return {n: encoding(s, int(GENERATOR.integers(256))) for n, s in (("a", a), ("b", b), ("y", y))}


def value(name: str, shape: tuple[int | str | None, ...] | None) -> ir.Value:
    return ir.Value(name=name, shape=None if shape is None else ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def region_of(
    first: tuple[int | str | None, ...] | None, second: tuple[int | str | None, ...] | None, op: str = "Add"
) -> Region:
    a, b = value("a", first), value("b", second)
    node = ir.Node("", op, [a, b])
    node.outputs[0].name = "y"
    graph = ir.Graph([a, b], node.outputs, nodes=[node], opset_imports={"": 21})
    (region,) = find_regions(ir.Model(graph, ir_version=10))
    return region


def settled(encodings: dict[str, Encoding]) -> dict[str, Encoding]:
    return settle([region_of(POINT, WHOLE)], lambda v: v.name or "", encodings, lambda v: torch.zeros(0))


def is_free(encodings: dict[str, Encoding], bounds: tuple[int, int] = (0, 255)) -> bool:
    return is_free_of_order(bounds=bounds, **encodings)


def test_the_layout_decides_the_order_of_a_sum() -> None:
    """One number a channel comes second where columns are innermost, and stays first where channels are."""
    for encodings in (LOOSE, *(random_encodings() for _ in range(12))):
        ours, runtime = sums(**encodings), layouts("QLinearAdd", encodings)
        assert all(np.array_equal(ours[order], runtime[order]) for order in ours)
    runtime = layouts("QLinearAdd", LOOSE)
    differ = runtime["a + b"].astype(int) - runtime["b + a"]
    assert set(np.unique(np.abs(differ))) == {0, 1}


def test_a_product_has_no_order() -> None:
    for encodings in (LOOSE, *(random_encodings() for _ in range(12))):
        y = dataclasses.replace(encodings["y"], scale=200 * encodings["a"].scale * encodings["b"].scale)
        runtime = layouts("QLinearMul", encodings | {"y": y})
        assert np.array_equal(runtime["a + b"], runtime["b + a"])


def test_settled_sums_are_the_same_in_every_layout() -> None:
    loose = [e for e in (random_encodings() for _ in range(60)) if not is_free(e)]
    assert len(loose) > 5
    for before in (LOOSE, *loose):
        after = settled(before)
        assert after["a"] is before["a"] and after["b"] is before["b"]
        assert 1 < float(after["y"].scale / before["y"].scale) < 1.001, "no more than is needed"
        assert is_free(after)
        runtime = layouts("QLinearAdd", after)
        assert np.array_equal(runtime["a + b"], runtime["b + a"])
        assert settled(after) == after, "what holds stays as it is"


def test_only_pairs_of_codes_that_occur_count() -> None:
    assert not is_free(LOOSE)
    assert is_free(LOOSE, (255, 255)), "a bound that all sums are brought to"
    narrow = {n: dataclasses.replace(e, spec=QSpec(bits=1), zero_point=torch.tensor(0)) for n, e in LOOSE.items()}
    assert is_free(narrow, (0, 1))


@pytest.mark.parametrize(
    ("first", "second", "may"),
    [
        (POINT, WHOLE, True), ((16, 1, 1), WHOLE, True), ((32, 32), WHOLE, True), (("N", 1, 32, 32), WHOLE, True),
        (("N", 16, 32, 1), ("N", 16, 1, 32), True), ((), WHOLE, True), (None, WHOLE, True), (WHOLE, None, True),
        (("N", 16, None, 32), ("N", 16, None, 32), True), (("N", 16, "H", "W"), ("N", 16, "V", "W"), True),
        (WHOLE, WHOLE, False), (WHOLE, POINT, False), (WHOLE, (32, 32), False), (WHOLE, (), False),
        (POINT, POINT, False), (("N", 16, "H", "W"), ("N", 16, "H", "W"), False),
    ],
)  # fmt: skip
def test_only_a_first_operand_that_is_smaller_needs_it(
    first: tuple[int | str | None, ...] | None, second: tuple[int | str | None, ...] | None, may: bool
) -> None:
    region = region_of(first, second)
    assert may_change_places(region.op) is may
    assert needs_settling(region, "onnxruntime") is may and not needs_settling(region, "openvino")
    assert not needs_settling(region_of(first, second, "Mul"), "onnxruntime")


def network(rng: np.random.Generator, operands: str) -> ir.Model:
    """The sum of a convolution `a` and one number a channel: the mean `g` of another one, or the constant `k`."""
    numbers = {"w": (16, 6, 1, 1), "v": (16, 6, 1, 1), "u": (4, 16, 1, 1), "k": (16, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="a"), helper.make_node("Conv", ["x", "v"], ["b"], name="b"),
        helper.make_node("GlobalAveragePool", ["b"], ["g"], name="g"),
        helper.make_node("Add", operands.split(), ["m"], name="m"),
        helper.make_node("Conv", ["m", "u"], ["y"], name="y"),
    ]  # fmt: skip
    constants = [
        numpy_helper.from_array((rng.standard_normal(shape) * 0.4).astype(np.float32), name)
        for name, shape in numbers.items() if name in operands or len(shape) == 4
    ]  # fmt: skip
    graph = helper.make_graph(
        [node for node in nodes if node.name not in ("b", "g") or "g" in operands], "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [c for c in constants if c.name != "v" or "g" in operands],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(("operands", "seed"), [("g a", 13), ("g a", 48), ("g a", 100), ("g a", 123), ("k a", 0)])
def test_networks_are_proven_whatever_is_drawn(operands: str, seed: int) -> None:
    """Draws of `g a` in which pairs of codes occur that the layouts add otherwise, as 5 in 100 draws have them."""
    rng = np.random.default_rng(seed)
    model = network(rng, operands)
    data = {"x": (rng.standard_normal((8, 6, 32, 32)) * 1.7 + 0.3).astype(np.float32)}
    quantized = quantize(model, data, target="onnxruntime-x64", ends=0)
    found = quantized.verify(data, batch=8, precise=products_saturate())
    assert found.proven and found.kernels["QLinearAdd"] == 1, found.by_tensor


def test_a_state_whose_sums_depend_on_the_layout_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((4, 6, 32, 32)).astype(np.float32)}
    state = quantize(network(rng, "g a"), data, target="onnxruntime-x64", ends=0).state
    given = {"g": LOOSE["a"], "a": LOOSE["b"], "m": LOOSE["y"]}
    loose = state.but(encodings={**state.encodings, **given})
    assert unsettled(state) == [] and unsettled(loose) == ["m"]
    with pytest.raises(InputError, match="the codes of m would depend on how a runtime rounds"):
        write(loose, tmp_path / "m.onnx")
    again = settle_state(loose)
    assert unsettled(again) == [] and write(again, tmp_path / "m.onnx") > 0
    assert [n for n in given if again.encodings[n] is not loose.encodings[n]] == ["m"]
