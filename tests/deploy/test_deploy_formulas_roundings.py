"""The order of roundings: on all pairs of codes at many scales, where formulas that look alike give other codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bitwright.execute.integer import region_kernel
from bitwright.execute.kernels.softmax import overflows
from bitwright.graph.regions import find_regions
from bitwright.plan.encoding import Encoding
from bitwright.plan.spec import QSpec

F = np.float32
ALL = np.arange(256, dtype=np.uint8)
#: Every code beside every code: a column and a row.
PAIRS = {"a": ALL[:, None], "b": ALL[None, :]}


def encoding(scale: float, zero_point: int) -> Encoding:
    return Encoding(
        spec=QSpec(bits=8), scale=torch.tensor(scale, dtype=torch.float32),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
    )  # fmt: skip


def encoding_in(encodings: dict[str, Encoding], value: ir.Value) -> Encoding:
    return encodings[value.name or ""]


def simulated(op: str, encodings: dict[str, Encoding], codes: dict[str, np.ndarray], **settings: Any) -> np.ndarray:
    values = [
        ir.Value(name=n, shape=ir.Shape(c.shape), type=ir.TensorType(ir.DataType.FLOAT)) for n, c in codes.items()
    ]
    node = ir.Node("", op, values, {n: ir.AttrInt64(n, v) for n, v in settings.items()})
    node.outputs[0].name = "y"
    (region,) = find_regions(
        ir.Model(ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 21}), ir_version=10)
    )
    kernel = region_kernel(region, partial(encoding_in, encodings), lambda value: torch.zeros(0))
    found: np.ndarray = kernel(*(torch.from_numpy(c) for c in codes.values())).numpy()
    return found


def served(
    op: str, encodings: dict[str, Encoding], codes: dict[str, np.ndarray], threads: int = 1, **settings: Any
) -> np.ndarray:
    nodes = [helper.make_node("DequantizeLinear", [n, f"{n}/s", f"{n}/z"], [f"{n}/r"]) for n in codes]
    nodes.append(helper.make_node(op, [f"{n}/r" for n in codes], ["r"], **settings))
    nodes.append(helper.make_node("QuantizeLinear", ["r", "y/s", "y/z"], ["y"]))
    numbers = {f"{n}/s": e.scale.numpy() for n, e in encodings.items()}
    numbers |= {f"{n}/z": e.zero_point.to(torch.uint8).numpy() for n, e in encodings.items()}
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info(n, TensorProto.UINT8, c.shape) for n, c in codes.items()],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, codes)[0]
    return found


def numbers_of(encodings: dict[str, Encoding]) -> list[tuple[np.float32, int]]:
    return [(F(float(encodings[n].scale)), int(encodings[n].zero_point)) for n in "aby"]


def clipped(y: np.ndarray) -> np.ndarray:
    return np.clip(y, 0, 255).astype(np.uint8)


def fma(a: np.ndarray, b: Any, c: Any) -> np.ndarray:
    found: np.ndarray = (a.astype(np.float64) * np.float64(b) + np.asarray(c, np.float64)).astype(F)
    return found


def mul_rounded_once(encodings: dict[str, Encoding], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (sa, za), (sb, zb), (sy, zy) = numbers_of(encodings)
    acc = (a.astype(F) - F(za)) * (b.astype(F) - F(zb))
    return clipped(np.rint(fma(acc, F(F(sa * sb) / sy), zy)))


def zero_point_after_rounding(encodings: dict[str, Encoding], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (sa, za), (sb, zb), (sy, zy) = numbers_of(encodings)
    acc = (a.astype(F) - F(za)) * (b.astype(F) - F(zb))
    return clipped(np.rint(acc * F(F(sa * sb) / sy)) + zy)


def zero_point_before_rounding(encodings: dict[str, Encoding], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (sa, za), (sb, zb), (sy, zy) = numbers_of(encodings)
    acc = (a.astype(F) - F(za)) * (b.astype(F) - F(zb))
    return clipped(np.rint(acc * F(F(sa * sb) / sy) + F(zy)))


def add_in_order(encodings: dict[str, Encoding], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    (sa, za), (sb, zb), (sy, zy) = numbers_of(encodings)
    ra, rb = F(sa / sy), F(sb / sy)
    constant = F(F(zy) - F(np.float64(ra) * za + np.float64(F(rb * F(zb)))))
    return clipped(np.rint(fma(a, ra, fma(b, rb, constant))))


Formula = Callable[[dict[str, Encoding], np.ndarray, np.ndarray], np.ndarray]
CASES: dict[str, tuple[str, int, float, tuple[Formula, ...]]] = {
    "mul": ("Mul", 60, 1.0, (mul_rounded_once, zero_point_after_rounding)),
    "matmul": ("MatMul", 60, 1.0, (zero_point_before_rounding,)),
    "add, the first repeated along the row": ("Add", 120, 255.0, (add_in_order,)),
}


@pytest.mark.parametrize("case", CASES)
def test_all_pairs_of_codes_at_many_scales(case: str) -> None:
    op, trials, size, others = CASES[case]
    rng = np.random.default_rng(3)
    different = dict.fromkeys(others, 0)
    for trial in range(trials):
        sa, sb = rng.uniform(0.001, 0.1, 2)
        # a product has sa sb for a step, a sum sa and sb
        sy = sa * sb * rng.uniform(50, 400) if size == 1.0 else (sa + sb) * rng.uniform(0.7, 1.3)
        za, zb, zy = (int(z) for z in rng.integers(0, 256, 3))
        encodings = {"a": encoding(sa, za), "b": encoding(sb, zb), "y": encoding(sy, zy)}
        expected = served(op, encodings, PAIRS, threads=1 + trial % 2)
        assert np.array_equal(simulated(op, encodings, PAIRS), expected)
        for other in others:
            different[other] += int((other(encodings, PAIRS["a"], PAIRS["b"]) != expected).sum())
    assert min(different.values()) > 0, "else this test does not tell one formula from the other"


@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 17, 24), (1, 17, 24)), ((17, 24), (3, 17, 24)), ((2, 5, 7, 1), (2, 5, 1, 1)), ((5, 1), (16, 5, 7)),
        ((1,), (3, 40)), ((4, 1, 17), (4, 3, 1)), ((64, 1, 1), (2, 64, 31, 31)), ((2, 1, 1, 1), (2, 3, 1, 40)),
    ],
)  # fmt: skip
def test_operands_of_other_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    for op in ("Add", "Mul"):
        for trial, (first, second) in enumerate([(a, b), (b, a)] * 4):
            sa, sb = rng.uniform(0.01, 0.1, 2)
            sy = sa * sb * 128 if op == "Mul" else sa + sb
            encodings = {"a": encoding(sa, 37), "b": encoding(sb, 201), "y": encoding(sy, 77)}
            codes = {"a": rng.integers(0, 256, first, np.uint8), "b": rng.integers(0, 256, second, np.uint8)}
            assert np.array_equal(simulated(op, encodings, codes), served(op, encodings, codes, threads=1 + trial % 2))


@pytest.mark.parametrize(
    "shape, axis", [((3, 40, 17), -1), ((2, 9, 3), 1), ((5, 197), -1), ((2, 1000), 1), ((4, 1), 1)]
)
def test_softmax_at_many_scales(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(6)
    for trial in range(16):
        x = encoding(rng.uniform(0.001, 0.2), int(rng.integers(0, 256)))
        y = encoding(rng.uniform(0.5, 1.2) / 255, 3 * (trial % 2))
        assert not overflows(shape[axis], y) or shape[axis] == 1
        if overflows(shape[axis], y):
            continue
        codes = rng.normal(128, 5 + 10 * trial, shape).clip(0, 255).astype(np.uint8)
        found = simulated("Softmax", {"x": x, "y": y}, {"x": codes}, axis=axis)
        assert np.array_equal(
            found, served("Softmax", {"x": x, "y": y}, {"x": codes}, threads=1 + trial % 2, axis=axis)
        )


def test_sums_of_a_product_of_matrices_are_exact() -> None:
    """Extreme codes, as many as an int16 sum of pairs could not hold; in batches, repeated and not."""
    rng = np.random.default_rng(7)
    for first, second in [((5, 2049), (2049, 9)), ((2, 3, 17, 64), (2, 3, 64, 17)), ((2, 1, 5, 8), (2, 3, 8, 5))]:
        for zero in (0, 255, 91):
            inner = first[-1]
            encodings = {
                "a": encoding(0.01, zero), "b": encoding(0.02, zero), "y": encoding(0.0002 * inner * 100, 0),
            }  # fmt: skip
            codes = {n: (255 * rng.integers(0, 2, s)).astype(np.uint8) for n, s in (("a", first), ("b", second))}
            for threads in (1, 2):
                expected = served("MatMul", encodings, codes, threads)
                assert np.array_equal(simulated("MatMul", encodings, codes), expected)
            assert 0 < expected.mean() < 255
