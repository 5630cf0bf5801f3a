"""What holds for every row of `COSTS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.cost import COSTS
from bitwright.cost.table import Once, Table, total
from bitwright.cost.timing import Timer
from bitwright.cost.workload import Workload, candidates, with_widths
from bitwright.errors import InputError, UnsupportedError
from bitwright.pipeline import State
from bitwright.targets.anybits import ANYBITS
from bitwright.targets.onnxruntime_x64 import ONNXRUNTIME_X64_AVX2

#: Costs whose tables are near and not exact, and what their sums may be off.
NEAR = {"size": 320.0}
NETWORKS = [
    ("small_residual", "onnxruntime-x64-avx2"), ("small_vit", "onnxruntime-x64"), ("small_residual", "paper"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_timing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model takes a microsecond a byte: nothing is timed, and nothing is kept."""
    monkeypatch.setattr(Timer, "__call__", lambda self, model: len(model) / 1e3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize(("network", "target"), NETWORKS)
def test_the_table_adds_up_to_the_cost(name: str, network: str, target: str, placed: Callable[..., State]) -> None:
    cost = COSTS[name].load()()
    state = placed(network, "W=4,A=8", target=target)
    if name == "latency" and target in ("anybits", "paper"):
        with pytest.raises(UnsupportedError, match="no runtime here executes files for"):
            cost.tables(state)
        return
    tables = cost.tables(state, weights=[4, 2], activations=[8, 4])
    assert {t.unit for t in tables} == {cost.unit} and len({t.reference for t in tables}) == 1
    assert tables[0].reference == pytest.approx(cost.reference(state))
    assert total(tables) == pytest.approx(cost.of(state))
    if name == "latency":  # measured: what its sums predict is the matter of tests of its own
        return
    load = Workload(state.model, state.plan)
    changed = [p for p in load.products if p.has_choice]
    assert [p.name for p in changed] == list(tables[0].now) and len(changed) >= 5
    read: dict[str, int] = {}
    choice = {}
    for i, product in enumerate(changed):
        options = list(tables[0][product.name])
        known = next((read[r] for r in product.roots if r in read), options[-1 - i % 2][1])
        read |= dict.fromkeys(product.roots, known)
        choice[product.name] = (2 if i % 3 else 4, known)
    whole = cost.of(state, with_widths(state, choice))
    assert total(tables, choice) == pytest.approx(whole, abs=NEAR.get(name, 1e-6 * whole))


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_is_a_frozen_dataclass_that_says_what_it_is(name: str) -> None:
    cost: Any = COSTS[name].load()
    assert hasattr(cost, "__dataclass_fields__") and cost.__doc__
    assert all(field.name in cost.__doc__ for field in dataclasses.fields(cost))
    assert cost() == cost() and hash(cost()) == hash(cost())


@pytest.mark.parametrize("name", [name for name in COSTS if name not in ("latency", "macs", "memory")])
def test_fewer_bits_never_cost_more(name: str, placed: Callable[..., State]) -> None:
    state = placed("small_residual", "W=4,A=8", target="anybits")
    (table,) = COSTS[name].load()().tables(state, weights=[8, 4, 2], activations=[8, 4])
    for costs in table.entries.values():
        a = max(a for _, a in costs)
        assert costs[8, a] >= costs[4, a] >= costs[2, a]


def test_candidates_are_what_the_target_has() -> None:
    assert candidates(ONNXRUNTIME_X64_AVX2)[0] == [7, 6, 5, 4, 3, 2, 1]
    assert candidates(ANYBITS) == ([8, 7, 6, 5, 4, 3, 2, 1], [8, 7, 6, 5, 4, 3, 2, 1])
    assert candidates(ANYBITS, [2, 16], [4]) == ([16, 2], [4])
    with pytest.raises(UnsupportedError, match="8-bit weights"):
        candidates(ONNXRUNTIME_X64_AVX2, [8])
    with pytest.raises(UnsupportedError, match="9-bit activations"):
        candidates(ONNXRUNTIME_X64_AVX2, [], [9])


def test_widths_of_a_plan(residual: State) -> None:
    load = Workload(residual.model, residual.plan)
    assert {p.name: p.widths for p in load.products} == {"a": (7, 8), "b": (7, 4)}
    assert load.speakers == {"x": "a", "h": "b"}
    plan = with_widths(residual, {"b": (1, 2)})
    changed = Workload(residual.model, plan)
    assert {p.name: p.widths for p in changed.products} == {"a": (7, 8), "b": (1, 2)}
    spec = plan.qspec("b")
    assert spec is not None and spec.format == "binary"


def test_regions_that_share_an_encoding_need_one_width(placed: Callable[..., State]) -> None:
    state = placed("small_residual", "W=4,A=8")
    load = Workload(state.model, state.plan)
    (root,) = [r for r in load.speakers if sum(r in p.roots for p in load.products) > 1]
    first, second = [p.name for p in load.products if root in p.roots]
    with pytest.raises(InputError, match="expected one width for one encoding"):
        with_widths(state, {first: (4, 8), second: (4, 4)})
    (table,) = COSTS["bops"].load()().tables(state)
    assert table[second]  # what a search has to keep together it finds in `Product.roots`


def test_layers_in_float_and_with_few_bit_weights_only(placed: Callable[..., State]) -> None:
    state = placed("small_residual", "fc:W=4,A=float", "body.0.0:float", target="onnxruntime-x64")
    load = {p.name: p for p in Workload(state.model, state.plan).products}
    assert load["body.0.0"].widths == (32, 32) and not load["body.0.0"].has_choice
    fc = load["fc"]
    assert (fc.widths, fc.in_integers, fc.has_choice, fc.roots) == ((4, 32), False, True, ())
    (weights,) = COSTS["weights"].load()().tables(state, weights=[2])
    assert weights["fc"] == {(4, 32): fc.weight_elements / 2, (2, 32): fc.weight_elements / 4}
    (bops,) = COSTS["bops"].load()().tables(state, weights=[2])
    assert set(bops["fc"].values()) == {fc.macs * 1024}  # computed in float
    with pytest.raises(InputError, match="reads an activation of 8 bits; expected 32"):
        with_widths(state, {"fc": (2, 8)})
    dynamic = placed("small_residual", "fc:A=dynamic", target="onnxruntime-x64")
    (product,) = [p for p in Workload(dynamic.model, dynamic.plan).products if p.name == "fc"]
    assert product.in_integers and product.widths == (8, 8) and product.roots == ()


def test_a_table_refuses_what_it_does_not_have(residual: State) -> None:
    (table,) = COSTS["bops"].load()().tables(residual, weights=[4], activations=[8])
    with pytest.raises(InputError, match="the table has no such region; choose from a, b"):
        table.total({"c": (4, 8)})
    with pytest.raises(InputError, match="has no cost at W3A8; expected one of W4A8, W7A8"):
        table.total({"a": (3, 8)})
    with pytest.raises(InputError, match="has no quantized weight"):
        with_widths(residual, {"sum": (4, 8)})


def test_what_is_due_once_is_paid_once() -> None:
    entries = {r: {(8, 8): 4.0, (2, 8): 1.0} for r in "ab"}
    once = (Once(cost=10.0, weights=frozenset({2, 3})),)
    now = dict.fromkeys("ab", (8, 8))
    table = Table(unit="B", rest=1.0, entries=entries, now=now, reference=9.0, once=once)
    assert table.total() == 9.0
    assert table.total({"a": (2, 8)}) == 16.0 and table.total({"a": (2, 8), "b": (2, 8)}) == 13.0
