"""Networks near one: what a library foretells of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitwright.data.batches import Batches
from bitwright.mixed import near as module
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.near import near
from bitwright.mixed.problem import Additive, Choices, Problem
from bitwright.mixed.refine import refine, steps_down, steps_up
from bitwright.mixed.sensitivity.kl import Kl
from bitwright.mixed.sensitivity.measure import Whole


@pytest.fixture(scope="module")
def both(library: Callable[..., Library]) -> Library:
    """Five groups of 4 and 2 bits, which read 8 or 4 bits."""
    return library("small_residual", (4, 2), (8, 4))


@pytest.fixture(scope="module")
def whole(both: Library, images: Callable[..., Batches]) -> Whole:
    return Whole(both, images("small_residual"), Kl().metric, Kept(None))


def bounded(library: Library, most: float) -> Problem:
    """Weights' and activations' bits summed over groups are at most so many."""
    groups = library.space.groups
    bits = tuple(tuple(float((c.weight or 0) + (c.activation or 0)) for c in g.choices) for g in groups)
    nothing = Additive(values=tuple((0.0,) * len(g.choices) for g in groups))
    return Problem(groups=groups, loss=nothing, costs={"bits": Additive(values=bits)}, limits={"bits": most})


def middle(library: Library) -> Choices:
    """Every group at W2A8."""
    return tuple(
        next(i for i, c in enumerate(g.choices) if (c.weight, c.activation) in ((2, 8), (2, None)))
        for g in library.space.groups
    )


def test_moves_are_measured_as_whole_networks_are(both: Library, whole: Whole) -> None:
    at = middle(both)
    moves = steps_down(both.space.groups, at) + steps_up(both.space.groups, at)
    assert {str(both.space.groups[g].choices[c]) for g, c in moves} >= {"W4A8", "W2A4"}
    for (g, c), loss in zip(moves, whole.around(at, moves), strict=True):
        assert loss == whole((*at[:g], c, *at[g + 1 :]))


def test_what_is_kept_is_not_measured_again(both: Library, images: Callable[..., Batches]) -> None:
    at, kept = middle(both), Kept(None)
    moves = steps_up(both.space.groups, at)
    first = Whole(both, images("small_residual"), Kl().metric, kept)
    found = [first(at), *first.around(at, moves)]
    again = Whole(both, images("small_residual"), lambda *_: pytest.fail("measured again"), kept)
    assert [again(at), *again.around(at, moves)] == found


def test_the_best_that_fit_are_run_whole(both: Library, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTLIST", 4)
    at = middle(both)
    problem = bounded(both, sum((g.choices[c].weight or 0) + (g.choices[c].activation or 0)
                                for g, c in zip(both.space.groups, at, strict=True)))  # fmt: skip
    found = near(problem, whole, at, {})
    assert len(found) == 4 and at not in found
    for choices, loss in found.items():
        assert problem.fits(choices) and loss == whole(choices)
        assert 1 <= sum(c != before for c, before in zip(choices, at, strict=True)) <= 2


def test_tries_go_where_it_points(both: Library, whole: Whole) -> None:
    """By the library itself as what is measured, each try is the best untried one near the best so far."""
    at = middle(both)
    problem, known = bounded(both, 1e9), dict[Choices, float]()

    def measured(choices: Choices) -> float:
        assert choices not in known
        known[choices] = whole(choices)
        return known[choices]

    found, lost = refine(
        problem, problem.assignment(at), measured, 4, lambda choices: near(problem, whole, choices, known)
    )
    tried = list(known)
    assert tried[0] == at and len(tried) == 4 and lost == min(map(whole, tried)) < whole(at)
    assert tried[1] == min(of := near(problem, whole, at, {}), key=lambda c: (of[c], c))
    assert found.choices in tried


def test_a_move_that_a_library_wrongly_believes_in_is_given_up(both: Library, whole: Whole) -> None:
    """A recipe that makes one move bad, which the library thinks is the best of all."""
    at = middle(both)
    problem = bounded(both, 1e9)
    of = near(problem, whole, at, {})
    wrong = min(of, key=lambda c: (of[c], c))
    g = next(g for g, (c, before) in enumerate(zip(wrong, at, strict=True)) if c != before)
    known = {at: whole(at), wrong: 9 * whole(at), min(of, key=lambda c: (c[g] == wrong[g], of[c])): whole(at)}
    left = [choices for choices in of if choices not in known]
    assert min(left, key=lambda c: (of[c], c))[g] == wrong[g]  # what it would try next, if tries taught nothing
    taught = near(problem, whole, at, known)
    assert not known.keys() & taught.keys()
    assert min(taught, key=lambda c: (taught[c], c))[g] != wrong[g]


def test_what_is_foretold_right_is_left_as_it_is(both: Library, whole: Whole) -> None:
    at = middle(both)
    problem = bounded(both, 1e9)
    right = {choices: whole(choices) for choices in list(near(problem, whole, at, {}))[:5]}
    for choices, loss in near(problem, whole, at, right).items():
        assert loss == pytest.approx(whole(choices), rel=1e-9)
