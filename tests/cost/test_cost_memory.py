from __future__ import annotations

from collections.abc import Callable

from bitwright.cost.memory import Memory, cuts, largest
from bitwright.cost.table import total
from bitwright.cost.workload import Workload, with_widths
from bitwright.pipeline import State


def names(state: State) -> list[tuple[str, set[str | None]]]:
    return [(region, {v.name for v in alive}) for region, alive in cuts(Workload(state.model, state.plan))]


def test_what_is_alive_while_each_region_runs(residual: State) -> None:
    # h is read by the sum too; the flattened y is the s that it shows, and stays to the end.
    assert names(residual) == [
        ("a", {"x", "h"}), ("b", {"h", "d"}), ("sum", {"h", "d", "s"}), ("flat", {"s"}),
    ]  # fmt: skip


def test_the_peak_is_the_largest_cut(residual: State) -> None:
    assert Memory().reference(residual) == 3 * 32 * 4  # h, d and s of 32 elements
    assert Memory().of(residual) == 32 * 4 / 8 + 2 * 32  # h has 4 bits


def test_only_cuts_that_no_other_contains_are_kept(residual: State) -> None:
    found = cuts(Workload(residual.model, residual.plan))
    assert [region for region, _ in largest(found)] == ["a", "sum"]
    assert [region for region, _ in largest([found[0], found[0]])] == ["a"]
    tables = Memory().tables(residual, weights=[7], activations=[8, 4, 2])
    # At 8 bits of x and h: 16 + 32 at a, 32 + 32 + 32 at the sum; each table varies with what its cut holds.
    assert [t.total({"a": (7, 8), "b": (7, 8)}) for t in tables] == [48, 96]
    assert [t.total({"a": (7, 2), "b": (7, 8)}) for t in tables] == [36, 96]
    assert total(tables, {"a": (7, 8), "b": (7, 2)}) == 72


def test_the_width_of_weights_changes_nothing(placed: Callable[..., State]) -> None:
    state = placed("small_residual", "W=4,A=8")
    narrow = with_widths(state, {p.name: (2, p.widths[1]) for p in Workload(state.model, state.plan).products})
    assert Memory().of(state, narrow) == Memory().of(state)
    assert Memory().reference(state) == Memory().of(state) * 4
