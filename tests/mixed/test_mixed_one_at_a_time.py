"""Sensitivities that turn one group at a time, and what they keep of a run that was killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.errors import InputError
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library, stock
from bitwright.mixed.problem import Additive
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.accuracy import Accuracy
from bitwright.mixed.sensitivity.adaquant import LEAST, AdaQuantLoss
from bitwright.mixed.sensitivity.kl import Kl
from bitwright.mixed.sensitivity.measure import OneAtATime, divergence
from bitwright.mixed.sensitivity.sqnr import Sqnr
from bitwright.mixed.sensitivity.zeroq import ZeroQ
from bitwright.pipeline import run_chain
from bitwright.ptq.calibrate import Calibrate
from bitwright.verbs.preparing import float_network
from bitwright.verbs.stocking import Placing, Widths, base_network
from bitwright.verbs.terminal import Terminal

Libraries = Callable[..., Library]
Images = Callable[..., Batches]
METHODS: dict[str, OneAtATime] = {
    "sqnr": Sqnr(), "kl": Kl(), "zeroq": ZeroQ(), "adaquant": AdaQuantLoss(),
    "adaquant of labels": AdaQuantLoss(loss="cross-entropy"), "accuracy": Accuracy(),
}  # fmt: skip
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.fixture(scope="module")
def weights(library: Libraries) -> Library:
    """Six groups of 7, 4 and 2 bits, activations of 8."""
    return library("small_residual", (7, 4, 2))


@pytest.fixture(scope="module")
def both(library: Libraries) -> Library:
    """Five groups of 4 and 2 bits, which read 8 or 4 bits."""
    return library("small_residual", (4, 2), (8, 4))


@pytest.fixture(scope="module")
def given(images: Images) -> Batches:
    return images("small_residual")


class Forgotten(nn.Module):
    """The branch `lost` is multiplied by zero on its way out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kept, self.lost = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.last = nn.Linear(6, 4)
        with torch.no_grad():
            self.last.weight[:, 3:] = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        both = torch.cat([self.kept(h).relu(), self.lost(h).relu()], dim=1)
        return self.last(both.mean((2, 3)))


@pytest.fixture(scope="module")
def forgotten() -> tuple[Library, Batches]:
    """Its two branches at 4 bits and at 1, and 12 images."""
    torch.manual_seed(0)
    network = float_network(Forgotten().eval(), example=torch.zeros(2, 3, 4, 4))
    name = network.graph.inputs[0].name or ""
    arrays = {name: torch.randn(12, 3, 4, 4).numpy(), "labels": (torch.arange(12) % 4).numpy()}
    batches = open_data(arrays, {name: ((None, 3, 4, 4), "float32")}, batch_size=8)
    placing = Placing(target="onnxruntime-x64-avx2", set=(), bits_of_ends=None, recipe="int8", settings={})
    base, space = base_network(network, batches, placing, Widths(weights=(4, 1)), Terminal())
    return stock(space, base, lambda plan: run_chain([Calibrate()], base.but(plan=plan), batches)), batches


def unlabelled(batches: Batches) -> Batches:
    x = {name: array for batch in [next(iter(batches))] for name, array in batch.inputs.items()}
    return open_data(x, batches.specs, batch_size=8)


# What they say.


@EACH
def test_narrower_loses_more_and_the_widest_nothing(method: OneAtATime, weights: Library, given: Batches) -> None:
    found = method(weights, given)
    assert [len(row) for row in found.values] == [3] * 6 and not found.pairs
    seven, four, two = (sum(column) for column in zip(*found.values, strict=True))
    if not isinstance(method, Accuracy):  # 20 answers tell too little: see the number by hand
        assert seven <= four < two
    if method.base == "widest":
        assert seven == 0
    else:
        assert 0 < seven < four


@EACH
def test_a_group_that_does_not_reach_the_outputs_loses_nothing(
    method: OneAtATime, forgotten: tuple[Library, Batches]
) -> None:
    library, batches = forgotten
    groups = library.space.groups
    found = {group.name: row for group, row in zip(groups, method(library, batches).values, strict=True)}
    assert set(found) == {"kept", "lost"}
    nothing = LEAST if isinstance(method, AdaQuantLoss) else 0.0
    assert found["lost"] == (0.0, nothing)
    if not isinstance(method, Accuracy):  # among 12 answers there may be none that changes
        assert found["kept"][1] > 1e-5


def test_zeroq_is_of_weights_alone(both: Library, given: Batches) -> None:
    for group, zeroq, kl in zip(both.space.groups, ZeroQ()(both, given).values, Kl()(both, given).values, strict=True):
        at = {(choice.weight, choice.activation): i for i, choice in enumerate(group.choices)}
        for bits in (4, 2):
            assert zeroq[at[bits, 8]] == zeroq[at[bits, 4]] > 0
        assert kl[at[4, 8]] != kl[at[4, 4]]


def test_one_number_by_hand(weights: Library, given: Batches) -> None:
    """The second group at 2 bits: by both bases, and in answers."""
    board, groups = LibraryBoard(weights), weights.space.groups
    ratios, wrong = [], {0: 0, 2: 0}
    for batch in given:
        inputs = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        board.turn([None] * 6, rest=False)
        y = board.run(inputs)[0][0].double()
        board.turn_group(groups[1].name, 2)
        noise = (board.run(inputs)[0][0].double() - y).square().sum(1)
        ratios.append(noise / y.square().sum(1))
        for choice in wrong:
            board.turn([0, choice, 0, 0, 0, 0])
            wrong[choice] += int((board.run(inputs)[0][0].argmax(1).numpy() != batch.labels).sum())
    assert Sqnr()(weights, given).values[1][2] == pytest.approx(float(torch.cat(ratios).mean()), rel=1e-6)
    lost = (wrong[2] - wrong[0]) / len(given)
    assert Accuracy()(weights, given).values[1][2] == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("change", [{"batch_size": 20}, {"fixed": True}], ids=["one batch", "filled up"])
