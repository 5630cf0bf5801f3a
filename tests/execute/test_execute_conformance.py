"""Every op against the node tests that ONNX itself ships."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case import base as onnx_base
from onnx.backend.test.case import node as onnx_cases
from onnx.reference.ops import op_pool_common as onnx_pool

from bitwright.errors import UnsupportedError
from bitwright.execute import OPS

ONNX_POOL = onnx_pool.pool
DTYPES = {"float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"}

# Node tests in those dtypes that a row refuses, and why.
REFUSED: dict[str, str] = {
    "test_batchnorm_example_training_mode": "training",
    "test_batchnorm_epsilon_training_mode": "training",
    "test_training_dropout": "training",
    "test_training_dropout_default": "training",
    "test_training_dropout_default_mask": "training",
    "test_training_dropout_mask": "training",
    "test_training_dropout_zero_ratio": "training",
    "test_training_dropout_zero_ratio_mask": "training",
    "test_cast_FLOAT_to_FLOAT8E4M3FN": "8-bit float",
    "test_cast_FLOAT_to_FLOAT8E4M3FNUZ": "8-bit float",
    "test_cast_FLOAT_to_FLOAT8E5M2": "8-bit float",
    "test_cast_FLOAT_to_FLOAT8E5M2FNUZ": "8-bit float",
    "test_cast_FLOAT_to_FLOAT4E2M1": "4-bit float",
    "test_cast_FLOAT16_to_FLOAT8E4M3FN": "8-bit float",
    "test_cast_FLOAT16_to_FLOAT8E4M3FNUZ": "8-bit float",
    "test_cast_FLOAT16_to_FLOAT8E5M2": "8-bit float",
    "test_cast_FLOAT16_to_FLOAT8E5M2FNUZ": "8-bit float",
    "test_cast_FLOAT16_to_FLOAT4E2M1": "4-bit float",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FN": "8-bit float",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FNUZ": "8-bit float",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E5M2": "8-bit float",
    "test_cast_no_saturate_FLOAT_to_FLOAT8E5M2FNUZ": "8-bit float",
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E4M3FN": "8-bit float",
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E4M3FNUZ": "8-bit float",
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E5M2": "8-bit float",
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E5M2FNUZ": "8-bit float",
    "test_cast_e8m0_FLOAT_to_FLOAT8E8M0": "8-bit float",
    "test_cast_e8m0_FLOAT16_to_FLOAT8E8M0": "8-bit float",
}

# Node tests whose expected values ONNX Runtime does not give either: there a row follows the runtime, which serves.
AS_THE_RUNTIME: dict[str, str] = {
    "test_resize_downsample_scales_linear_align_corners": "the size of the result is taken before it is rounded down",
    "test_resize_downsample_scales_cubic_align_corners": "the size of the result is taken before it is rounded down",
}


# ONNX computes each of their 89,373 windows in Python; test_execute_runtime.py has smaller ones of the kind.
LEFT_OUT = {"test_averagepool_3d_default", "test_lppool_3d_default", "test_maxpool_3d_default"}


@functools.cache
def cases() -> dict[str, list[Any]]:
    """ONNX's node tests by op, collected once: that takes seconds."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # the collection divides by zero on purpose
        # The expanded forms repeat an op as a graph of others; the snippets are for ONNX's documentation.
        patch.setattr(onnx_cases, "function_testcase_helper", lambda *_, **__: ([], 0))
        patch.setattr(onnx_base, "process_snippet", lambda _, name, __: (name, ""))
        patch.setattr(onnx_pool, "pool", pool_unless_large)
        collected: list[Any] = onnx_cases.collect_testcases(None)
    found: dict[str, list[Any]] = {}
    for case in collected:
        nodes = case.model.graph.node
        if case.name not in LEFT_OUT and len(nodes) == 1 and all(map(is_plain, case.data_sets[0][0])):
            found.setdefault(nodes[0].op_type, []).append(case)
    return found


def pool_unless_large(
    padded: np.ndarray, x_shape: Any, kernel: Any, strides: Any, out_shape: Any, *more: Any, **named: Any
) -> np.ndarray:
    """ONNX's pool, and NaN for the tests that are left out."""
    if math.prod([*x_shape[:2], *out_shape]) > 50_000:
        return np.full([*x_shape[:2], *out_shape], np.nan, padded.dtype)
    return ONNX_POOL(padded, x_shape, kernel, strides, out_shape, *more, **named)


def array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def is_plain(value: Any) -> bool:
    """A tensor of one of DTYPES: no sequence, no optional, no string."""
    return not isinstance(value, list) and value is not None and array(value).dtype.name in DTYPES


def attribute(proto: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [item.decode() for item in value]
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(np.array(numpy_helper.to_array(value)))
    return value


def run(case: Any) -> list[torch.Tensor]:
    """The outputs of the row's function for the node's inputs and attributes."""
    node, given = case.model.graph.node[0], iter(case.data_sets[0][0])
    inputs = [torch.from_numpy(array(next(given)).copy()) if name else None for name in node.input]
    attributes = {proto.name: attribute(proto) for proto in node.attribute}
    function = OPS[node.op_type].load()
    if "num_outputs" in inspect.signature(function).parameters:
        attributes["num_outputs"] = len(node.output)
    outputs = function(*inputs, **attributes)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output, name in zip(outputs, node.output, strict=True) if name]


def check(case: Any) -> None:
    expected = case.data_sets[0][1]
    if case.name in AS_THE_RUNTIME:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = dict(zip([value.name for value in session.get_inputs()], case.data_sets[0][0], strict=True))
        expected = session.run(None, feeds)
    for found, wanted in zip(run(case), map(array, expected), strict=True):
        assert tuple(found.shape) == wanted.shape, case.name
        if wanted.dtype.name in DTYPES:
            assert found.numpy().dtype == wanted.dtype, case.name
        np.testing.assert_allclose(
            found.double().numpy(), wanted.astype(np.float64), case.rtol, case.atol, err_msg=case.name
        )


@pytest.mark.parametrize("op", OPS)
def test_onnx_node_tests(op: str) -> None:
    refused = set()
    for case in cases().get(op, []):
        try:
            check(case)
        except UnsupportedError:
            refused.add(case.name)
    assert refused == {case.name for case in cases().get(op, []) if case.name in REFUSED}


def test_the_tables_of_exceptions_name_tests_that_exist() -> None:
    names = {case.name for found in cases().values() for case in found}
    assert names >= REFUSED.keys() | AS_THE_RUNTIME.keys()
    # ONNX has node tests for all ops but this one, which has a test of its own
    assert OPS.keys() - cases().keys() == {"GlobalLpPool"}


def test_a_wrong_answer_is_noticed() -> None:
    case = next(case for case in cases()["Conv"] if case.name == "test_basic_conv_with_padding")
    inputs, outputs = case.data_sets[0]
    wrong = type(case)(**{**vars(case), "data_sets": [(inputs, [outputs[0] * np.float32(1.01)])]})
    with pytest.raises(AssertionError, match="test_basic_conv_with_padding"):
        check(wrong)
