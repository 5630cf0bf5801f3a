"""What a search starts from: the placed network, its groups, and a library of them that is kept on disk.

What is kept is named by what it was made from: network, images, recipe, target, widths and version. What was made from
anything else stays where it is and is not used. The network that is placed and not rounded yet is kept too: all widths
start from one, whatever the last digits of a run that goes on with them are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import onnx_ir as ir
import torch

from bitwright import __version__
from bitwright.cost.table import Table
from bitwright.data.batches import Batches
from bitwright.errors import InputError, first_line
from bitwright.mixed.library import Library, needed, stock
from bitwright.mixed.space import Space, space_of
from bitwright.pipeline import BatchNorm, State, Step, run_chain
from bitwright.plan.encoding import from_plain, to_plain
from bitwright.plan.plan import Plan
from bitwright.recipes.recipe import load_recipe
from bitwright.verbs.preparing import digest_of
from bitwright.verbs.quantized import model_bytes, steps_of
from bitwright.verbs.terminal import Terminal

#: Of a state, what batch norms that were folded say of a layer; equalization rescales it.
STATISTICS = ("batchnorm", "input_batchnorm")


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Which widths a search chooses from.

    Attributes:
        weights: of weights; the target's own from 2 to 8 bits if empty.
        activations: of activations; those of the plan stay if empty.
        tied: weight and activation of a layer have the same bits.
        ends: first and last layers move too.
    """

    weights: tuple[int, ...] = ()
    activations: tuple[int, ...] = ()
    tied: bool = False
    ends: bool = False


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where quantizers stand before a search moves them; as `quantize` has it.

    Attributes:
        target: row of `TARGETS`.
        set: widths of what does not move.
        bits_of_ends: of the ends, 8 if None.
        recipe: calibrates every width; a name or a path.
        settings: of its steps.
    """

    target: str
    set: tuple[str, ...]
    bits_of_ends: int | None
    recipe: str
    settings: Mapping[str, Mapping[str, Any]]


class Shelf:
    """Files that are kept between searches, each named by what it was made from.

    Args:
        folder: where they are.
        origin: what they are made from: network, images, recipe.
    """

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder, self.origin = folder, origin
        self.used: set[Path] = set()

    def path(self, kind: str, made_from: str, suffix: str) -> Path:
        """The file of something that was made from this, beside the origin."""
        digest = hashlib.sha256(f"{__version__}\n{self.origin}\n{made_from}".encode()).hexdigest()[:16]
        found = self.folder / f"{kind}-{digest}{suffix}"
        self.used.add(found)
        return found

    def others(self) -> int:
        """Files there that this search did not use."""
        there = self.folder.glob("[!.]*-*") if self.folder.is_dir() else ()  # hidden: what a killed run began
        return sum(path not in self.used for path in there)


def base_network(
    network: ir.Model, batches: Batches, placing: Placing, widths: Widths, terminal: Terminal,
    ties: Callable[[State], Sequence[Sequence[str]]] | None = None, plan: Plan | None = None,
) -> tuple[State, Space]:  # fmt: skip
    """The placed network, and its groups; `ties` says which regions have to move together, a plan where to place.

    Raises:
        InputError: no step of the recipe places, or nothing can move.
        UnsupportedError: a width that the target lacks.
    """
    steps = steps_of(
        network, batches, load_recipe(placing.recipe), placing.settings, terminal, target=placing.target,
        set=placing.set if plan is None else (), ends=placing.bits_of_ends if plan is None else None, plan=plan,
    )  # fmt: skip
    before = _until_placed(steps, placing.recipe)
    state = run_chain(before, State(model=network, reference=network), batches)
    weights = widths.weights or tuple(b for b in _own_widths(state, widths.ends) if b > 1)
    together = ties(state) if ties is not None else ()
    space = space_of(state, weights, widths.activations, tied=widths.tied, ends=widths.ends, ties=together)
    return state, space


def _own_widths(state: State, ends: bool) -> Sequence[int]:
    widest = space_of(state, (), ends=ends)
    return tuple(dict.fromkeys(choice.weight for choice in widest.groups[0].choices if choice.weight is not None))


def _until_placed(steps: Sequence[Step], recipe: str) -> list[Step]:
    for i, step in enumerate(steps):
        if "plan" in step.gives:
            return list(steps[: i + 1])
    raise InputError(f"recipe {recipe!r}", "places no quantizers", "a recipe with the step place")


def library_of(
    network: ir.Model, batches: Batches, placing: Placing, base: State, space: Space, shelf: Shelf, terminal: Terminal
) -> Library:
    """Every group at every width, from the shelf where it is there; a file that cannot be read is made anew."""
    recipe = load_recipe(placing.recipe)
    assert base.plan is not None
    path = shelf.path("placed", base.plan.dumps(), ".pt")
    kept = _read(path, base, base.plan, terminal)
    if kept is None:
        _write(path, base)
    placed = kept or base

    def quantized(plan: Plan) -> State:
        path = shelf.path("library", plan.dumps(), ".pt")
        found = _read(path, placed, plan, terminal)
        if found is None:
            steps = steps_of(
                network, batches, recipe, placing.settings, Terminal(seed=terminal.seed), target=placing.target,
                set=(), ends=None, plan=plan,
            )  # fmt: skip
            found = run_chain(steps[len(_until_placed(steps, placing.recipe)) :], placed.but(plan=plan), batches)
            _write(path, found)
        advance(1)
        return found

    with terminal.progress("calibrate each width", len(needed(space))) as advance:
        return stock(space, placed, quantized)


def origin_of(network: ir.Model, batches: Batches, placing: Placing, seed: int) -> str:
    """What a shelf's files are made from, in words."""
    return "\n".join([
        hashlib.sha256(model_bytes(network)).hexdigest(), digest_of(batches), str(batches.batch_size),
        repr(placing), repr(load_recipe(placing.recipe)), str(seed),
    ])  # fmt: skip


def cost_widths(base: State, space: Space) -> tuple[list[int], list[int]]:
    """Widths that tables of costs need: those of the groups, and those that stay."""
    products = [product for each in space.products.values() for product in each]
    weights = {choice.weight for group in space.groups for choice in group.choices if choice.weight is not None}
    moving = {c.activation for group in space.groups for c in group.choices if c.activation is not None}
    held = {product.widths[1] for product in products if product.roots}
    return sorted(weights, reverse=True), sorted(moving | held, reverse=True)


def tables_of(cost: Any, base: State, space: Space) -> tuple[Table, ...]:
    """Tables of a cost at the widths of a space."""
    found: tuple[Table, ...] = cost.tables(base, *cost_widths(base, space))
    return found


def _read(path: Path, base: State, plan: Plan, terminal: Terminal) -> State | None:
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True)
        encodings = {site: from_plain(entry, site) for site, entry in content["encodings"].items()}
        overlay, facts = content["overlay"], frozenset(content["facts"])
        statistics = {
            key: {weight: BatchNorm(**found) for weight, found in content[key].items()} for key in STATISTICS
        }
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        terminal.note(f"note: {path} cannot be read ({first_line(error)}): made anew")
        return None
    return base.but(plan=plan, encodings=encodings, overlay=overlay, facts=facts, **statistics)


def _write(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    encodings = {site: to_plain(encoding) for site, encoding in state.encodings.items()}
    statistics = {key: {weight: vars(found) for weight, found in getattr(state, key).items()} for key in STATISTICS}
    torch.save(
        {"encodings": encodings, "overlay": dict(state.overlay), "facts": sorted(state.facts), **statistics}, part
    )
    os.replace(part, path)
