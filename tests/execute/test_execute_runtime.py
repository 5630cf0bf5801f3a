"""Windows, resizes and products of awkward shapes, against ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from bitwright.execute import OPS

GENERATOR = np.random.default_rng(7)


def served(op: str, inputs: Sequence[np.ndarray | None], outputs: int = 1, **attributes: Any) -> list[np.ndarray]:
    """What ONNX Runtime makes of a single node."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    domain, _, kind = op.rpartition(".")
    graph = helper.make_graph(
        [helper.make_node(kind, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)],
        op,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


def compare(op: str, inputs: Sequence[np.ndarray | None], outputs: int = 1, **attributes: Any) -> None:
    """The row's function and the runtime within 1e-4 of the largest value, indices exactly."""
    tensors = [None if value is None else torch.from_numpy(value) for value in inputs]
    number = {"num_outputs": outputs} if outputs > 1 else {}
    found = OPS[op].load()(*tensors, **attributes, **number)
    for ours, theirs in zip(
        found if isinstance(found, tuple) else (found,), served(op, inputs, outputs, **attributes), strict=True
    ):
        assert tuple(ours.shape) == theirs.shape
        assert ours.numpy().dtype == theirs.dtype
        if theirs.dtype == np.int64:
            np.testing.assert_array_equal(ours.numpy(), theirs)
        else:
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


SPATIAL = {1: (17,), 2: (11, 13), 3: (5, 7, 11)}
KERNEL = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("form", ["plain", "even", "uneven", "dilated", "SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv(rank: int, group: int, form: str) -> None:
    x, w, b = normal(3, 2 * group, *SPATIAL[rank]), normal(5 * group, 2, *KERNEL[rank]), normal(5 * group)
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "even": {"pads": [1] * 2 * rank, "strides": [2] * rank},
        "uneven": {"pads": list(range(2 * rank)), "strides": [2, 1, 3][:rank]},
        "dilated": {"dilations": [2, 1, 2][:rank], "pads": [1, 0, 2][:rank] + [1, 0, 2][:rank]},
    }
    attributes = forms.get(form, {"auto_pad": form, "strides": [2, 3, 2][:rank]})
    compare("Conv", [x, w, b] if group == 1 else [x, w], group=group, **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "form",
    ["plain", "even", "uneven", "dilated", "output", "SAME_UPPER", "SAME_LOWER", "VALID", "shape", "shape_upper"],
)
def test_conv_transpose(rank: int, group: int, form: str) -> None:
    x, w, b = normal(3, 2 * group, *SPATIAL[rank]), normal(2 * group, 5, *KERNEL[rank]), normal(5 * group)
    target = [2 * size for size in SPATIAL[rank]]
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "even": {"pads": [1] * 2 * rank, "strides": [2] * rank},
        "uneven": {"pads": [0, 1, 0][:rank] + [1, 0, 1][:rank], "strides": [2, 1, 3][:rank]},
        "dilated": {"dilations": [2, 1, 2][:rank], "pads": [1, 0, 1][:rank] + [1, 0, 1][:rank]},
        "output": {"strides": [3, 2, 2][:rank], "output_padding": [2, 1, 1][:rank], "pads": [1] * 2 * rank},
        "shape": {"strides": [2] * rank, "output_shape": target},
        "shape_upper": {"strides": [2] * rank, "output_shape": target, "auto_pad": "SAME_UPPER"},
    }
    attributes = forms.get(form, {"auto_pad": form, "strides": [2, 1, 2][:rank]})
    compare("ConvTranspose", [x, w, b], kernel_shape=list(KERNEL[rank]), group=group, **attributes)


POOLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"strides": [2, 3, 2]},
    "even": {"strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1]},
    "uneven": {"strides": [2, 3, 2], "pads": [0, 1, 0, 1, 0, 1]},
    "wide": {"strides": [2, 2, 2], "pads": [2, 1, 1, 2, 1, 1]},
    "dilated": {"strides": [1, 2, 1], "dilations": [2, 3, 2], "pads": [1, 0, 1, 0, 1, 1]},
}


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", [*POOLS, "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_pools(op: str, rank: int, form: str, ceil_mode: int) -> None:
    x = normal(2, 3, *SPATIAL[rank])
    attributes: dict[str, Any] = {"kernel_shape": list((3, 2, 3)[:rank]), "ceil_mode": ceil_mode}
    if form in POOLS:
        for name, values in POOLS[form].items():
            attributes[name] = values[:rank] + values[3 : 3 + rank]
    else:
        attributes |= {"auto_pad": form, "strides": [2, 3, 2][:rank]}
    if op == "MaxPool":
        compare(op, [x], 1 + ceil_mode, **attributes)
    elif op == "AveragePool":
        for count_include_pad in (0, 1):
            compare(op, [x], count_include_pad=count_include_pad, **attributes)
    else:
        compare(op, [x], p=3, **attributes)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"), list(itertools.product((5, 6, 7), (2, 3), (2, 3), (0, 1)))
)
def test_ceil_mode_keeps_and_drops_the_last_window_as_the_runtime_does(
    size: int, kernel: int, stride: int, pad: int
) -> None:
    x = normal(1, 1, size)
    for begin, end in itertools.product({0, pad}, {0, pad}):
        geometry: dict[str, Any] = {
            "kernel_shape": [kernel],
            "strides": [stride],
            "pads": [begin, end],
            "ceil_mode": 1,
        }
        compare("MaxPool", [x], **geometry)
        compare("AveragePool", [x], **geometry)
        compare("AveragePool", [x], count_include_pad=1, **geometry)


