"""Chains of steps: needs are checked before anything runs, facts add up, each step leaves a line in the log."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest
import torch

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import Progress, State, check_chain, run_chain

Ran = list[str]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A step that notes that it ran, and sets one tensor of the overlay."""

    name: str = "mark"
    ran: Ran = dataclasses.field(default_factory=list, repr=False)

    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset({"marked"})

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        self.ran.append(self.name)
        if images_done is not None:
            images_done(3)
        return state.but(overlay={**state.overlay, self.name: torch.ones(1)})


@dataclass(frozen=True, kw_only=True)
class Sharpen(Mark):
    """A step that needs what others give."""

    needs: ClassVar[frozenset[str]] = frozenset({"marked", "folded"})
    gives: ClassVar[frozenset[str]] = frozenset({"sharp"})


@pytest.fixture
def state() -> State:
    weight = ir.Value(name="w", const_value=ir.tensor([1.0, 2.0]))
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[weight], opset_imports={"": 21}), ir_version=10)
    return State(model=model, reference=model)


def test_needs_are_met_by_steps_before_or_by_the_state() -> None:
    check_chain([])
    check_chain([Mark(), Mark()])
    check_chain([Mark(), Sharpen()], {"folded"})
    check_chain([Sharpen()], ["folded", "marked"])


@pytest.mark.parametrize(
    ("make", "facts", "told"),
    [
        (lambda: [Sharpen()], (), r"step 1 \(Sharpen\): needs folded, marked; expected a step before it that gives "
                                  "this; the steps before it give nothing"),
        (lambda: [Mark(), Sharpen()], (), r"step 2 \(Sharpen\): needs folded; .*; the steps before it give marked"),
        (lambda: [Sharpen(), Mark()], {"folded"}, r"step 1 \(Sharpen\): needs marked; .* give folded"),
        (lambda: [Mark(), Mark(), Sharpen()], {"a"}, r"step 3 \(Sharpen\): needs folded; .* give a, marked"),
    ],
)  # fmt: skip
def test_unmet_needs_are_named(make: Callable[[], list[Mark]], facts: set[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_chain(make(), facts)


class Late(Mark):
    """Must not come after a mark."""

    clashes = frozenset({"marked"})


def test_what_must_not_come_after_a_fact_names_who_gave_it() -> None:
    check_chain([Late(), Mark()])
    with pytest.raises(
        InputError, match=r"step 2 \(Late\): comes after marked, given by step 1 \(Mark\); expected none"
    ):
        check_chain([Mark(), Late()])
    with pytest.raises(
        InputError, match=r"step 1 \(Late\): comes after marked, given by the state that it starts from"
    ):
        check_chain([Late()], {"marked"})


def test_nothing_runs_before_the_whole_chain_is_checked(state: State) -> None:
    ran: Ran = []
    with pytest.raises(InputError, match="needs folded"):
        run_chain([Mark(ran=ran), Sharpen(ran=ran)], state, None)
    assert ran == []


def test_a_chain_runs_in_order_and_adds_up(state: State) -> None:
    ran: Ran = []
    start = state.but(facts=frozenset({"folded"}))
    end = run_chain([Mark(name="a", ran=ran), Sharpen(name="b", ran=ran)], start, None)
    assert ran == list(end.overlay) == ["a", "b"]
    assert end.facts == {"folded", "marked", "sharp"}
    assert start.facts == {"folded"} and not start.overlay and not start.log


def test_the_log_names_each_step_with_its_settings_and_its_time(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="bitwright"):
        end = run_chain([Mark(name="a"), Mark(name="b")], state, None)
        end = run_chain([Mark(name="c")], end, None)
    assert [event.step for event in end.log] == ["Mark(name='a')", "Mark(name='b')", "Mark(name='c')"]
    assert all(0 <= event.seconds < 60 for event in end.log)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Mark"] * 3


def test_progress_is_passed_on(state: State) -> None:
    told: list[int] = []
    run_chain([Mark(), Mark()], state, None, images_done=told.append)
    assert told == [3, 3]


def test_the_overlay_hides_the_graph(state: State) -> None:
    assert state.tensor("w").tolist() == [1.0, 2.0]
    changed = state.but(overlay={"w": torch.tensor([5.0])})
    assert changed.tensor("w").tolist() == [5.0] and state.tensor("w").tolist() == [1.0, 2.0]


def test_states_do_not_change(state: State) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.plan = None  # type: ignore[misc]
    with pytest.raises(TypeError, match="unexpected keyword"):
        state.but(plans=None)
