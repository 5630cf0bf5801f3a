"""Which layers move together, the widths that each can have, and what an assignment costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bitwright.cost import COSTS
from bitwright.cost.workload import with_widths
from bitwright.errors import InputError, UnsupportedError
from bitwright.graph.normalise import normalise
from bitwright.mixed.space import Space, space_of
from bitwright.pipeline import State, run_chain
from bitwright.ptq.fold_batchnorm import FoldBatchNorm
from bitwright.ptq.place import Place
from bitwright.verbs.stocking import Widths, tables_of

GENERATOR = np.random.default_rng(0)
#: What a sum of sizes may be off, in bytes (`tests/cost`).
NEAR = 320
Spaced = Callable[..., tuple[State, Space]]


def names(space: Space) -> list[list[str]]:
    return [[product.name for product in space.products[group.name]] for group in space.groups]


def conv(name: str, reads: str, inputs: int, outputs: int) -> tuple[list[Any], Any]:
    weight = GENERATOR.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [reads, name], [f"{name}_out"], name=name),
        helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"], name=f"{name}_relu"),
    ]
    return nodes, numpy_helper.from_array(weight, name)


def placed(nodes: list[Any], weights: list[Any], outputs: list[str], target: str, *settings: str) -> State:
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 2, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], weights,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = normalise(ir.from_proto(made))
    return run_chain([FoldBatchNorm(), Place(target=target, set=settings)], State(model=model, reference=model), None)


# Groups.


def test_where_weights_alone_vary_each_layer_is_a_group(spaced: Spaced) -> None:
    _, space = spaced("small_residual")
    assert names(space) == [
        ["body.1.conv1"], ["body.1.conv2"], ["body.2.downsample.0"], ["body.2.conv1"], ["body.2.conv2"],
        ["body.2.conv3"],
    ]  # fmt: skip
    assert {tuple(map(str, group.choices)) for group in space.groups} == {("W7", "W4", "W2")}
    assert set(space.roots.values()) == {()}
    assert space.parameters == 576 + 576 + 256 + 64 + 576 + 256


def test_where_activations_vary_layers_that_read_one_encoding_are_a_group(spaced: Spaced) -> None:
    _, space = spaced("small_residual", (7, 4), (8, 4))
    assert names(space)[2] == ["body.2.downsample.0", "body.2.conv1"] and len(space.groups) == 5
    assert space.groups[2].name == "body.2.downsample.0 and 1 more" and space.groups[2].parameters == 256 + 64
    choices = {tuple(map(str, group.choices)) for group in space.groups}
    assert choices == {("W7A8", "W4A8", "W7A4", "W4A4")}  # from the widest down, by the product of both
    widths = space.widths([0, 0, 3, 0, 0])
    assert widths["body.2.downsample.0"] == widths["body.2.conv1"] == (4, 4) and widths["body.1.conv1"] == (7, 8)


def test_the_ends_stay_unless_they_are_let_go(spaced: Spaced) -> None:
    _, held = spaced("small_residual")
    assert held.fixed == {"body.0.0": "an end of the network", "fc": "an end of the network"}
    _, free = spaced("small_residual", ends=True)
    assert free.fixed == {} and names(free) == [["body.0.0"], *names(held), ["fc"]]


def test_what_an_end_reads_stays_for_all_who_read_it(spaced: Spaced) -> None:
    state, space = spaced("small_residual", (7, 4), (8, 4))
    read_by_ends = {"x", "avgpool"} & set(map(str, state.plan.sites)) if state.plan else set()
    assert not read_by_ends & {root for roots in space.roots.values() for root in roots}
    _, free = spaced("small_residual", (7, 4), (8, 4), ends=True)
    assert len({root for roots in free.roots.values() for root in roots}) == len(free.groups)


def test_what_is_read_together_with_something_fixed_stays() -> None:
    """`c` reads g and h joined, at one width, and h is what the last layer `d` reads: then g must not move either."""
    parts = [conv("a", "x", 4, 4), conv("b", "a_relu", 4, 4), conv("c", "joined", 8, 4), conv("e", "c_relu", 4, 4)]
    nodes = [*parts[0][0], *parts[1][0], helper.make_node("Concat", ["a_relu", "b_relu"], ["joined"], axis=1)]
    last, weight = conv("d", "b_relu", 4, 4)
    nodes += [*parts[2][0], *parts[3][0], *last]
    weights = [*(part[1] for part in parts), weight]
    state = placed(nodes, weights, ["d_relu", "e_relu"], "paper", "W=4,A=4")
    space = space_of(state, (4, 2), (4, 2))
    assert ["b"] in names(space) and ["c"] in names(space)
    at = {group.name: group for group in space.groups}
    assert {str(choice) for choice in at["c"].choices} == {"W4", "W2"} and space.roots["c"] == ()
    narrow = [len(group.choices) - 1 for group in space.groups]
    assert state.plan is not None
    kept = with_widths(state, space.widths(narrow))
    spec = kept.qspec("b_relu")
    assert spec is not None and spec.bits == 8  # what the last layer reads


def test_tied_widths(spaced: Spaced) -> None:
    _, space = spaced("small_residual", tied=True)
    assert {tuple(map(str, group.choices)) for group in space.groups} == {("W7A7", "W4A4", "W2A2")}


@pytest.mark.parametrize(
    ("weights", "activations", "how", "told"),
    [
        ((4, 4), (), {}, "weights: 4, 4: a width twice; expected different widths"),
        ((4, 2), (8, 8), {}, "activations: 8, 8: a width twice"),
        ((4, 2), (8, 4), {"tied": True}, "activations: are given .8, 4., and tied to the weights; expected one of"),
    ],
)
def test_what_contradicts_itself_is_refused(
    weights: tuple[int, ...], activations: tuple[int, ...], how: dict[str, bool], told: str, spaced: Spaced
) -> None:
    with pytest.raises(InputError, match=told):
        spaced("small_residual", weights, activations, **how)


@pytest.mark.parametrize(
    ("weights", "activations", "how", "told"),
    [
        ((8, 4), (), {}, "8-bit weights; expected weights of 1, 2, 3, 4, 5, 6, 7 bits, as onnxruntime-x64-avx2"),
        ((4,), (9,), {}, "9-bit activations; expected activations of"),
        ((9, 8), (), {"target": "onnxruntime-x64"}, "9-bit weights"),
    ],
)
def test_widths_that_the_target_lacks_are_refused(
    weights: tuple[int, ...], activations: tuple[int, ...], how: dict[str, Any], told: str, spaced: Spaced
) -> None:
    with pytest.raises(UnsupportedError, match=told):
        spaced("small_residual", weights, activations, **how)


def test_a_network_without_a_layer_that_may_move_is_refused() -> None:
    nodes, weight = conv("a", "x", 4, 4)
    with pytest.raises(InputError, match="no region has a quantized weight that may move; expected a network"):
        space_of(placed(nodes, [weight], ["a_relu"], "onnxruntime-x64-avx2"), (4, 2))
    with pytest.raises(InputError, match="no region has a quantized weight"):
        space_of(placed(nodes, [weight], ["a_relu"], "onnxruntime-x64-avx2", "a:A=float"), (4, 2))


def test_ends_that_are_let_go_need_nothing_between_them() -> None:
    """The widths of a target are known of a network that is all ends, too."""
    nodes, weight = conv("a", "x", 4, 4)
    state = placed(nodes, [weight], ["a_relu"], "onnxruntime-x64-avx2")
    assert names(space_of(state, (4, 2), ends=True)) == [["a"]]
    assert Widths(ends=True).weights == ()
    assert [str(choice) for choice in space_of(state, (), ends=True).groups[0].choices][:2] == ["W7", "W6"]


# Costs.


@pytest.mark.parametrize(
    ("network", "weights", "activations", "how"),
    [
        ("small_residual", (7, 4, 3, 2, 1), (), {}),
        ("small_residual", (7, 4, 2), (8, 4), {"ends": True}),
        ("small_inverted_residual", (7, 3), (), {"tied": True}),
    ],
)
def test_a_sum_is_the_cost_of_the_network(
    network: str, weights: tuple[int, ...], activations: tuple[int, ...], how: dict[str, bool], spaced: Spaced
) -> None:
    state, space = spaced(network, weights, activations, **how)
    draws = [[int(GENERATOR.integers(len(group.choices))) for group in space.groups] for _ in range(4)]
    for name in ("weights", "bops", "linear", "memory"):
        cost = COSTS[name].load()()
        sums = [space.cost(table) for table in tables_of(cost, state, space)]
        for choices in draws:
            plan = with_widths(state, space.widths(choices))
            assert max(one.of(choices) for one in sums) == pytest.approx(cost.of(state, plan)), name


@pytest.mark.parametrize("name", ["weights", "bops", "linear", "energy", "size"])
def test_a_sum_knows_what_a_layer_in_float_costs(name: str, spaced: Spaced) -> None:
    """Of one layer the cost of the network with it in float, but for what is stored by the way of its neighbours."""
    state, space = spaced("small_residual", (7, 4, 32))
    cost = COSTS[name].load()()
    found = [space.cost(table) for table in tables_of(cost, state, space)]
    widest = [[str(c) for c in group.choices].index("W7") for group in space.groups]
    for g, group in enumerate(space.groups):
        assert [str(c) for c in group.choices] == ["float", "W7", "W4"]
        choices = [0 if h == g else c for h, c in enumerate(widest)]
        plan = with_widths(state, space.widths(choices))
        assert space.products[group.name][0].name in plan.refused
        # A layer reads codes that others give, and what it gives others take as codes: values in float cost more.
        near = NEAR if name == "size" else 0.05 * cost.of(state, plan) if name == "energy" else 0
        assert max(one.of(choices) for one in found) == pytest.approx(cost.of(state, plan), abs=near), group.name
        assert cost.of(state, plan) > cost.of(state, with_widths(state, space.widths(widest)))


def test_a_group_in_float_reads_activations_at_their_widest(spaced: Spaced) -> None:
    _, space = spaced("small_residual", (4, 32), (8, 4))
    assert [str(c) for c in space.groups[0].choices] == ["float", "W4A8", "W4A4"]
    assert {c.activation for group in space.groups for c in group.choices if c.in_float} == {8}
    _, tied = spaced("small_residual", (7, 4, 32), tied=True)
    assert [str(c) for c in tied.groups[0].choices] == ["float", "W7A7", "W4A4"]


def test_float_alone_is_no_choice(spaced: Spaced) -> None:
    with pytest.raises(InputError, match="weights: have no width but float"):
        spaced("small_residual", (32,))


def test_a_sum_of_sizes_is_near_with_what_is_in_the_file_once(spaced: Spaced) -> None:
    state, space = spaced("small_residual", (7, 4, 3, 2))
    cost = COSTS["size"].load()()
    (table,) = tables_of(cost, state, space)
    found = space.cost(table)
    assert found.once and max(due.cost for due in found.once) > 1000  # tables of bytes, several kB here
    mixed = [int(GENERATOR.integers(4)) for _ in space.groups]
    for choices in ([2] * len(space.groups), mixed):
        written = cost.of(state, with_widths(state, space.widths(choices)))
        assert abs(found.of(choices) - written) <= NEAR
    bare = sum(row[2] for row in found.values) + found.rest
    assert abs(bare - cost.of(state, with_widths(state, space.widths([2] * len(space.groups))))) > NEAR


def test_what_a_fixed_layer_owes_anyway_is_due_without_a_choice(spaced: Spaced) -> None:
    free_state, free = spaced("small_residual", (7, 3))
    held_state, held = spaced("small_residual", (7, 3), set=("fc:W=3",))
    tables = [tables_of(COSTS["size"].load()(), *pair)[0] for pair in ((free_state, free), (held_state, held))]
    dues = [
        [due for due in space.cost(table).once if due.cost > 1000]
        for space, table in zip((free, held), tables, strict=True)
    ]
    assert len(dues[0]) == 1 and dues[1] == []  # the table of 3 bits


def test_the_mean_of_bits_is_by_weights(spaced: Spaced) -> None:
    _, space = spaced("small_residual")
    sizes = np.array([group.parameters for group in space.groups])
    assert space.mean_bits([0] * 6) == 7 and space.mean_bits([2] * 6) == 2
    expected = (7 * sizes[0] + 2 * sizes[1:].sum()) / sizes.sum()
    assert space.mean_bits([0, 2, 2, 2, 2, 2]) == pytest.approx(expected)
