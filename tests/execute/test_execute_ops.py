"""What the op functions promise beyond the standard: gradients, empty batches, tracing, lists, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from bitwright.errors import InputError, UnsupportedError
from bitwright.execute import OPS

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def x(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


# Each is differentiable at its input; shape-like inputs are given as lists.
SMOOTH: list[Case] = [
    ("Conv", (x(2, 4, 5, 7), x(6, 2, 3, 2), x(6)), {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("ConvTranspose", (x(2, 3, 5), x(3, 2, 3)), {"pads": [1, 0], "strides": [2]}),
    ("Gemm", (x(3, 5), x(7, 5), x(7)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", (x(2, 3, 5), x(5, 7)), {}),
    ("Einsum", (x(2, 3), x(3, 5)), {"equation": "ij,jk->ki"}),
    ("Attention", (x(1, 4, 3, 5), x(1, 2, 6, 5), x(1, 2, 6, 7)), {"is_causal": 1, "softcap": 2.0}),
    ("Attention", (x(1, 3, 10), x(1, 6, 10), x(1, 6, 14), x(3, 6)), {"q_num_heads": 2, "kv_num_heads": 2}),
    ("MaxPool", (x(2, 3, 7, 5),), {"kernel_shape": [3, 2], "pads": [2, 0, 1, 1], "ceil_mode": 1, "strides": [2, 2]}),
    ("AveragePool", (x(2, 3, 7, 5),), {"kernel_shape": [3, 2], "pads": [2, 0, 1, 1], "dilations": [2, 1]}),
    ("LpPool", (x(2, 3, 7),), {"kernel_shape": [3], "pads": [1, 1]}),
    ("GlobalAveragePool", (x(2, 3, 5, 7),), {}),
    ("GlobalMaxPool", (x(2, 3, 5, 7),), {}),
    ("BatchNormalization", (x(2, 3, 5), x(3), x(3), x(3), x(3)), {}),
    ("InstanceNormalization", (x(2, 3, 5), x(3), x(3)), {}),
    ("LayerNormalization", (x(2, 3, 5), x(3, 5), x(3, 5)), {"axis": 1, "stash_type": 11}),
    ("GroupNormalization", (x(2, 4, 5), x(4), x(4)), {"num_groups": 2, "stash_type": 11}),
    ("RMSNormalization", (x(2, 3, 5), x(5)), {"stash_type": 11}),
    ("LRN", (x(2, 5, 3, 3),), {"size": 3}),
    ("LpNormalization", (x(2, 3, 5),), {"axis": 1}),
    ("MeanVarianceNormalization", (x(2, 3, 5, 5),), {}),
    ("Gelu", (x(2, 3),), {}),
    ("PRelu", (x(2, 3, 5), x(3, 1)), {}),
    ("Softplus", (x(2, 3),), {}),
    ("Clip", (x(2, 3), 0.3, torch.tensor(0.8, dtype=torch.float64)), {}),
    ("Softmax", (x(2, 3, 5),), {"axis": 1}),
    ("ReduceLogSumExp", (x(2, 3, 5), [0, -1]), {"keepdims": 0}),
    ("ReduceProd", (x(2, 3, 5), [0, 2]), {}),
    ("ReduceMax", (x(2, 3, 5), [1]), {}),
    ("CumSum", (x(2, 3, 5), 1), {"exclusive": 1, "reverse": 1}),
    ("TopK", (x(2, 7), [3]), {"largest": 0}),
    ("Slice", (x(7, 5), [5, 0], [0, 3], [0, -1], [-2, 1]), {}),
    ("Split", (x(7, 2), [2, 5]), {}),
    ("Pad", (x(3, 5), [1, 2, 2, 1]), {"mode": "reflect"}),
    ("Pad", (x(3, 5), [1, -2, 0, 3]), {}),
    ("Expand", (x(3, 1), [2, 1, 5]), {}),
    ("Tile", (x(3, 2), [2, 3]), {}),
    ("Gather", (x(7, 3), torch.tensor([[1, -1]])), {}),
    ("GatherND", (x(3, 5, 2), torch.tensor([[1], [-1], [0]])), {"batch_dims": 1}),
    ("ScatterElements", (x(3, 5), torch.tensor([[0, -1]]), x(1, 2)), {"axis": 1, "reduction": "mul"}),
    ("ScatterND", (x(3, 5), torch.tensor([[0], [2]]), x(2, 5)), {"reduction": "max"}),
    ("DepthToSpace", (x(2, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    ("Resize", (x(1, 2, 5, 7), None, [1.0, 1.0, 1.6, 0.4]), {"mode": "cubic", "antialias": 1}),
    ("Resize", (x(1, 2, 5, 7), None, None, [1, 2, 8, 9]), {"mode": "linear"}),
    ("GridSample", (x(1, 2, 5, 7), x(1, 3, 2, 2) - 0.6), {"mode": "linear", "padding_mode": "border"}),
    ("DequantizeLinear", (torch.tensor([[1, -2, 3]]), x(3)), {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), SMOOTH)
def test_gradients_are_those_of_finite_differences(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    function: Callable[..., Any] = OPS[op].load()
    differentiable = [
        value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    ]

    def floats(*values: Any) -> tuple[Tensor, ...]:
        outputs = function(*values, **attributes)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(output for output in outputs if output.is_floating_point())

    assert torch.autograd.gradcheck(floats, differentiable)


@pytest.mark.parametrize(("op", "inputs", "attributes"), SMOOTH)
def test_a_node_of_an_fx_graph_calls_the_function(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    graph = fx.Graph()
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    nodes = iter([graph.placeholder(f"x{i}") for i in range(len(tensors))])
    arguments = tuple(next(nodes) if isinstance(value, Tensor) else value for value in inputs)
    graph.output(graph.call_function(OPS[op].load(), arguments, attributes))
    module: Callable[..., Any] = fx.GraphModule(torch.nn.Module(), graph)
    torch.testing.assert_close(module(*tensors), OPS[op].load()(*inputs, **attributes), rtol=0, atol=0)


@pytest.mark.parametrize(("op", "inputs", "attributes"), SMOOTH)
def test_everything_happens_on_the_device_of_the_inputs(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    # torch refuses to mix the device "meta", which has shapes and no values, with any other
    function = OPS[op].load()
    outputs = function(*(v.to("meta") if isinstance(v, Tensor) else v for v in inputs), **attributes)
    expected = function(*inputs, **attributes)
    for output, value in zip(*(o if isinstance(o, tuple) else (o,) for o in (outputs, expected)), strict=True):
        assert (output.device.type, output.shape, output.dtype) == ("meta", value.shape, value.dtype)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Conv", (x(0, 4, 5, 7), x(6, 2, 3, 2), x(6)), {"group": 2, "pads": [1, 0, 2, 1]}),
        ("ConvTranspose", (x(0, 3, 5), x(3, 2, 3)), {"pads": [1, 0], "strides": [2]}),
        ("Gemm", (x(0, 5), x(7, 5), x(7)), {"transB": 1}),
        ("MaxPool", (x(0, 3, 7, 5),), {"kernel_shape": [3, 2], "pads": [2, 0, 1, 1]}),
        ("AveragePool", (x(0, 3, 7, 5),), {"kernel_shape": [3, 2], "dilations": [2, 2], "ceil_mode": 1}),
        ("GlobalAveragePool", (x(0, 3, 5, 7),), {}),
        ("GlobalMaxPool", (x(0, 3, 5, 7),), {}),
        ("BatchNormalization", (x(0, 3, 5), x(3), x(3), x(3), x(3)), {}),
        ("LayerNormalization", (x(0, 3, 5), x(5), x(5)), {}),
        ("Softmax", (x(0, 3),), {}),
        ("Reshape", (x(0, 3, 5), [0, 15]), {}),
        ("Flatten", (x(0, 3, 5),), {}),
        ("Resize", (x(0, 3, 5, 5), None, [1.0, 1.0, 1.5, 2.0]), {"mode": "linear"}),
        ("Gather", (x(0, 3), torch.tensor([0])), {"axis": 1}),
        ("ReduceMean", (x(0, 3, 5), [1, 2]), {}),
        ("TopK", (x(0, 7), [3]), {}),
    ],
)
def test_an_empty_batch_keeps_its_shape(op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]) -> None:
    function = OPS[op].load()
    full = function(torch.ones([2, *inputs[0].shape[1:]], dtype=torch.float64), *inputs[1:], **attributes)
    empty = function(*inputs, **attributes)
    full, empty = (full[0], empty[0]) if isinstance(full, tuple) else (full, empty)
    assert tuple(empty.shape) == (0, *full.shape[1:])


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        case
        for case in SMOOTH
        if case[0] in {"ReduceProd", "CumSum", "TopK", "Slice", "Split", "Pad", "Expand", "Tile"}
    ],
)
def test_shape_like_inputs_may_be_tensors_or_lists(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    function = OPS[op].load()
    tensors = [torch.tensor(value) if isinstance(value, list | int) else value for value in inputs]
    torch.testing.assert_close(function(*tensors, **attributes), function(*inputs, **attributes), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "case", [case for case in SMOOTH if case[0] not in {"Conv", "ConvTranspose", "GridSample", "DequantizeLinear"}]
)
def test_the_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    op, inputs, attributes = case
    given = [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs]
    if "stash_type" in attributes:
        attributes = {**attributes, "stash_type": 1}
    outputs = OPS[op].load()(*given, **attributes)
    assert (outputs[0] if isinstance(outputs, tuple) else outputs).dtype == dtype


one = torch.ones(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Conv", (one, one), {"auto_pad": "SAME"}, "Conv: auto_pad is 'SAME'; expected NOTSET"),
        ("Conv", (torch.ones([1] * 6), torch.ones([1] * 6)), {}, "Conv: number of spatial dimensions is 4"),
        ("ConvTranspose", (one, one), {"output_padding": [1, 0]}, r"ConvTranspose: output padding.* is \[1, 0\]"),
        ("BatchNormalization", (one, *[one] * 4), {"training_mode": 1}, "BatchNormalization: training_mode is 1"),
        ("Dropout", (one, 0.5, torch.tensor(True)), {}, "Dropout: training_mode is True"),
        ("BitShift", (one, one), {"direction": "UP"}, "BitShift: direction is 'UP'; expected LEFT or RIGHT"),
        ("Gelu", (one,), {"approximate": "erf"}, "Gelu: approximate is 'erf'; expected none or tanh"),
        ("Pad", (one, [1] * 8), {"mode": "mirror"}, "Pad: mode is 'mirror'; expected constant, reflect"),
        ("DepthToSpace", (one,), {"blocksize": 1, "mode": "X"}, "DepthToSpace: mode is 'X'; expected DCR or CRD"),
        ("SpaceToDepth", (one,), {"blocksize": 1, "mode": "X"}, "SpaceToDepth: mode is 'X'; expected DCR or CRD"),
        ("ScatterElements", (one, one.long(), one), {"reduction": "avg"}, "ScatterElements: reduction is 'avg'"),
        ("Cast", (one,), {"to": 17}, "Cast: to is 17"),
        ("Constant", (), {"value_string": "a"}, "Constant: value_string is 'a'"),
        ("QuantizeLinear", (one, one.max()), {"output_dtype": 17}, "QuantizeLinear: output_dtype is 17"),
        (
            "QuantizeLinear",
            (one, one.max(), one.max()),
            {},
            "QuantizeLinear: dtype of the zero point is torch.float32",
        ),
        ("DequantizeLinear", (one, one.max()), {}, "DequantizeLinear: dtype of the input is torch.float32"),
        (
            "Resize",
            (one, None, [1.0] * 4),
            {"mode": "area"},
            "Resize: mode is 'area'; expected nearest, linear, cubic",
        ),
        ("GridSample", (one, one), {"mode": "area"}, "GridSample: mode is 'area'"),
        ("GlobalMaxPool", (torch.ones(2, 3),), {}, "GlobalMaxPool: number of dimensions is 2; expected at least 3"),
    ],
)
def test_refusals_name_op_attribute_and_value(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        OPS[op].load()(*inputs, **attributes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Conv", (one, one), {"kernel_shape": [3, 3]}, r"Conv: kernel_shape: is \[3, 3\]; expected \[4, 4\]"),
        ("Conv", (one, one), {"strides": [1]}, "Conv: strides: has 1 entries; expected 2"),
        ("MaxPool", (one,), {"kernel_shape": [2, 2], "pads": [1, 1]}, "MaxPool: pads: has 2 entries; expected 4"),
        ("Softmax", (one,), {"axis": 4}, "Softmax: axis: is 4; expected -4 to 3"),
        ("Squeeze", (one, [2]), {}, "Squeeze: axes: dimension 2 has size 4; expected 1"),
        ("Split", (one,), {}, "Split: has neither"),
        ("Pad", (one, [1, 2]), {}, "Pad: pads: has 2 entries; expected 8"),
        ("Concat", (one, one), {"axis": 7}, "Concat: axis: is 7"),
        (
            "Attention",
            (one[0], one[0], one[0]),
            {},
            "Attention: has 3 dimensions and no numbers of heads; expected q_n",
        ),
        ("Gemm", (one, one), {}, "Gemm: the inputs have 4 and 4 dimensions; expected 2 and 2; use MatMul"),
        ("Resize", (one,), {}, "Resize: has 0 scales and 0 sizes for 4 axes"),
        ("Constant", (), {}, "Constant: has no value"),
        ("GroupNormalization", (one, one, one), {"num_groups": 2}, "GroupNormalization: num_groups: is 2; expected a"),
        ("QuantizeLinear", (one, torch.ones(3)), {}, r"QuantizeLinear: scale: has shape \[3\]; expected \[1\]"),
        ("DequantizeLinear", (one.long(), torch.ones(3)), {"block_size": 2}, r"\[3\]; expected \[1, 1, 4, 4\]"),
    ],
)
def test_nodes_that_cannot_be_are_told_so(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        OPS[op].load()(*inputs, **attributes)


def test_narrow_integers_stay_in_their_range() -> None:
    quantize, cast = OPS["QuantizeLinear"].load(), OPS["Cast"].load()
    values = torch.tensor([-9.0, -0.5, 1.5, 20.0])
    zero = torch.tensor(3, dtype=torch.uint8)
    assert quantize(values, torch.tensor(1.0), zero, output_dtype=21).tolist() == [0, 3, 5, 15]
    assert quantize(values, torch.tensor(1.0), output_dtype=26).tolist() == [-2, 0, 1, 1]
    assert cast(torch.arange(-9, 9), to=25).tolist() == [i % 4 for i in range(-9, 9)]
    assert cast(torch.arange(-9, 9), to=22).tolist() == [(i + 8) % 16 - 8 for i in range(-9, 9)]


def test_clip_with_crossed_bounds_gives_the_upper_one() -> None:
    clip = OPS["Clip"].load()
    for low in (torch.tensor(2.0), 2.0):
        for high in (torch.tensor([1.0]), 1.0):
            assert clip(torch.tensor(5.0), low, high).tolist() == 1.0


def test_equal_elements_keep_their_order_in_top_k() -> None:
    values, indices = OPS["TopK"].load()(torch.ones(3, 41), 7, largest=1)
    assert values.shape == (3, 7)
    assert indices.tolist() == [list(range(7))] * 3
