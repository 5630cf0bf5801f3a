"""The audit of a calibration set: numbers worked out by hand, and warnings exactly where a limit is crossed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.ranges.audit import FEWEST_IMAGES, LEAST_COVERAGE, SPLITS, UNSTABLE, WORST, audit, split_changes


def split_change(extremes: torch.Tensor, splits: int = SPLITS) -> float:
    """The change of one site."""
    return float(split_changes(extremes[None], splits))


STEADY = torch.tensor([[-1.0, 2.0]]).repeat(8, 1)


def test_equal_batches_do_not_change() -> None:
    assert split_change(STEADY) == 0.0


def test_two_batches_are_the_two_halves() -> None:
    # Ranges 3 and 1: |3 - 1| / 3 in every split.
    assert split_change(torch.tensor([[-1.0, 2.0], [0.5, 1.0]])) == pytest.approx(2 / 3)


def test_zero_belongs_to_every_range() -> None:
    # [2, 3] is [0, 3], [-3, -2] is [-3, 0]: both are 3 wide.
    assert split_change(torch.tensor([[2.0, 3.0], [-3.0, -2.0]])) == 0.0
    assert split_change(torch.zeros(4, 2)) == 0.0


def test_one_outlier_among_many() -> None:
    """One batch of eight is twice as wide: it is in one of the halves, so each split finds 1/2."""
    wide = STEADY.clone()
    wide[3] *= 2
    assert split_change(wide) == pytest.approx(0.5)


@settings(max_examples=25)  # each draws a thousand splits
@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4, unique=True))
def test_the_mean_over_splits_is_near_that_of_all_splits(highs: list[float]) -> None:
    extremes = torch.tensor([[0.0, high] for high in highs])
    every = []
    for chosen in itertools.combinations(range(4), 2):
        a = max(highs[i] for i in chosen)
        b = max(highs[i] for i in range(4) if i not in chosen)
        every.append(abs(a - b) / max(a, b))
    assert min(every) - 1e-6 <= split_change(extremes) <= max(every) + 1e-6
    assert split_change(extremes, splits=1024) == pytest.approx(float(np.mean(every)), abs=0.06)


@given(st.integers(2, 9), st.floats(0.01, 100))
def test_the_scale_of_a_site_does_not_count(batches: int, factor: float) -> None:
    extremes = torch.rand(batches, 2, generator=torch.Generator().manual_seed(batches))
    assert split_change(extremes * factor) == pytest.approx(split_change(extremes), abs=1e-5)
    assert 0 <= split_change(extremes) <= 1


def test_sites_do_not_see_each_other() -> None:
    extremes = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0)).sort(dim=2).values
    together = split_changes(extremes)
    assert together.tolist() == pytest.approx([split_change(site) for site in extremes])


# The audit.


def test_a_good_set_has_no_warning() -> None:
    labels = np.arange(200) % 10
    found = audit({"a": STEADY, "b": STEADY * 3}, 200, labels=labels, classes=10)
    assert found.warnings == () and (found.images, found.batches) == (200, 8)
    assert (found.classes_seen, found.classes) == (10, 10)
    assert found.stability is not None and found.stability.median == 0 and found.stability.sites == 2


def test_too_few_images() -> None:
    assert audit({"a": STEADY}, FEWEST_IMAGES).warnings == ()
    (warning,) = audit({"a": STEADY}, FEWEST_IMAGES - 1).warnings
    assert warning.startswith(f"{FEWEST_IMAGES - 1} calibration images, fewer than {FEWEST_IMAGES}")


@pytest.mark.parametrize(
    ("images", "seen", "classes", "warned"),
    [(200, 10, 10, False), (200, 5, 10, False), (200, 4, 10, True), (200, 150, 1000, False), (200, 99, 1000, True)],
)
def test_class_coverage(images: int, seen: int, classes: int, warned: bool) -> None:
    """Against the classes that so many images could show."""
    found = audit({"a": STEADY}, images, labels=np.arange(images) % seen, classes=classes)
    assert found.classes_seen == seen
    assert bool(found.warnings) == warned == (seen < LEAST_COVERAGE * min(classes, images))
    if warned:
        assert (
            f"are of {seen} of {classes} classes, fewer than 50 % of what {images} images could show"
            in found.warnings[0]
        )


def test_labels_without_classes_do_not_count() -> None:
    found = audit({"a": STEADY}, 200, labels=np.zeros(200, dtype=int))
    assert (found.classes_seen, found.classes, found.warnings) == (None, None, ())


def test_unstable_sites_are_named_worst_first() -> None:
    extremes = {"steady": STEADY}
    for i, factor in enumerate((1.2, 4.0, 2.0, 8.0)):
        extremes[f"site{i}"] = STEADY.clone()
        extremes[f"site{i}"][0] *= factor
    found = audit(extremes, 200)
    assert found.stability is not None
    assert [site for site, _ in found.stability.worst] == ["site3", "site1", "site2"]
    assert [change for _, change in found.stability.worst] == pytest.approx([7 / 8, 3 / 4, 1 / 2])
    assert (found.stability.unstable, found.stability.sites, len(found.stability.worst)) == (3, 5, WORST)
    assert found.stability.median == pytest.approx(0.5)
    (warning,) = found.warnings
    assert warning.startswith(
        f"the ranges of 3 of 5 sites change by more than {100 * UNSTABLE:.0f} % between halves of the calibration "
        "images: site3 by 88 %, site1 by 75 %, site2 by 50 %; take more"
    )


def test_one_batch_tells_nothing_of_stability() -> None:
    assert audit({"a": STEADY[:1]}, 200).stability is None
    assert audit({}, 200).stability is None and audit({}, 200).batches == 0
