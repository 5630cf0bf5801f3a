"""Means, intervals and agreement of outputs, against numbers worked out by hand or by scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bitwright.deploy.metric import Agreements, Scores, mean_of, parts_of
from bitwright.errors import GoalError, InputError

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50)


def test_the_interval_by_hand() -> None:
    # Mean 2.5, s = sqrt(5/3), t(0.975, 3) = 3.182446: half width 3.182446 * 1.290994 / 2 = 2.054260.
    found = mean_of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 0.445740, 4.554260), abs=1e-5)


@given(NUMBERS)
def test_the_interval_is_that_of_scipy(numbers: list[float]) -> None:
    found = mean_of(np.array(numbers))
    spread = stats.sem(numbers)
    low, high = (
        stats.t.interval(0.95, len(numbers) - 1, loc=np.mean(numbers), scale=spread) if spread else (found.mean,) * 2
    )
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9, rel=1e-9)


def test_a_single_image_has_no_interval() -> None:
    found = mean_of(np.array([3.0]))
    assert (found.mean, found.low, found.high) == (3.0, None, None)


# Scores.


def scored(metric: Any, outputs: list[np.ndarray], others: list[np.ndarray] | None = None) -> Any:
    """The results of a metric over batches of one output."""
    scores = Scores(metric, "module:score")
    for i, own in enumerate(outputs):
        other = None if others is None else {"y": others[i]}
        scores.add({"y": own}, other, None, len(own))
    return scores.results()


def test_scores_of_all_batches_count_alike() -> None:
    (found,) = scored(lambda outputs, labels: outputs["y"][:, 0], [np.ones((3, 1)), np.full((1, 1), 5.0)])
    assert (found.name, found.images, found.score) == ("score", 4, mean_of(np.array([1.0, 1.0, 1.0, 5.0])))
    assert found.reference is None and found.difference is None


def test_the_difference_is_paired() -> None:
    """Two files that differ by 1 on every image: their own intervals are wide, that of the difference has no width."""
    own = [np.arange(10.0)[:, None]]
    (found,) = scored(lambda outputs, labels: outputs["y"][:, 0], own, [own[0] + 1])
    assert found.score.high - found.score.low > 4
    assert found.difference == mean_of(np.full(10, -1.0)) and found.difference.low == found.difference.high == -1
    assert found.reference.mean == found.score.mean + 1


def test_several_scores_by_name() -> None:
    found = scored(lambda outputs, labels: {"a": [1, 0], "b": np.array([True, True])}, [np.zeros((2, 1))])
    assert [(m.name, m.score.mean) for m in found] == [("a", 0.5), ("b", 1.0)]


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (lambda o, t: 1 / 0, r"module:score: raised ZeroDivisionError: division by zero; expected a callable"),
        (lambda o: 1, "raised TypeError: "),
        (lambda o, t: np.zeros(3), r"gave 'score' of shape \[3\]; expected \[2\], one score for each image"),
        (lambda o, t: 0.5, r"gave 'score' of shape \[\]; expected \[2\]"),
        (lambda o, t: np.zeros((2, 1)), r"gave 'score' of shape \[2, 1\]"),
        (lambda o, t: "good", "gave str as 'score'; expected an array of 2 numbers"),
        (lambda o, t: None, r"gave 'score' of shape \[\]"),
        (lambda o, t: [1.0, np.nan], "gave NaN or infinity as 'score'; expected finite scores"),
        (lambda o, t: {}, "gave no score at all; expected an array of 2 numbers"),
        (lambda o, t: {"iou": [1.0]}, r"gave 'iou' of shape \[1\]"),
    ],
)  # fmt: skip
def test_wrong_metrics(metric: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        scored(metric, [np.zeros((2, 1))])


def test_scores_must_be_the_same_in_each_batch() -> None:
    names = iter("ab")
    with pytest.raises(InputError, match="gave the scores b after a; expected the same in each batch"):
        scored(lambda outputs, labels: {next(names): [1.0]}, [np.zeros((1, 1)), np.zeros((1, 1))])


def test_errors_of_our_own_pass() -> None:
    def metric(outputs: Any, labels: Any) -> None:
        raise GoalError("here", "a goal failed")

    with pytest.raises(GoalError, match="here: a goal failed"):
        scored(metric, [np.zeros((1, 1))])


# Agreement.


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (np.zeros((2, 10)), "images"), (np.zeros((2, 5, 4, 4)), "positions"), (np.zeros((2, 1, 4, 4)), None),
        (np.zeros((2, 7, 3)), None), (np.zeros(2), None), (np.zeros((2, 4, 4), dtype=np.int64), "elements"),
        (np.zeros((2, 4), dtype=bool), "elements"),
    ],
)  # fmt: skip
def test_parts(output: np.ndarray, parts: str | None) -> None:
    assert parts_of(output) == parts


def test_agreement_of_every_kind_of_output() -> None:
    rng = np.random.default_rng(0)
    reference: dict[str, np.ndarray] = {
        "logits": rng.standard_normal((6, 4)), "map": rng.standard_normal((6, 3, 2, 2)),
        "mask": rng.integers(0, 3, (6, 2)), "depth": rng.standard_normal((6, 1, 2, 2)),
    }  # fmt: skip
    own = {name: array.copy() for name, array in reference.items()}
    own["logits"][0] = -own["logits"][0]  # another class
    own["map"][0, :, 0, 0] = -own["map"][0, :, 0, 0]  # another channel at one of 24 positions
    own["mask"][3, 1] += 1
    own["depth"] = own["depth"] + 0.1
    found = Agreements("m")
    for part in (slice(0, 4), slice(4, 6)):
        found.add({n: a[part] for n, a in own.items()}, {n: a[part] for n, a in reference.items()})
    rows = {row.output: row for row in found.results()}
    assert {name: (row.of, row.agreement) for name, row in rows.items()} == {
        "logits": ("images", 5 / 6), "map": ("positions", 23 / 24), "mask": ("elements", 11 / 12),
        "depth": (None, None),
    }  # fmt: skip
    for name, row in rows.items():
        noise = ((reference[name] - own[name]) ** 2).sum()
        assert row.sqnr_db == pytest.approx(10 * math.log10((reference[name].astype(float) ** 2).sum() / noise))


def test_equal_outputs_have_no_noise() -> None:
    found = Agreements("m")
    found.add({"y": np.ones((2, 3))}, {"z": np.ones((2, 3))})
    (row,) = found.results()
    assert (row.output, row.sqnr_db, row.agreement) == ("y", math.inf, 1.0)
    silent = Agreements("m")
    silent.add({"y": np.ones((2, 3))}, {"y": np.zeros((2, 3))})
    assert silent.results()[0].sqnr_db == -math.inf


def test_references_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="m: has 1 outputs; expected the reference's 2"):
        Agreements("m").add({"y": np.ones(2)}, {"y": np.ones(2), "z": np.ones(2)})
    with pytest.raises(InputError, match=r"its output 'y' has shape \[2, 3\]; expected the reference's \[2, 4\]"):
        Agreements("m").add({"y": np.ones((2, 3))}, {"y": np.ones((2, 4))})
