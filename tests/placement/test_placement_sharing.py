"""Sites joined by ops that move codes have one encoding, spoken for by one of them; biases are derived."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.graph.overlay import initializer
from bitwright.graph.regions import find_regions
from bitwright.pipeline import BatchNorm, State
from bitwright.placement.place import place
from bitwright.placement.separate import separate_constants
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived, Float, QSpec, Shared
from bitwright.ptq.place import Place
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64 as TARGET

Network = Callable[..., ir.Model]
A, B, C = (("Conv", f"x {n}.weight", n, {"pads": [1, 1, 1, 1]}) for n in "abc")  # [N, 3, 8, 8] each
WEIGHTS: dict[str, Any] = {f"{n}.weight": (3, 3, 3, 3) for n in "abc"}


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def speakers(plan: Plan) -> dict[str, str]:
    """`{activation: site whose encoding it has}`, of those that share one."""
    return {s: plan.resolve(s)[0] for s, spec in plan.sites.items() if isinstance(spec, Shared)}


def test_a_concat_speaks_for_what_it_joins(network: Network) -> None:
    plan = place(network([A, B, C, ("Concat", "a b c", "y", {"axis": 1})], WEIGHTS), TARGET).plan
    assert speakers(plan) == {"a": "y", "b": "y", "c": "y"} and plan.sites["y"] == QSpec(bits=8)


def test_nested_concats_are_one_group(network: Network) -> None:
    nodes = [A, B, C, ("Concat", "a b", "p", {"axis": 1}), ("Concat", "p c", "y", {"axis": 1})]
    plan = place(network(nodes, WEIGHTS), TARGET).plan
    assert speakers(plan) == {"a": "y", "b": "y", "p": "y", "c": "y"}


def test_concats_with_an_operand_in_common_are_one_group(network: Network) -> None:
    nodes = [A, B, C, ("Concat", "a b", "p", {"axis": 1}), ("Concat", "c b", "q", {"axis": 1}), ("Add", "p q", "y")]
    plan = place(network(nodes, WEIGHTS), TARGET).plan
    assert set(speakers(plan)) == {"a", "b", "c", "p"} and set(speakers(plan).values()) == {"q"}
    assert plan.sites["y"] == QSpec(bits=8), "the sum has a range of its own"


def test_a_concat_of_one_value_twice(network: Network) -> None:
    plan = place(network([A, ("Concat", "a a", "y", {"axis": 1})], WEIGHTS), TARGET).plan
    assert speakers(plan) == {"a": "y"}


MOVERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "MaxPool": (("MaxPool", "a", "m", {"kernel_shape": [2, 2], "strides": [2, 2]}), {}),
    "Reshape": (("Reshape", "a shape", "m"), {"shape": int64(0, 3, 64)}),
    "Flatten": (("Flatten", "a", "m"), {}),
    "Transpose": (("Transpose", "a", "m", {"perm": [0, 2, 3, 1]}), {}),
    "Unsqueeze": (("Unsqueeze", "a axes", "m"), {"axes": int64(1)}),
    "Slice": (("Slice", "a starts ends", "m"), {"starts": int64(0, 0, 2, 2), "ends": int64(9, 3, 6, 6)}),
    "Pad": (("Pad", "a pads", "m"), {"pads": int64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Pad, reflected": (("Pad", "a pads", "m", {"mode": "reflect"}), {"pads": int64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Relu": (("Relu", "a", "m"), {}),
    "Clip": (("Clip", "a lo hi", "m"), {"lo": np.float32(-1), "hi": np.float32(1)}),
}


@pytest.mark.parametrize("kind", MOVERS)
def test_what_moves_codes_repeats_the_encoding_of_its_input(kind: str, network: Network) -> None:
    node, constants = MOVERS[kind]
    # `a` has a second reader, so that the convolution does not absorb Relu and Clip.
    model = network([A, node, ("GlobalAveragePool", "a", "z")], {**WEIGHTS, **constants}, ["m", "z"])
    placement = place(model, TARGET)
    assert speakers(placement.plan) == {"m": "a"} and not placement.refused
    assert {r.name: rule.how for r, rule in placement.integer.items()} == {"a": "kernel", "m": "codes", "z": "kernel"}


def test_a_chain_of_movers_has_one_speaker(network: Network) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [("MaxPool", "x", "p", pool), ("Flatten", "p", "f"), ("Gemm", "f g.weight", "y", {"transB": 1})]
    plan = place(network(nodes, {"g.weight": (10, 48)}), TARGET).plan
    assert speakers(plan) == {"p": "x", "f": "x"}, "also where the chain begins at the network's input"


def test_movers_join_a_concat(network: Network) -> None:
    """What a concat joins through a pool, and what a pool repeats of a concat, is all one group."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        A, ("MaxPool", "a", "p", pool), B, ("MaxPool", "b", "q", pool), ("Concat", "p q", "c", {"axis": 1}),
        ("Flatten", "c", "f"), ("Gemm", "f g.weight", "y", {"transB": 1}),
    ]  # fmt: skip
    plan = place(network(nodes, {**WEIGHTS, "g.weight": (10, 96)}), TARGET).plan
    assert speakers(plan) == dict.fromkeys(["a", "b", "p", "q", "f"], "c")


