"""`bitwright evaluate` against numbers worked out here from the runtime's own outputs; the statistics behind them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.deploy.evaluate import paired_drop, rank_of

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


def test_numbers_are_those_of_the_runtime(
    cli: Any, float_file: Path, int8_file: Path, test_images: Path, scores: Any
) -> None:
    found = cli("evaluate", int8_file, "--data", test_images, "--against", float_file, "--batch", 50, "--json").json
    reference, served, labels = scores["float"], scores["int8"], scores["labels"]
    right, reference_right = served.argmax(1) == labels, reference.argmax(1) == labels
    best = np.argsort(-served, axis=1, kind="stable")[:, :5]
    assert found["images"] == 360
    assert found["top1"] == right.mean()
    assert found["top5"] == (best == labels[:, None]).any(1).mean()
    assert found["agreement"] == (served.argmax(1) == reference.argmax(1)).mean()
    noise = (reference.astype(np.float64) - served) ** 2
    assert found["sqnr_db"] == pytest.approx(10 * math.log10((reference.astype(np.float64) ** 2).sum() / noise.sum()))
    assert found["drop"]["reference"] == reference_right.mean() and found["drop"]["accuracy"] == found["top1"]
    assert found["drop"]["drop"] == pytest.approx(reference_right.mean() - right.mean(), abs=1e-12)
    assert found["drop"]["low"] < found["drop"]["drop"] < found["drop"]["high"]


def test_a_batch_that_does_not_divide_the_images_counts_each_once(
    cli: Any, float_file: Path, test_images: Path, scores: Any
) -> None:
    found = cli("evaluate", float_file, "--data", test_images, "--batch", 7, "--limit", 30, "--json").json
    assert found["images"] == 30
    whole = cli("evaluate", float_file, "--data", test_images, "--json").json
    assert whole["top1"] == (scores["float"].argmax(1) == scores["labels"]).mean()


def test_the_table_says_the_same(cli: Any, float_file: Path, int8_file: Path, test_images: Path, scores: Any) -> None:
    ran = cli("evaluate", int8_file, "--data", test_images, "--against", float_file)
    lines = dict(line.split("  ", 1) for line in ran.out.splitlines())
    top1 = 100 * (scores["int8"].argmax(1) == scores["labels"]).mean()
    assert lines["images"].strip() == "360" and lines["top-1"].strip() == f"{top1:.2f} %"
    assert "95 % interval" in lines["drop against the reference"]


def test_labels_can_be_required(cli: Any, float_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    ran = cli("evaluate", float_file, "--data", tmp_path / "x.npz", "--require-labels")
    assert ran.code == 2 and "has no labels" in ran.err
    assert "no labels" in cli("evaluate", float_file, "--data", tmp_path / "x.npz").out


def test_labels_beyond_the_classes_are_refused(cli: Any, float_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 1, 8, 8), np.float32), labels=np.array([0, 10]))
    ran = cli("evaluate", float_file, "--data", tmp_path / "x.npz")
    assert ran.code == 2 and "labels from 0 to 10; expected classes 0 to 9" in ran.err


def test_a_reference_that_reads_something_else_is_refused(
    cli: Any, float_file: Path, test_images: Path, onnx_file: Callable[..., Path]
) -> None:
    other = onnx_file("y = Flatten(x)", "(float[N, 1, 8, 8] x) => (float[N, 64] y)")
    ran = cli("evaluate", float_file, "--data", test_images, "--against", other)
    expected = (
        "small.onnx: reads 'x' Nx1x8x8 float32; expected 'image' Nx1x8x8 float32, as the file it is compared with"
    )
    assert ran.code == 2 and expected in ran.err


def test_a_size_that_the_file_leaves_open_has_to_be_given(
    cli: Any, tmp_path: Path, onnx_file: Callable[..., Path]
) -> None:
    path = onnx_file("y = Flatten(x)", "(float[N, 1, H, W] x) => (float[N, M] y)")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 1, 4, 4), np.float32))
    ran = cli("evaluate", path, "--data", tmp_path / "x.npz")
    assert ran.code == 2 and "give --shape x=Nx1x224x224" in ran.err
    assert cli("evaluate", path, "--data", tmp_path / "x.npz", "--shape", "x=Nx1x4x4").code == 0
    ran = cli("evaluate", path, "--data", tmp_path / "x.npz", "--shape", "x=Nx1x5x5")
    assert ran.code == 2 and "[2, 1, 4, 4]; expected [?, 1, 5, 5]" in ran.err
    ran = cli("evaluate", path, "--data", tmp_path / "x.npz", "--shape", "xx=Nx1x4x4")
    assert ran.code == 2 and "--shape xx=...: the network has no input of this name; did you mean 'x'?" in ran.err


def test_a_value_that_is_not_finite_is_refused(cli: Any, tmp_path: Path, onnx_file: Callable[..., Path]) -> None:
    path = onnx_file("y = Log(x)", "(float[N, 3] x) => (float[N, 3] y)")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    ran = cli("evaluate", path, "--data", tmp_path / "x.npz")
    assert ran.code == 2 and "its output 'y' has NaN or infinity" in ran.err


# The statistics.


def test_paired_drop_by_hand() -> None:
    # 10 images: 4 only the reference gets right, 1 only the other, 5 both. n + 2 = 12, b + 1/2 = 4.5, c + 1/2 = 1.5:
    # centre = 3 / 12, variance term = 6 - 9 / 12 = 5.25, half width = 1.959964 * sqrt(5.25) / 12 = 0.374236.
    reference = np.array([1] * 4 + [0] + [1] * 5, dtype=bool)
    other = np.array([0] * 4 + [1] + [1] * 5, dtype=bool)
    found = paired_drop(reference, other)
    assert (found.reference, found.accuracy, found.images) == (0.9, 0.6, 10)
    assert found.drop == pytest.approx(0.3, abs=1e-12)
    assert found.low == pytest.approx(0.25 - 0.374236, abs=1e-6)
    assert found.high == pytest.approx(0.25 + 0.374236, abs=1e-6)


@given(OUTCOMES)
def test_the_interval_holds_the_drop_and_turns_round_with_the_networks(outcomes: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(column, dtype=bool) for column in zip(*outcomes, strict=True))
    drop, swapped = paired_drop(first, second), paired_drop(second, first)
    assert drop.low < drop.drop < drop.high
    assert drop.drop == pytest.approx(drop.reference - drop.accuracy, abs=1e-12)
    assert (swapped.low, swapped.drop, swapped.high) == pytest.approx((-drop.high, -drop.drop, -drop.low), abs=1e-12)


@given(OUTCOMES)
def test_more_images_of_the_same_kind_narrow_the_interval(outcomes: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(column, dtype=bool) for column in zip(*outcomes, strict=True))
    once, often = paired_drop(first, second), paired_drop(np.tile(first, 16), np.tile(second, 16))
    assert often.high - often.low < once.high - once.low


def test_ranks_count_equal_scores_before_the_label() -> None:
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [3.0, 2.0, 3.0], [0.0, -1.0, 5.0]])
    assert rank_of(rows, np.array([0, 2, 2, 1])).tolist() == [0, 2, 1, 2]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=20), st.integers(0, 5))
def test_ranks_are_positions_in_a_stable_sort(rows: list[list[int]], label: int) -> None:
    scores = np.array(rows, dtype=np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [row.tolist().index(label) for row in order]
    assert rank_of(scores, np.full(len(rows), label)).tolist() == expected