def test_how_images_are_cut_into_batches_is_all_the_same(
    change: dict[str, Any], weights: Library, given: Batches
) -> None:
    other = dataclasses.replace(given, **change)
    for method in (Sqnr(), AdaQuantLoss(loss="cross-entropy")):
        for row, again in zip(method(weights, given).values, method(weights, other).values, strict=True):
            assert again == pytest.approx(row, rel=1e-3, abs=1e-5)


def test_a_floor_of_adaquant(both: Library, given: Batches) -> None:
    rows = AdaQuantLoss()(both, given).values
    assert all(row[0] == 0 and min(row[1:]) >= LEAST for row in rows)


# What they refuse.


@pytest.mark.parametrize("method", [Accuracy(), AdaQuantLoss(loss="cross-entropy")], ids=["accuracy", "adaquant"])
def test_labels_that_are_missing_are_told(method: OneAtATime, weights: Library, given: Batches) -> None:
    with pytest.raises(InputError, match="has no labels; expected a label for every image"):
        method(weights, unlabelled(given))


@EACH
def test_the_others_need_no_labels(method: OneAtATime, weights: Library, given: Batches) -> None:
    if not method.needs_labels:
        assert sum(method(weights, unlabelled(given)).values[0]) > 0


def test_another_loss_of_adaquant_is_refused() -> None:
    with pytest.raises(InputError, match=r"adaquant\.loss: is 'l1'; expected mse or cross-entropy"):
        AdaQuantLoss(loss="l1")


def test_outputs_that_are_no_scores_have_no_divergence() -> None:
    with pytest.raises(InputError, match=r"gives outputs of shape \[1, 2, 3\]; expected scores of classes.*use sqnr"):
        divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_outputs_that_are_not_finite_are_refused(weights: Library, given: Batches) -> None:
    site = next(site for site in weights.state.model.graph.initializers if site.startswith("fc."))
    overlay = {**weights.state.overlay, site: weights.state.tensor(site) * float("nan")}
    broken = dataclasses.replace(weights, state=weights.state.but(overlay=overlay))
    with pytest.raises(InputError, match="network: NaN or infinity among its outputs"):
        Sqnr()(broken, given)


# What they cost, and what is kept.


@EACH
def test_passes_are_said_before(
    method: OneAtATime, weights: Library, given: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    told: list[int] = []
    whole = LibraryBoard.run

    def counted(self: LibraryBoard, *given: Any) -> Any:
        runs.append(1)
        return whole(self, *given)

    monkeypatch.setattr(LibraryBoard, "run", counted)
    method(weights, given, None, told.append)
    batches = 3
    assert len(runs) <= batches * method.passes(weights.space) and len(runs) >= batches * (6 * 2 + 1)
    assert told == [8, 8, 4]


def values(found: Additive) -> list[float]:
    return [value for row in found.values for value in row]


@pytest.mark.parametrize("cut", [1, 0], ids=["half a line", "a line without its end"])
def test_a_killed_run_goes_on_and_ends_the_same(
    cut: int, weights: Library, given: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Sqnr()(weights, given)
    path = tmp_path / "kept" / "sqnr.jsonl"
    Sqnr()(weights, given, Kept(path))
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    end = lines[1].rstrip("\n")
    path.write_text(lines[0] + (end[: len(end) // 2] if cut else end))
    ran: list[int] = []
    step = Sqnr._batch

    def counted(self: Sqnr, *given: Any) -> Any:
        ran.append(1)
        return step(self, *given)

    monkeypatch.setattr(Sqnr, "_batch", counted)
    assert values(Sqnr()(weights, given, Kept(path))) == values(whole)
    assert len(ran) == 2  # the first batch was kept
    ran.clear()
    assert values(Sqnr()(weights, given, Kept(path))) == values(whole) and not ran
    assert path.read_text().splitlines(keepends=True) == lines


def test_a_file_that_is_broken_elsewhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    for broken in ('["b", 2', "3", '[["b"], 2]', '["b"]', "\xff"):
        path.write_bytes(f'["a", 1]\n{broken}\n["c", 3]\n'.encode("latin-1"))
        with pytest.raises(InputError, match=r"kept.jsonl, line 2: cannot be read; expected \[name, value\]; delete"):
            Kept(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"kept\.jsonl: cannot be read; expected what a run before wrote"):
        Kept(path)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be written: .*; choose another folder"):
        Kept(tmp_path / "file" / "a.jsonl").put("a", 1)


def test_values_come_back_from_the_file(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "deep" / "kept.jsonl")
    kept.put("a", [0.1, 1e-300])
    kept.put("a", [0.2])
    assert Kept(tmp_path / "deep" / "kept.jsonl").get("a") == [0.2] == kept.get("a")
    assert kept.get("b") is None


def test_every_row_of_the_table_is_walked_here_or_elsewhere() -> None:
    mine = {type(method) for method in METHODS.values()}
    assert mine <= {row.load() for row in SENSITIVITIES.values()}
    assert {row.load() for row in SENSITIVITIES.values() if issubclass(row.load(), OneAtATime)} == mine
