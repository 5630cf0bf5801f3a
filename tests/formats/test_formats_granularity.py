from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bitwright.errors import InputError
from bitwright.formats.affine import Affine, dequantize, quantize, scale_and_zero_point
from bitwright.formats.granularity import Granularity, PerAxis, PerGroup, PerTensor

X = torch.arange(2.0 * 3 * 10).view(2, 3, 10)  # distinct values, so that no axis can be confused

ALL: list[Granularity] = [
    PerTensor(),
    PerAxis(0),
    PerAxis(1),
    PerAxis(2),
    PerGroup(2, 5),
    PerGroup(-1, 2),
    PerGroup(1, 3),
    PerGroup(0, 1),
]


@pytest.mark.parametrize("granularity", ALL, ids=repr)
def test_rows_and_expand_agree(granularity: Granularity) -> None:
    """Each element finds in the expanded parameter the number of the row that holds it."""
    rows = granularity.rows(X)
    assert rows.numel() == X.numel() and rows.ndim == 2
    number = granularity.expand(torch.arange(rows.shape[0]), X).expand(X.shape)
    for i, row in enumerate(rows):
        assert sorted(row.tolist()) == sorted(X[number == i].tolist())


def test_rows_by_hand() -> None:
    assert PerTensor().rows(X).shape == (1, 60)
    assert PerAxis(1).rows(X).shape == (3, 20)
    assert PerGroup(2, 5).rows(X)[:3].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert PerGroup(1, 3).rows(X)[:2].tolist() == [[0, 10, 20], [1, 11, 21]]


def test_groups_are_the_blocks_of_onnx() -> None:
    granularity, grid = PerGroup(1, 3), Affine(bits=8, signed=False)
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    rows = granularity.rows(x)
    scale, zero_point = scale_and_zero_point(rows.amin(1), rows.amax(1), grid, symmetric=False)
    s, z = granularity.expand(scale, x), granularity.expand(zero_point, x)
    q = quantize(x, s, z, grid)
    node = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1, block_size=3)
    inputs = [
        helper.make_tensor_value_info(n, t, None)
        for n, t in (("q", TensorProto.UINT8), ("s", TensorProto.FLOAT), ("z", TensorProto.UINT8))
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    feed = {
        "q": q.numpy().astype(np.uint8),
        "s": scale.view(2, 2, 5).numpy(),
        "z": zero_point.view(2, 2, 5).numpy().astype(np.uint8),
    }
    (served,) = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_array_equal(dequantize(q, s, z).numpy(), served)


def test_groups_must_divide_the_axis() -> None:
    with pytest.raises(InputError, match="group size: 4 for axis 2 of length 10; expected a divisor of the length"):
        PerGroup(2, 4).rows(X)
    with pytest.raises(InputError, match="group size: 0 for axis 2"):
        PerGroup(2, 0).rows(X)
    with pytest.raises(InputError, match=r"group axis: 3; expected an axis of a tensor of shape \[2, 3, 10\]"):
        PerGroup(3, 2).expand(torch.zeros(3), X)
