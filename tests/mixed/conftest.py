"""Small problems, and every assignment of them; small networks, their groups and libraries of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.mixed.library import Library, stock
from bitwright.mixed.problem import Additive, Assignment, Due, Group, Problem, Values, Width
from bitwright.mixed.space import Space
from bitwright.models import build, example
from bitwright.pipeline import State
from bitwright.plan.plan import Plan
from bitwright.recipes.recipe import load_recipe
from bitwright.verbs.preparing import float_network
from bitwright.verbs.quantized import run_recipe
from bitwright.verbs.stocking import Placing, Widths, base_network
from bitwright.verbs.terminal import Terminal

WIDTHS = tuple(Width(bits, bits) for bits in (8, 6, 4, 3, 2))
Draw = Callable[..., Problem]


def random_table(random: np.random.Generator, sizes: list[int], whole: bool, signed: bool = False) -> Values:
    """Numbers for each choice, most of them falling from choice to choice; whole ones or not."""
    rows = []
    for size in sizes:
        row = np.sort(random.gamma(1.0, 50.0, size))[::-1]
        row = random.permutation(row) if random.random() < 0.3 else row
        row = row - 60 * signed
        rows.append(tuple(float(v) for v in (np.round(row) if whole else row)))
    return tuple(rows)


def random_dues(random: np.random.Generator, sizes: list[int], count: int, most: float) -> tuple[Due, ...]:
    """Things due once for some choices, as tables are for widths: one choice of most groups, or any few of them."""
    every = [(g, c) for g, size in enumerate(sizes) for c in range(size)]
    found = []
    for _ in range(count):
        column, few = int(random.integers(4)), random.random() < 0.5
        taken = [(g, c) for g, c in every if (random.random() < 0.3 if few else c == column)]
        found.append(Due(float(np.round(random.uniform(0, most))), frozenset(taken)))
    return tuple(found)


def draw(
    seed: int, *, groups: int = 6, costs: int = 1, pairs: bool = False, whole: bool = True, once: int = 0
) -> Problem:
    """A problem of groups with 1 to 4 choices; losses of very different size, costs from large to small.

    With `once`, so many things are due once in each cost, and one in the loss.
    """
    random = np.random.default_rng(seed)
    sizes = [int(random.integers(1, 5)) for _ in range(groups)]
    loss = tuple(tuple(10.0 ** random.uniform(-6, 0) * v for v in reversed(row))
                 for row in random_table(random, sizes, whole=False))  # fmt: skip
    terms = {}
    if pairs:
        for g in range(groups - 1):
            matrix = random.normal(0, 1, (sizes[g], sizes[g + 1])) * 10.0 ** random.uniform(-3, 1)
            terms[g, g + 1] = tuple(tuple(map(float, row)) for row in matrix)
    names = ("size", "latency", "energy")[:costs]
    tables = {name: Additive(values=random_table(random, sizes, whole), rest=10.0) for name in names}
    limits = {}
    for name, table in tables.items():
        low, high = (table.rest + sum(map(pick, table.values)) for pick in (min, max))
        limits[name] = low + (high - low) * random.uniform(0.05, 0.9)
    rest = float(random.normal())
    if once:
        tables = {
            name: Additive(values=t.values, rest=t.rest, once=random_dues(random, sizes, once, 100.0))
            for name, t in tables.items()
        }
        limits = {name: limit + 0.7 * sum(d.cost for d in tables[name].once) for name, limit in limits.items()}
    dues = random_dues(random, sizes, 1, 50.0) if once else ()
    return Problem(
        groups=tuple(Group(name=f"g{g}", choices=WIDTHS[:size]) for g, size in enumerate(sizes)),
        loss=Additive(values=loss, rest=rest, pairs=terms, once=dues), costs=tables, limits=limits,
    )  # fmt: skip


@pytest.fixture
def draw_problem() -> Draw:
    return draw


@pytest.fixture
def every() -> Callable[[Problem], list[Assignment]]:
    """All assignments of a problem that are within its limits."""

    def found(problem: Problem) -> list[Assignment]:
        choices = itertools.product(*map(range, problem.sizes))
        return [problem.assignment(c) for c in choices if problem.fits(c)]

    return found


@pytest.fixture(scope="session")
def float_model(exported: Callable[[str], Path]) -> Callable[[str], ir.Model]:
    """`float_model("small_residual")`: the network in float."""
    return cache(lambda name: float_network(exported(name)))


@pytest.fixture(scope="session")
def images(float_model: Callable[[str], ir.Model]) -> Callable[..., Batches]:
    """`images("small_residual")`: 20 random ones in batches of 8, labelled by the float network."""

    @cache
    def found(name: str, count: int = 20) -> Batches:
        module = build(name).eval()
        x = example(module, batch=count)
        with torch.no_grad():
            labels = module(x).argmax(1).numpy()
        (value,) = float_model(name).graph.inputs
        input_name = value.name or ""
        shapes = {input_name: ((None, *module.input_shape), "float32")}
        return open_data({input_name: x.numpy(), "labels": labels}, shapes, batch_size=8)

    return found


@pytest.fixture(scope="session")
def quantized(
    float_model: Callable[[str], ir.Model], images: Callable[..., Batches]
) -> Callable[[str, Plan, str], State]:
    """`quantized("small_residual", plan, recipe)`: a network quantized by a plan from the start."""

    def found(name: str, plan: Plan, recipe: str) -> State:
        return run_recipe(
            float_model(name), images(name), load_recipe(recipe), {}, Terminal(), target=plan.target, set=(),
            ends=None, plan=plan,
        ).state  # fmt: skip

    return found


@pytest.fixture(scope="session")
def spaced(
    float_model: Callable[[str], ir.Model], images: Callable[..., Batches]
) -> Callable[..., tuple[State, Space]]:
    """`spaced("small_residual", weights, activations, tied=..., ends=...)`: a placed network and its groups."""

    @cache
    def found(
        name: str, weights: tuple[int, ...] = (7, 4, 2), activations: tuple[int, ...] = (), *,
        target: str = "onnxruntime-x64-avx2", set: tuple[str, ...] = (), recipe: str = "closed-form", **how: bool,
    ) -> tuple[State, Space]:  # fmt: skip
        placing = Placing(target=target, set=set, bits_of_ends=None, recipe=recipe, settings={})
        widths = Widths(weights=weights, activations=activations, **how)
        return base_network(float_model(name), images(name), placing, widths, Terminal())

    return found


@pytest.fixture(scope="session")
def library(
    spaced: Callable[..., tuple[State, Space]], quantized: Callable[[str, Plan, str], State]
) -> Callable[..., Library]:
    """`library("small_residual", weights, activations, ...)`: calibrated by closed-form; each is made once."""

    @cache
    def found(name: str, *widths: Any, recipe: str = "closed-form", **how: Any) -> Library:
        base, space = spaced(name, *widths, recipe=recipe, **how)
        return stock(space, base, lambda plan: quantized(name, plan, recipe))

    return found