def test_relu_alone_repeats_and_relu_after_a_layer_is_absorbed(network: Network) -> None:
    absorbed = place(network([A, ("Relu", "a", "y")], WEIGHTS), TARGET).plan
    assert "a" not in absorbed.sites and absorbed.sites["y"] == QSpec(bits=8)


def test_biases_are_derived_from_their_own_input_and_weight(network: Network) -> None:
    nodes = [("Conv", "x a.weight a.bias", "a"), ("Conv", "a b.weight b.bias", "y")]
    sizes = {"a.weight": (3, 3, 1, 1), "a.bias": (3,), "b.weight": (3, 3, 1, 1), "b.bias": (3,)}
    plan = place(network(nodes, sizes), TARGET).plan
    assert plan.sites["a.bias"] == Derived("x", "a.weight") and plan.sites["b.bias"] == Derived("a", "b.weight")


@pytest.mark.parametrize(("transposed", "axis"), [(1, 0), (0, 1)])
def test_weights_have_a_scale_for_each_output_channel(transposed: int, axis: int, network: Network) -> None:
    shape = (10, 192) if transposed else (192, 10)
    nodes = [("Flatten", "x", "f"), ("Gemm", "f g.weight g.bias", "y", {"transB": transposed})]
    plan = place(network(nodes, {"g.weight": shape, "g.bias": (10,)}), TARGET).plan
    assert plan.sites["g.weight"] == QSpec(bits=8, signed=True, symmetric=True, narrow=True, axis=axis)


# Constants that several layers read.

TWICE = [("Conv", "x s.weight s.bias", "a"), ("Conv", "a s.weight s.bias", "b"), ("Conv", "b s.weight", "y")]
ONCE: dict[str, Any] = {"s.weight": (3, 3, 1, 1), "s.bias": (3,)}


def test_layers_get_constants_of_their_own(network: Network) -> None:
    model = network(TWICE, ONCE)
    separated, copies = separate_constants(model, {}, TARGET)
    assert copies == {"s.weight#2": "s.weight", "s.bias#2": "s.bias", "s.weight#3": "s.weight"}
    assert [r.name for r in find_regions(separated)] == [r.name for r in find_regions(model)] == ["s", "s#2", "s#3"]
    for new, old in copies.items():
        assert torch.equal(initializer(separated, {}, new), initializer(model, {}, old))
    plan = place(separated, TARGET).plan
    assert plan.sites["s.bias"] == Derived("x", "s.weight") and plan.sites["s.bias#2"] == Derived("a", "s.weight#2")
    assert set(model.graph.initializers) == set(ONCE), "the model itself is left as it was"


def test_networks_that_share_nothing_are_not_copied(network: Network) -> None:
    model = network([A, B, ("Add", "a b", "y")], WEIGHTS)
    assert separate_constants(model, {}, TARGET) == (model, {})


def test_a_weight_that_a_float_op_reads_too_keeps_its_values_for_that(network: Network) -> None:
    nodes = [("Conv", "x s.weight", "a"), ("Mul", "a s.weight", "y")]
    separated, copies = separate_constants(network(nodes, {"s.weight": (3, 3, 1, 1)}), {}, TARGET)
    assert copies == {"s.weight#2": "s.weight"}
    plan = place(separated, TARGET).plan
    assert "s.weight" not in plan.sites and isinstance(plan.sites["s.weight#2"], QSpec)


def test_one_reader_may_be_float_and_the_other_not(network: Network) -> None:
    model = network(TWICE, ONCE)
    state = State(model=model, reference=model, overlay={"s.weight": torch.ones(3, 3, 1, 1)})
    statistics = BatchNorm(gamma=torch.ones(3), beta=torch.ones(3), mean=torch.ones(3), var=torch.ones(3), eps=0.1)
    placed = Place(set=("s#2:float",))(state.but(batchnorm={"s.weight": statistics}))
    assert placed.plan is not None and isinstance(placed.plan.sites["s.weight"], QSpec)
    assert isinstance(placed.plan.sites["s.weight#2"], Float) and isinstance(placed.plan.sites["s.weight#3"], QSpec)
    assert torch.equal(placed.tensor("s.weight#2"), torch.ones(3, 3, 1, 1)), "copies are of the overlay's values"
    assert placed.batchnorm == dict.fromkeys(["s.weight", "s.weight#2", "s.weight#3"], statistics)
