"""What stays float says why, and drags along only what moves its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from bitwright.errors import UnsupportedError
from bitwright.graph.regions import Region
from bitwright.placement.checks import CHECKS
from bitwright.placement.place import Placement, place
from bitwright.plan.spec import Float, QSpec, Shared
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64 as TARGET

Network = Callable[..., ir.Model]
PAD = {"pads": [1, 1, 1, 1]}
CONV = ("Conv", "x c.weight c.bias", "a", PAD)  # [N, 3, 8, 8] -> [N, 3, 8, 8]
WEIGHTS: dict[str, Any] = {"c.weight": (3, 3, 3, 3), "c.bias": (3,), "d.weight": (3, 3, 3, 3)}


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def refused(placement: Placement) -> dict[str, str]:
    return {region.name: reason for region, reason in placement.refused.items()}


# What follows the integer convolution `c` ([N, 3, 8, 8], value `a`), with constants of its own, and why it is float.
REASONS: dict[str, tuple[list[tuple[Any, ...]], dict[str, Any], str]] = {
    "no kernel": (
        [("ConvTranspose", "a t.weight", "y")], {"t.weight": (3, 2, 2, 2)},
        "ConvTranspose has no integer kernel on onnxruntime-x64",
    ),
    "matrices": (
        [("ReduceMax", "a axes", "v", {"keepdims": 0}), ("MatMul", "a v", "y")], {"axes": int64(0, 1, 2)},
        "MatMul: an operand is a vector, or of unknown shape",
    ),
    "constant weight": (
        [("GlobalAveragePool", "a", "p"), ("Mul", "d.weight p", "w"), ("Conv", "a w", "y", PAD)], {},
        "Conv: its weight is computed, not constant",
    ),
    "constant bias": (
        [("GlobalAveragePool", "a", "p"), ("ReduceMax", "p axes", "b", {"keepdims": 0}),
         ("Conv", "a d.weight b", "y", PAD)],
        {"axes": int64(0, 2, 3)}, "Conv: its bias is computed, not constant",
    ),
    "bias of two axes": (
        [("Flatten", "a", "f"), ("Gemm", "f g.weight g.bias", "y", {"transB": 1})],
        {"g.weight": (10, 192), "g.bias": (1, 10)}, r"Gemm: its bias has shape [1,10], one value for each output",
    ),
    "plain gemm, alpha": (
        [("Flatten", "a", "f"), ("Gemm", "f g.weight g.bias", "y", {"transB": 1, "alpha": 0.5})],
        {"g.weight": (10, 192), "g.bias": (10,)}, "Gemm: it scales its operands (alpha or beta is not 1)",
    ),
    "plain gemm, beta": (
        [("Flatten", "a", "f"), ("Gemm", "f g.weight g.bias", "y", {"transB": 1, "beta": 2.0})],
        {"g.weight": (10, 192), "g.bias": (10,)}, "Gemm: it scales its operands (alpha or beta is not 1)",
    ),
    "plain gemm, transposed": (
        [("Flatten", "a", "f"), ("Gemm", "f g.weight", "y", {"transA": 1})],
        {"g.weight": (1, 10)}, "Gemm: its input is transposed (transA=1)",
    ),
    "two activations": (
        [("MatMul", "k a", "y")], {"k": (2, 3, 8, 8)}, "MatMul: one operand is a constant",
    ),
    "fed": (
        [("LogSoftmax", "a", "m"), ("Add", "a m", "y")], {}, "Add: what it reads comes from float ops",
    ),
    "between, product": ([("Mul", "a a", "y")], {}, "Table: no integer op reads what it gives"),
    "between, constant": ([("Add", "a k", "y")], {"k": (3, 1, 1)}, "Add: no integer op reads what it gives"),
    "between, gate": (
        [("GlobalAveragePool", "a", "p"), ("Mul", "a p", "y")], {}, "Mul: no integer op reads what it gives",
    ),
    "between, function": ([("Gelu", "a", "y")], {}, "Table: no integer op reads what it gives"),
    "between, softmax": ([("Softmax", "a", "y")], {}, "Softmax: no integer op reads what it gives"),
    "between, function of float ops": (
        [("LogSoftmax", "a", "m"), ("Gelu", "m", "n"), ("Transpose", "n", "y", {"perm": [0, 1, 3, 2]})], {},
        "Transpose stands between float ops",
    ),
    "nearest": (
        [("Resize", "a roi scales", "y", {"mode": "linear"})],
        {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)},
        "Resize: it mixes neighbours (mode linear)",
    ),
    "plain average, ceil": (
        [("AveragePool", "a", "y", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})], {},
        "AveragePool: it rounds its output size up (ceil_mode=1)",
    ),
    "plain average, dilated": (
        [("AveragePool", "a", "y", {"kernel_shape": [2, 2], "dilations": [2, 2]})], {},
        "AveragePool: its window is dilated",
    ),
    "plain average, automatic": (
        [("AveragePool", "a", "y", {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"})], {},
        "AveragePool: its padding is automatic",
    ),
    "constant bounds": (
        [("ReduceMax", "a", "m", {"keepdims": 0}), ("Abs", "m", "hi"), ("Clip", "a lo hi", "y")],
        {"lo": np.float32(0)}, "Clip: its bounds are computed, not constant",
    ),
    "constant arguments": (
        [("ReduceMax", "a", "m", {"keepdims": 0}), ("Pad", "a pads m", "y")], {"pads": int64(0, 0, 1, 1, 0, 0, 1, 1)},
        "Pad: its arguments are computed, not constant",
    ),
    "zero padding": (
        [("Pad", "a pads one", "y")], {"pads": int64(0, 0, 1, 1, 0, 0, 1, 1), "one": np.float32(1)},
        "Pad: it pads with a value other than zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_a_float_region_says_why(case: str, network: Network) -> None:
    nodes, constants, told = REASONS[case]
    placement = place(network([CONV, *nodes], {**WEIGHTS, **constants}), TARGET)
    reasons = [reason for region, reason in placement.refused.items() if region.output.name == "y"]
    assert len(reasons) == 1 and reasons[0].startswith(told)
    spec = placement.plan.sites["y"]
    assert isinstance(spec, Float) and told in spec.reason
    assert told in placement.plan.refused[spec.reason.partition(":")[0]]
    assert isinstance(placement.plan.sites["a"], QSpec), "the convolution before it stays integer"


def test_every_check_is_tried() -> None:
    tried = {case.partition(",")[0] for case in REASONS}
    assert set(CHECKS) - tried == {
        "float32", "no indices", "all activations", "an activation", "known axis", "float64 on torch",
        "no counted padding", "one shape",
    }, "the others have tests of their own"  # fmt: skip


def region_of(node: ir.Node, *inputs: ir.Value) -> Region:
    return Region(
        name="r", nodes=(node,), inputs=inputs, weight=None, bias=None, output=node.outputs[0], bounds=None, macs=0,
        is_table=node.op_type == "Gelu",
    )  # fmt: skip


def test_checks_that_files_rarely_fail() -> None:
    """What folding leaves no trace of, an axis whose length only the data says, and an op that torch does not run."""
    k = ir.Value(name="k", const_value=ir.tensor(np.ones(3, np.float32)))
    joined = region_of(ir.Node("", "Concat", [k, k], {"axis": ir.AttrInt64("axis", 0)}))
    assert CHECKS["an activation"](joined) == "all its operands are constants"
    x = ir.Value(name="x", shape=ir.Shape(["N", 3, "T"]), type=ir.TensorType(ir.DataType.FLOAT))
    along = {axis: ir.Node("", "Softmax", [x], {"axis": ir.AttrInt64("axis", axis)}) for axis in (1, 2, -1)}
    told = {axis: CHECKS["known axis"](region_of(node, x)) for axis, node in along.items()}
    assert told == {1: None} | dict.fromkeys((2, -1), "the number of elements along its axis is open")
    assert CHECKS["float64 on torch"](region_of(ir.Node("", "Gelu", [x]), x)) is None
    other = region_of(ir.Node("some.domain", "Gelu", [x]), x)
    assert CHECKS["float64 on torch"](other) == "Gelu has no float64 form here"


def test_checks_of_openvino() -> None:
    """Padding that a mean counts, and operands that are broadcast."""
    x = ir.Value(name="x", shape=ir.Shape(["N", 3, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    gate = ir.Value(name="gate", shape=ir.Shape(["N", 3, 1, 1]), type=ir.TensorType(ir.DataType.FLOAT))
    told = "its mean counts padding (count_include_pad=1)"
    for pads, counts, reason in ((1, 1, told), (1, 0, None), (0, 1, None)):
        attributes = {
            "pads": ir.AttrInt64s("pads", [pads] * 4), "count_include_pad": ir.AttrInt64("count_include_pad", counts),
        }  # fmt: skip
        assert CHECKS["no counted padding"](region_of(ir.Node("", "AveragePool", [x], attributes), x)) == reason
    assert CHECKS["one shape"](region_of(ir.Node("", "Add", [x, x]), x, x)) is None
    assert CHECKS["one shape"](region_of(ir.Node("", "Mul", [x, gate]), x, gate)) == "its operands differ in shape"


def test_a_mask_beside_attention_scores_is_added_in_float(network: Network) -> None:
    """Its numbers, 0 and -10000, would take all codes of the sum."""
    nodes = [
        ("MatMul", "q k", "scores"), ("Sub", "one m", "n"), ("Mul", "n far", "mask"), ("Add", "scores mask", "masked"),
        ("Softmax", "masked", "p"), ("MatMul", "p v", "y"),
    ]  # fmt: skip
    inputs = {name: ["N", 2, 4, 4] for name in "qkvm"}
    placement = place(network(nodes, {"one": np.float32(1), "far": np.float32(-1e4)}, inputs=inputs), TARGET)
    assert refused(placement)["masked"] == "Add: what it reads comes from float ops"
    assert refused(placement)["p"] == "Softmax: what it reads comes from float ops"
    assert {"scores", "y"} <= {region.name for region in placement.integer}


def test_pieces_of_a_layer_norm_have_no_codes(network: Network) -> None:
    """Written out in float ops between integer convolutions, as older exporters do."""
    nodes = [
        CONV, ("ReduceMean", "a axes", "m"), ("Sub", "a m", "d"), ("Pow", "d two", "s"), ("ReduceMean", "s axes", "v"),
        ("Add", "v eps", "w"), ("Sqrt", "w", "r"), ("Div", "d r", "n"), ("Mul", "n gamma", "g"),
        ("Add", "g beta", "h"),
        ("Conv", "h d.weight", "y", PAD),
    ]  # fmt: skip
    constants = {
        **WEIGHTS, "axes": int64(3), "two": np.float32(2), "eps": np.float32(1e-5), "gamma": (8,), "beta": (8,),
    }  # fmt: skip
    plan = place(network(nodes, constants), TARGET).plan
    assert {s for s in plan.sites if plan.qspec(s) is not None} == {"x", "a", "c.weight", "h", "d.weight", "y"}


def test_indices_that_are_read(network: Network) -> None:
    pool = ("MaxPool", "a", "m i", {"kernel_shape": [2, 2]})
    reader = [("Cast", "i", "f", {"to": 1}), ("Add", "m f", "y")]
    placement = place(network([CONV, pool, *reader], WEIGHTS), TARGET)
    assert refused(placement)["m"] == "MaxPool: its indices are read"
    placement = place(network([CONV, pool, ("Relu", "m", "y")], WEIGHTS), TARGET)
    assert placement.plan.sites["m"] == Shared("a")


def test_values_of_other_types(network: Network) -> None:
    """A Slice whose bounds are computed from the data, and a value that is no float32."""
    bounds = [("ReduceMax", "a", "m"), ("Cast", "m", "n", {"to": 7}), ("Reshape", "n one", "end")]
    nodes = [CONV, *bounds, ("Slice", "a zero end axis", "y")]
    constants = {**WEIGHTS, "one": int64(1), "zero": int64(0), "axis": int64(2)}
    placement = place(network(nodes, constants), TARGET)
    assert refused(placement)["y"] == "Slice: 'end' is int64, not float32"
    assert refused(placement)["end"] == "Reshape: 'n' is int64, not float32"


def test_doubles_stay_float(network: Network) -> None:
    nodes = [CONV, ("Cast", "a", "d", {"to": 11}), ("GlobalAveragePool", "d", "p"), ("Cast", "p", "y", {"to": 1})]
    placement = place(network(nodes, WEIGHTS), TARGET)
    assert refused(placement)["p"] == "GlobalAveragePool: 'd' is double, not float32"


def test_a_weight_and_its_bias_share_the_reason_of_their_region(network: Network) -> None:
    nodes = [CONV, ("ConvTranspose", "a t.weight t.bias", "y")]
    plan = place(network(nodes, {**WEIGHTS, "t.weight": (3, 2, 2, 2), "t.bias": (2,)}), TARGET).plan
    reason = Float("t: ConvTranspose has no integer kernel on onnxruntime-x64")
    assert [plan.sites[s] for s in plan.regions["t"]] == [reason] * 3
    assert set(plan.float_sites()) == {"t.weight", "t.bias", "y"}


def test_copies_between_float_ops_stay_float(network: Network) -> None:
    """x -> LogSoftmax -> Transpose -> Relu -> LogSoftmax, beside an integer convolution."""
    nodes = [
        ("LogSoftmax", "x", "t"), ("Transpose", "t", "u", {"perm": [0, 1, 3, 2]}), ("Relu", "u", "v"),
        ("LogSoftmax", "v", "w"), CONV, ("Mul", "a w", "y"),
    ]  # fmt: skip
    placement = place(network(nodes, WEIGHTS), TARGET)
    for site, kind in (("u", "Transpose"), ("v", "Relu")):
        assert placement.plan.sites[site] == Float(f"{site}: {kind} stands between float ops")
    assert placement.plan.sites["t"] == Float("t: LogSoftmax has no integer kernel on onnxruntime-x64")


def test_copies_beside_an_integer_op_are_integer(network: Network) -> None:
    """Quantized values reach through whole chains of copies, forwards and backwards."""
    after = [CONV, ("Relu", "a", "r"), ("Transpose", "r", "t", {"perm": [0, 1, 3, 2]}), ("LogSoftmax", "t", "y")]
    plan = place(network(after, WEIGHTS), TARGET).plan
    assert plan.sites["t"] == Shared("r") and isinstance(plan.sites["y"], Float)
    before = [("LogSoftmax", "x", "h"), ("Transpose", "h", "t", {"perm": [0, 1, 3, 2]}), ("Relu", "t", "r")]
    plan = place(network([*before, ("Conv", "r c.weight c.bias", "y", PAD)], WEIGHTS), TARGET).plan
    assert plan.sites["h"] == QSpec(bits=8) and plan.sites["t"] == plan.sites["r"] == Shared("h")
    assert plan.sites["x"] == Float("h: LogSoftmax has no integer kernel on onnxruntime-x64")


def test_a_value_between_an_integer_and_a_float_op_is_quantized(network: Network) -> None:
    placement = place(network([CONV, ("LogSoftmax", "a", "y")], WEIGHTS), TARGET)
    assert placement.plan.sites["a"] == QSpec(bits=8) and refused(placement).keys() == {"y"}


def test_a_network_without_any_kernel_is_refused_with_reasons(network: Network) -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"model: has no quantizable op; expected a convolution, gemm, add or pool; "
        r"t: LogSoftmax has no integer kernel on onnxruntime-x64; y: Relu stands between float ops",
    ):
        place(network([("LogSoftmax", "x", "t"), ("Relu", "t", "y")], {}), TARGET)
