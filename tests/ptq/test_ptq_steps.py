"""What every step promises, tried on every row of STEPS: a new state, the old one untouched, the same each time."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.errors import InputError
from bitwright.graph.normalise import normalise
from bitwright.graph.open import open_model
from bitwright.pipeline import State, Step, check_chain, run_chain
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq import STEPS
from bitwright.ptq.place import Place
from bitwright.recipes.recipe import load_recipe, make_steps

ASSETS = Path(__file__).parents[1] / "assets"
#: What must be so once a fact is given.
TRUTHS: dict[str, Callable[[State], bool]] = {
    "folded": lambda s: not any(n.op_type == "BatchNormalization" for n in s.model.graph) and bool(s.batchnorm),
    "plan": lambda s: s.plan is not None and bool(s.plan.sites),
    "encodings": lambda s: s.plan is not None and all(
        site in s.encodings for site, spec in s.plan.sites.items() if isinstance(spec, QSpec)
    ),
    "corrected biases": lambda s: s.plan is not None and any(
        site in s.overlay for site, spec in s.plan.sites.items() if isinstance(spec, Derived)
    ),
    "rounded weights": lambda s: any(e.codes is not None for e in s.encodings.values()),
}  # fmt: skip


#: Settings, where a step has them, in place of the defaults: weights to round, and few turns of what takes many.
SETTINGS: dict[str, Any] = {
    "iterations": 3, "step_iterations": 3, "correction": 1, "candidates": 3, "rounds": 1, "images": 32,
}  # fmt: skip


@cache
def steps() -> Mapping[str, Step]:
    """Every row with its default settings, but for these."""
    made = {}
    for name, row in STEPS.items():
        cls = row.load()
        given = {key: value for key, value in SETTINGS.items() if key in cls.__dataclass_fields__}
        made[name] = cls(**({"set": ("W=4",)} if name == "place" else given))
    return made


@cache
def start() -> State:
    model = normalise(open_model(ASSETS / "digits.onnx"))
    return State(model=model, reference=model)


@cache
def images() -> Batches:
    return open_data(ASSETS / "digits_calib.npz", {"image": ((None, 1, 8, 8), "float32")}, batch_size=16, limit=32)


@cache
def before(name: str) -> State:
    """A state in which the step's needs are met, by the steps that give them, in the order of the table."""
    chain: list[Step] = []
    missing = set(steps()[name].needs)
    for other in reversed(list(STEPS)):
        if missing & steps()[other].gives and other != name:
            step = steps()[other]
            if name == "rapq" and isinstance(step, Place):  # it moves steps that are powers of two
                step = dataclasses.replace(step, set=("W=pow2-4",))
            chain.insert(0, step)
            missing = (missing - steps()[other].gives) | steps()[other].needs
    assert not missing, f"no step gives {missing}"
    return run_chain(chain, start(), images())


def snapshot(state: State) -> Any:
    """Everything of a state, as values that can be compared."""
    tensors = {
        **{f"overlay {k}": v for k, v in state.overlay.items()},
        **{f"scale {k}": e.scale for k, e in state.encodings.items()},
        **{f"zero {k}": e.zero_point for k, e in state.encodings.items()},
        **{f"codes {k}": e.codes for k, e in state.encodings.items() if e.codes is not None},
        **{f"gamma {k}": b.gamma for k, b in state.batchnorm.items()},
    }
    graph = ir.to_proto(state.model).SerializeToString(deterministic=True)
    reference = ir.to_proto(state.reference).SerializeToString(deterministic=True)
    plan = None if state.plan is None else state.plan.dumps()
    return graph, reference, plan, {k: v.tolist() for k, v in tensors.items()}, state.facts, len(state.log)


@pytest.mark.parametrize("name", STEPS)
def test_it_is_a_frozen_dataclass_with_keywords_and_defaults(name: str) -> None:
    step = steps()[name]
    cls: Any = type(step)
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only and field.default is not dataclasses.MISSING for field in dataclasses.fields(cls))
    # What steps share is told where it is shared.
    documented = "\n".join(inspect.getdoc(c) or "" for c in cls.__mro__ if dataclasses.is_dataclass(c))
    assert all(f"{field.name}: " in documented for field in dataclasses.fields(cls))
    assert isinstance(step.needs, frozenset) and isinstance(step.gives, frozenset) and step.gives <= set(TRUTHS)


@pytest.mark.parametrize("name", STEPS)
def test_it_gives_what_it_says_and_changes_nothing_else(name: str) -> None:
    old = before(name)
    was = snapshot(old)
    new = steps()[name](old, images(), None)
    assert isinstance(new, State) and new is not old
    assert snapshot(old) == was, "the old state was changed"
    for fact in steps()[name].needs | steps()[name].gives:
        assert TRUTHS[fact](new), fact
    assert new.reference is old.reference
    assert new.facts == old.facts, "these belong to run_chain"
    assert new.log[: len(old.log)] == old.log and len(new.log) <= len(old.log) + 1, "what a step tells comes last"


@pytest.mark.parametrize("name", STEPS)
def test_its_facts_are_not_true_without_it(name: str) -> None:
    """Otherwise the checks of TRUTHS would check nothing."""
    assert not any(TRUTHS[fact](before(name)) for fact in steps()[name].gives)


@pytest.mark.parametrize("name", STEPS)
def test_it_does_the_same_each_time(name: str) -> None:
    first, second = (steps()[name](before(name), images(), None) for _ in range(2))
    assert snapshot(first) == snapshot(second)


@pytest.mark.parametrize("name", [n for n in STEPS if STEPS[n].load()().needs])
def test_its_needs_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=rf"step 1 \({type(steps()[name]).__name__}\): needs "):
        check_chain([steps()[name]])


@pytest.mark.parametrize("name", [n for n in STEPS if getattr(STEPS[n].load(), "clashes", ())])
def test_its_clashes_are_checked(name: str) -> None:
    step = steps()[name]
    clashes: frozenset[str] = getattr(step, "clashes", frozenset())
    facts = {*step.needs, *clashes}
    with pytest.raises(
        InputError, match=rf"step 1 \({type(step).__name__}\): comes after {min(clashes)}, given by the "
    ):
        check_chain([step], facts)


def test_the_default_recipe_leaves_every_fact_true() -> None:
    chain = make_steps(load_recipe("fast"), {"place": {"set": ["W=4"]}})
    end = run_chain(chain, start(), images())
    given = frozenset().union(*(step.gives for step in chain))
    assert all(TRUTHS[fact](end) for fact in given) and len(end.log) == len(chain)
    assert end.plan is not None
    biases = [site for site, spec in end.plan.sites.items() if isinstance(spec, Derived)]
    assert biases and not any(site in end.encodings for site in biases), "a bias follows from what it is derived from"
    assert all(torch.isfinite(e.scale).all() for e in end.encodings.values())
