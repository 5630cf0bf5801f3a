"""Networks put together of a library, and the program in which all its widths are switched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from bitwright.data.batches import Batches
from bitwright.deploy.verify import verify
from bitwright.deploy.writer import write
from bitwright.errors import InputError
from bitwright.execute.program import Program
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library, needed, stock, weight_site
from bitwright.mixed.space import Space
from bitwright.pipeline import State
from bitwright.plan.plan import Plan
from bitwright.plan.spec import Derived
from bitwright.ptq.programs import float_program, simulated_program
from bitwright.verbs.stocking import Placing, Shelf, library_of
from bitwright.verbs.terminal import Terminal

Libraries = Callable[..., Library]
Images = Callable[..., Batches]
MOVED = {
    "residual": ("small_residual", ((4, 2), (8, 4))),
    "depthwise": ("small_inverted_residual", ((7, 4, 2),)),
    "or-float": ("small_residual", ((7, 32),)),
    "activations-or-float": ("small_residual", ((4, 32), (8, 4))),
}
NETWORKS = pytest.mark.parametrize(("network", "widths"), list(MOVED.values()), ids=list(MOVED))
INTEGERS = pytest.mark.parametrize(("network", "widths"), list(MOVED.values())[:2], ids=list(MOVED)[:2])


def mixed(library: Library) -> list[int]:
    """One width after the other, so that no two neighbours have the same."""
    return [i % len(group.choices) for i, group in enumerate(library.space.groups)]


def inputs(images: Batches) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in next(iter(images)).inputs.items()}


def run(program: Program, given: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = program.module(*(given[name] for name in program.inputs))[0]
    return found


# The library.


@NETWORKS
def test_what_is_put_together_is_what_the_recipe_gives(
    network: str, widths: Sequence[tuple[int, ...]], library: Libraries, quantized: Callable[..., State]
) -> None:
    """Code for code and scale for scale: nothing in this recipe knows of the widths of other layers.

    Where regions may be in float, fewer values are watched in the float network, and a runtime that fuses what lies
    between them may give the others another last digit: seen on a processor with AVX-512, not on one without.
    """
    found = library(network, *widths)
    put = found.network(mixed(found))
    whole = quantized(network, found.plan(mixed(found)), "closed-form")
    assert put.plan == whole.plan and put.encodings.keys() == whole.encodings.keys()
    some_in_float = any(width.in_float for group in found.space.groups for width in group.choices)
    last_digit = 2.0**-23 if some_in_float else 0.0
    for site, encoding in whole.encodings.items():
        torch.testing.assert_close(put.encodings[site].scale, encoding.scale, rtol=last_digit, atol=0.0)
        assert torch.equal(put.encodings[site].zero_point, encoding.zero_point), site
        if site in whole.model.graph.initializers:
            codes = [state.encodings[site].codes_of(state.tensor(site)) for state in (put, whole)]
            assert torch.equal(*codes), site
    for name in whole.overlay:
        assert torch.equal(put.tensor(name), whole.tensor(name)), name


def test_the_depthwise_network_is_equalized(library: Libraries) -> None:
    """Else the test above says nothing of steps that change weights."""
    found = library("small_inverted_residual", (7, 4, 2))
    events = [event.step for event in found.state.log]
    assert any(step.startswith("Equalize") for step in events), events


def test_another_width_is_another_network(library: Libraries) -> None:
    found = library("small_residual", (4, 2), (8, 4))
    widest = [0] * len(found.space.groups)
    assert found.network(widest).plan == found.state.plan == found.plan(widest) != found.network(mixed(found)).plan


@NETWORKS
def test_a_network_put_together_is_proven(
    network: str, widths: Sequence[tuple[int, ...]], library: Libraries, images: Images, tmp_path: Path
) -> None:
    found = library(network, *widths)
    write(found.network(mixed(found)), tmp_path / "mixed.onnx")
    proof = verify(tmp_path / "mixed.onnx", images(network).limited(8, 0))
    assert proof.proven and proof.codes > 10_000 and proof.mismatches == 0


def test_a_library_takes_one_network_a_width(library: Libraries) -> None:
    both = library("small_residual", (4, 2), (8, 4)).space
    assert len(needed(both)) == 3  # W4A8, then A4, then W2; nothing new in W2A4
    assert len(needed(library("small_inverted_residual", (7, 4, 2)).space)) == 3


def test_a_library_that_is_kept_goes_on_when_the_last_digits_of_a_run_are_others(
    float_model: Callable[[str], ir.Model], spaced: Callable[..., tuple[State, Space]], library: Libraries,
    images: Images, tmp_path: Path,
) -> None:  # fmt: skip
    """Another number of threads adds up in another order, and what equalization measures is another number."""
    network, widths, terminal = "small_inverted_residual", (7, 4, 2), Terminal()
    base, space = spaced(network, widths)
    model, batches, shelf = float_model(network), images(network), Shelf(tmp_path, "of this test")
    placing = Placing(target="onnxruntime-x64-avx2", set=(), bits_of_ends=None, recipe="closed-form", settings={})
    found = library_of(model, batches, placing, base, space, shelf, terminal)
    assert same(found, library(network, widths))  # every width from the float network on
    gone = shelf.path("library", found.plan([1] * len(space.groups)).dumps(), ".pt")
    gone.unlink()
    weights = [weight_site(p.region.weight) for each in space.products.values() for p in each]
    digits = {name: base.tensor(name) * (1 + 1e-6) for name in weights}
    again = library_of(model, batches, placing, base.but(overlay={**base.overlay, **digits}), space, shelf, terminal)
    assert gone.exists() and same(again, found)


def same(one: Library, other: Library) -> bool:
    """Code for code."""
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(*(each.weights[site, bits].values(each.state.tensor(site)) for each in (one, other)))
        for site, bits in one.weights
    )


def test_weights_that_depend_on_the_width_before_rounding_are_refused(
    library: Libraries, quantized: Callable[..., State]
) -> None:
    found = library("small_residual", (4, 2), (8, 4))
    first = found.space.products[found.space.groups[0].name][0].region.weight
    assert first is not None and first.name is not None
    site = first.name

    def shrunk(plan: Plan) -> State:
        state = quantized("small_residual", plan, "closed-form")
        spec = plan.qspec(site)
        assert spec is not None
        return state.but(overlay={**state.overlay, site: state.tensor(site) * spec.bits / 4})

    with pytest.raises(InputError, match=f"weight '{site}': is another one at another width, before it is rounded"):
        stock(found.space, found.state, shrunk)


def test_biases_belong_to_the_width_they_were_corrected_for(
    library: Libraries, quantized: Callable[..., State]
) -> None:
    found = library("small_residual", (7, 2), recipe="corrected")
    narrowest = [1] * len(found.space.groups)
    put = found.network(narrowest)
    whole = quantized("small_residual", found.plan(narrowest), "corrected")
    changed = 0
    for product in (p for group in found.space.products.values() for p in group):
        bias = product.region.bias
        assert bias is not None and bias.name is not None
        assert torch.equal(put.tensor(bias.name), whole.tensor(bias.name)), bias.name
        changed += not torch.equal(put.tensor(bias.name), found.state.tensor(bias.name))
    assert changed == len(found.space.groups)


# The board.


@INTEGERS
def test_the_board_simulates_the_network_of_its_choices_with_biases_in_float(
    network: str, widths: Sequence[tuple[int, ...]], library: Libraries, images: Images
) -> None:
    found, given = library(network, *widths), inputs(images(network))
    board = LibraryBoard(found)
    for choices in (mixed(found), [0] * len(found.space.groups)):
        board.turn(choices)
        (y, *_), _ = board.run(given)
        state = found.network(choices)
        assert state.plan is not None
        biases = {site: nn.Identity() for site, spec in state.plan.sites.items() if isinstance(spec, Derived)}
        assert biases
        expected = run(simulated_program(state, quantizers=biases), given)
        torch.testing.assert_close(y, expected)
        assert (y - run(float_program(found.state), given)).abs().max() > 0.05


def test_the_board_simulates_a_group_in_float(library: Libraries, images: Images) -> None:
    """Exactly where its neighbours run in integers: what it reads and gives is quantized for their sake."""
    found, given = library(*MOVED["or-float"][:1], (7, 32)), inputs(images("small_residual"))
    board = LibraryBoard(found)
    constants = found.state.model.graph.initializers
    activations, same = {site for site in found.state.encodings if site not in constants}, 0
    for g, group in enumerate(found.space.groups):
        choices = [0 if h == g else 1 for h in range(len(found.space.groups))]
        board.turn(choices)
        (y, *_), _ = board.run(given)
        state = found.network(choices)
        assert group.choices[0].in_float and state.plan is not None
        biases = {site: nn.Identity() for site, spec in state.plan.sites.items() if isinstance(spec, Derived)}
        assert len(biases) == len(found.space.groups) + 1, "of all others, and of the two ends"
        if state.encodings.keys() >= activations:
            torch.testing.assert_close(y, run(simulated_program(state, quantizers=biases), given))
            same += 1
    assert same >= 3


@NETWORKS
def test_all_off_is_the_float_network(
    network: str, widths: Sequence[tuple[int, ...]], library: Libraries, images: Images
) -> None:
    found, given = library(network, *widths), inputs(images(network))
    board = LibraryBoard(found)
    board.turn([None] * len(found.space.groups), rest=False)
    (y, *_), _ = board.run(given)
    torch.testing.assert_close(y, run(float_program(found.state), given))


def test_what_comes_before_a_group_is_not_computed_again(library: Libraries, images: Images) -> None:
    found, given = library("small_residual", (4, 2), (8, 4)), inputs(images("small_residual"))
    board, groups = LibraryBoard(found), library("small_residual", (4, 2), (8, 4)).space.groups
    board.turn([0] * len(groups))
    _, values = board.run(given)
    for group in groups:
        board.turn([0] * len(groups))
        board.turn_group(group.name, len(group.choices) - 1)
        known = board.unchanged(values, group.name)
        assert 0 < len(known) < len(values)
        again, whole = board.run(given, known)[0][0], board.run(given)[0][0]
        assert torch.equal(again, whole)
    shares = [board.share_after(group.name) for group in groups]
    assert shares[0] > shares[-1]  # the last group leaves most of the program as it is


def test_the_activation_of_a_group_can_be_left_in_float(library: Libraries, images: Images) -> None:
    found, given = library("small_residual", (4, 2), (8, 4)), inputs(images("small_residual"))
    board, group = LibraryBoard(found), found.space.groups[0]
    board.turn([None] * len(found.space.groups), rest=False)

    def at(choice: int, weights_only: bool) -> torch.Tensor:
        board.turn_group(group.name, choice, weights_only=weights_only)
        return board.run(given)[0][0]

    same_weight = [i for i, choice in enumerate(group.choices) if choice.weight == 4]
    assert len(same_weight) == 2
    assert torch.equal(at(same_weight[0], True), at(same_weight[1], True))
    assert not torch.equal(at(same_weight[0], False), at(same_weight[1], False))


def test_a_board_of_a_space_without_biases(library: Libraries, images: Images) -> None:
    """Placed as in papers: biases are not quantized, and neither are the sums."""
    found = library("small_residual", (4, 2), target="paper")
    board, given = LibraryBoard(found), inputs(images("small_residual"))
    board.turn(mixed(found))
    expected = run(simulated_program(found.network(mixed(found))), given)
    torch.testing.assert_close(board.run(given)[0][0], expected, rtol=1e-4, atol=1e-4)
