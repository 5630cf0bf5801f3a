"""Values that are kept between runs of a board: the same outputs, less computed, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library, stock
from bitwright.mixed.rerun import Rerun
from bitwright.mixed.sensitivity.msq import Classifiers, Msq
from bitwright.mixed.sensitivity.points import points, tied
from bitwright.mixed.space import space_of

NETWORK = "small_residual"
IMAGES = 20


def board_of(library: Library) -> LibraryBoard:
    """Every layer's feature, and the scores."""
    model = library.state.model
    return LibraryBoard(library, [*(p.feature for p in points(model)), model.graph.outputs[0].name or ""])


def inputs_of(batches: Batches) -> list[dict[str, Tensor]]:
    return [{key: torch.from_numpy(array) for key, array in batch.inputs.items()} for batch in batches]


def bytes_kept(rerun: Rerun) -> int:
    every = [tensor for cuts in rerun._kept.values() for values in cuts.values() for tensor in values.values()]
    return sum(tensor.nbytes for tensor in every)


def walk(library: Library, steps: int, seed: int = 0) -> list[list[int | None]]:
    """Groups turned one or two at a time, up and down, and now and then none or all."""
    random, groups = np.random.default_rng(seed), library.space.groups
    at: list[int | None] = [0] * len(groups)
    found = [list(at)]
    for step in range(steps):
        for _ in range((1, 2, 0, 1, len(groups))[step % 5]):
            g = int(random.integers(len(groups)))
            at[g] = int(random.integers(len(groups[g].choices)))
        found.append(list(at))
    return found


@pytest.mark.parametrize("memory", [0.0, 300e3, float("inf")])
@pytest.mark.parametrize("tied_widths", [False, True])
def test_whatever_is_turned_outputs_are_those_of_a_whole_run(
    library: Callable[..., Library], images: Callable[..., Batches], memory: float, tied_widths: bool
) -> None:
    made = library(NETWORK, tied=tied_widths)
    rerun, whole = Rerun(board_of(made), IMAGES, memory), board_of(made)
    batches = inputs_of(images(NETWORK))
    before: list[Any] = [None] * len(batches)
    skipped = 0
    for choices in walk(made, 20):
        rerun.turn(choices)
        whole.turn(choices)
        for number, inputs in enumerate(batches):
            found, (expected, _) = rerun.run(number, inputs), whole.run(inputs)
            skipped += sum(x is None for x in found)
            assert found[-1] is not None
            # What is not computed again is what it was.
            before[number] = [old if x is None else x for x, old in zip(found, before[number] or found, strict=True)]
            assert all(map(torch.equal, before[number], expected))
    assert bytes_kept(rerun) <= memory * 1.2  # the last batch is filled up: 24 rows for 20 images
    assert (skipped > 0) == (memory > 0) and (bytes_kept(rerun) > 0) == (memory > 0)


def test_only_what_follows_the_group_that_was_turned_is_computed(
    library: Callable[..., Library], images: Callable[..., Batches]
) -> None:
    made = library(NETWORK)
    rerun, (inputs, *_) = Rerun(board_of(made), IMAGES, float("inf")), inputs_of(images(NETWORK))
    groups = len(made.space.groups)
    rerun.turn([0] * groups)
    assert None not in rerun.run("a", inputs)
    computed = []
    for g in range(groups):
        rerun.turn([int(other == g) for other in range(groups)])
        rerun.turn([0] * groups)
        computed.append(sum(x is not None for x in rerun.run("a", inputs)))
    assert computed == sorted(computed, reverse=True) and computed[0] > computed[-1] >= 1
    rerun.turn([0] * groups)
    assert len({id(x) for x in rerun.run("a", inputs) if x is not None}) == 1  # nothing was turned: the scores alone
    rerun.turn([0] * groups, rest=False)
    assert None not in rerun.run("a", inputs)
    assert None not in rerun.run("b", inputs)  # a batch that was not there before has nothing kept


def test_msq_walks_the_same_way_whatever_it_may_keep(
    library: Callable[..., Library], images: Callable[..., Batches], spaced: Any, quantized: Any
) -> None:
    base, _ = spaced(NETWORK)
    space = space_of(base, (7, 2), (7, 4), ties=tied(base))
    made = stock(space, base, lambda plan: quantized(NETWORK, plan, "closed-form"))
    batches = images(NETWORK)
    found = [
        [step.choices for step in Msq(memory=memory, augment=augment).trajectory(made, batches, batches, {}, {})]
        for augment in (False, True) for memory in ("0B", "")
    ]  # fmt: skip
    assert found[0] == found[1] and found[2] == found[3] and len(found[0]) > 5
    kept, anew = (Classifiers(Msq(memory=memory), made, batches, batches) for memory in ("", "0B"))
    for choices in found[0]:
        assert kept.measure(choices) == anew.measure(choices)
    with pytest.raises(InputError, match=r"msq\.memory: is '3 apples'; expected a number of bytes, as 4GiB"):
        Msq(memory="3 apples")