def test_max_pool_of_codes() -> None:
    x = GENERATOR.integers(0, 256, (2, 3, 7, 5)).astype(np.uint8)
    compare("MaxPool", [x], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1])
    compare("MaxPool", [(x.astype(np.int16) - 128).astype(np.int8)], kernel_shape=[3, 3], pads=[2, 1, 0, 1])


def test_max_pool_indices_column_by_column() -> None:
    x = normal(2, 3, 7, 5)
    compare("MaxPool", [x], 2, kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 1, 1], storage_order=1)


def test_ops_of_the_runtimes_own() -> None:
    x = 4 * normal(2, 3, 5)
    compare("com.microsoft.Gelu", [x])
    compare("com.microsoft.FastGelu", [x])
    compare("com.microsoft.FastGelu", [x, normal(5)])
    compare("com.microsoft.QuickGelu", [x])
    compare("com.microsoft.QuickGelu", [x], alpha=1.3)


def test_global_lp_pool() -> None:
    compare("GlobalLpPool", [normal(2, 3, 5, 7)], p=3)


@pytest.mark.parametrize(
    ("transA", "transB", "alpha", "beta"), [(0, 0, 1.0, 1.0), (1, 0, 0.5, 1.0), (0, 1, 1.0, -2.0), (1, 1, 1.0, 1.0)]
)
@pytest.mark.parametrize("shape", [None, (), (5,), (1,), (3, 1), (1, 5), (3, 5)])
def test_gemm(transA: int, transB: int, shape: tuple[int, ...] | None, alpha: float, beta: float) -> None:
    a, b = normal(*((7, 3) if transA else (3, 7))), normal(*((5, 7) if transB else (7, 5)))
    c = None if shape is None else np.asarray(normal(*shape), dtype=np.float32)
    inputs = [a, b] if c is None else [a, b, c]
    compare("Gemm", inputs, transA=transA, transB=transB, alpha=alpha, beta=beta)


COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
SCALES = [(1.0, 1.0, 2.0, 3.0), (1.0, 1.0, 0.6, 1.7), (1.0, 1.0, 5 / 3, 0.4)]
SIZES = [(1, 3, 14, 22), (1, 3, 5, 17), (1, 3, 1, 8)]


def resize_inputs(target: tuple[float, ...] | tuple[int, ...]) -> list[np.ndarray | None]:
    x = normal(1, 3, 7, 11)
    if isinstance(target[0], float):
        return [x, None, np.array(target, np.float32)]
    return [x, None, None, np.array(target, np.int64)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("target", [*SCALES, *SIZES])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize(coordinates: str, target: tuple[float, ...] | tuple[int, ...], mode: str) -> None:
    compare("Resize", resize_inputs(target), mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("target", [*SCALES, *SIZES])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_nearest(coordinates: str, target: tuple[float, ...] | tuple[int, ...], rounding: str) -> None:
    compare("Resize", resize_inputs(target), coordinate_transformation_mode=coordinates, nearest_mode=rounding)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("target", [*SCALES, *SIZES])
def test_resize_antialiased(mode: str, target: tuple[float, ...] | tuple[int, ...]) -> None:
    compare("Resize", resize_inputs(target), mode=mode, antialias=1)


def test_resize_other_coefficient_and_without_the_outside() -> None:
    for target in (*SCALES, *SIZES):
        compare("Resize", resize_inputs(target), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_crop(mode: str) -> None:
    x, roi = normal(1, 2, 7, 11), np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.1], np.float32)
    sizes = np.array([1, 2, 5, 13], np.int64)
    attributes: dict[str, Any] = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    compare("Resize", [x, roi, None, sizes], mode=mode, **attributes)
