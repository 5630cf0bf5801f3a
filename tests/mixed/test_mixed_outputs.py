"""Networks of several outputs: all of them count, and labels tell of one."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.errors import InputError
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library, stock
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.adaquant import AdaQuantLoss
from bitwright.mixed.sensitivity.kl import Kl
from bitwright.mixed.sensitivity.measure import OneAtATime, Ordering, Whole, usual_method
from bitwright.mixed.sensitivity.sqnr import Sqnr
from bitwright.mixed.sensitivity.zeroq import ZeroQ
from bitwright.pipeline import run_chain
from bitwright.ptq.calibrate import Calibrate
from bitwright.verbs.preparing import float_network
from bitwright.verbs.stocking import Placing, Widths, base_network
from bitwright.verbs.terminal import Terminal


class Heads(nn.Module):
    """A trunk, then a head for the scores of classes and another one for a second output, and the class itself."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        self.trunk, self.near, self.far = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.trunk(x).relu()
        scores, second = self.near(h).mean((2, 3)), self.far(h)
        return scores, second if self.maps else second.mean((2, 3)), scores.argmax(1)


@cache
def opened(maps: bool) -> tuple[Library, Batches]:
    """Its three layers at 7 bits and at 2, and 12 images with labels."""
    torch.manual_seed(0)
    network = float_network(Heads(maps).eval(), example=torch.zeros(2, 3, 6, 6))
    name = network.graph.inputs[0].name or ""
    arrays = {name: torch.randn(12, 3, 6, 6).numpy(), "labels": (torch.arange(12) % 4).numpy()}
    batches = open_data(arrays, {name: ((None, 3, 6, 6), "float32")}, batch_size=8)
    placing = Placing(target="onnxruntime-x64-avx2", set=(), bits_of_ends=None, recipe="int8", settings={})
    base, space = base_network(network, batches, placing, Widths(weights=(7, 2), ends=True), Terminal())
    return stock(space, base, lambda plan: run_chain([Calibrate()], base.but(plan=plan), batches)), batches


@pytest.mark.parametrize("method", [Kl(), ZeroQ(), Sqnr(), AdaQuantLoss()], ids=lambda method: type(method).__name__)
def test_what_reaches_the_second_output_alone_counts(method: OneAtATime) -> None:
    library, batches = opened(maps=False)
    losses = {g.name: row for g, row in zip(library.space.groups, method(library, batches).values, strict=True)}
    assert set(losses) == {"trunk", "near", "far"}
    assert all(narrow > 1e-5 and narrow > widest for widest, narrow in losses.values())


@pytest.mark.parametrize("maps", [True, False], ids=["maps", "scores"])
def test_the_loss_is_the_sum_over_outputs(maps: bool) -> None:
    library, batches = opened(maps)
    board, method = LibraryBoard(library), Sqnr()
    names = [group.name for group in library.space.groups]
    alone = [0.0, 0.0]
    for batch in batches:
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        board.turn([None] * 3, rest=False)
        references = board.run(inputs)[0]
        board.turn_group("far", 1)
        outputs = board.run(inputs)[0]
        for i in (0, 1):
            y, reference = (ys[i][: batch.valid].double() for ys in (outputs, references))
            noise = method.metric(y, reference, None)
            alone[i] += float(noise.sum()) / len(batches)
    assert alone[0] == 0 < alone[1]
    assert method(library, batches).values[names.index("far")][1] == pytest.approx(alone[1], rel=1e-9)


def test_whole_networks_are_measured_on_all_outputs() -> None:
    library, batches = opened(maps=True)
    whole, names = Whole(library, batches, Sqnr().metric, Kept(None)), [g.name for g in library.space.groups]
    widest = whole((0, 0, 0))
    narrow = {name: whole(tuple(int(name == other) for other in names)) for name in names}
    assert all(lost > widest + 1e-4 for lost in narrow.values())


def test_divergence_is_refused_for_maps() -> None:
    library, batches = opened(maps=True)
    with pytest.raises(InputError, match=r"gives outputs of shape \[8, 5, 4, 4\]; expected scores of classes"):
        Kl()(library, batches)


LABELLED = [name for name, row in SENSITIVITIES.items() if row.load()().needs_labels]


@pytest.mark.parametrize("name", LABELLED)
def test_labels_cannot_tell_of_several_outputs(name: str) -> None:
    library, batches = opened(maps=False)
    method = SENSITIVITIES[name].load()()
    with pytest.raises(InputError, match=r"network: gives 2 outputs, and labels tell of one; .*; use sqnr"):
        if isinstance(method, Ordering):
            list(method.trajectory(library, batches, batches, {}, {}))
        else:
            method(library, batches)


def test_what_measures_if_nothing_is_said() -> None:
    of = {maps: opened(maps)[0].state.model for maps in (True, False)}
    assert usual_method(of[False]) == "kl" and usual_method(of[True]) == "sqnr"
    whole = of[True].clone()
    del whole.graph.outputs[:2]
    with pytest.raises(InputError, match="network: gives no real numbers"):
        usual_method(whole)
