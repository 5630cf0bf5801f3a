from __future__ import annotations

import sys

import numpy as np
import pytest

from bitwright.data.digits import digits, digits_split
from bitwright.errors import InputError


def test_digits_are_images_between_0_and_1() -> None:
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert set((images * 16).ravel().tolist()) == set(range(17))  # sixteenths, exactly
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


def test_the_split_is_fixed_and_disjoint() -> None:
    (train_x, train_y), (test_x, test_y) = digits_split()
    images, labels = digits()
    assert train_x.shape == (1437, 1, 8, 8) and test_x.shape == (360, 1, 8, 8)
    zeros = np.flatnonzero(labels == 0)
    np.testing.assert_array_equal(test_x[test_y == 0], images[zeros[::5]])
    np.testing.assert_array_equal(train_x[train_y == 0][:4], images[zeros[1:5]])
    counts = np.bincount(labels)
    np.testing.assert_array_equal(np.bincount(train_y) + np.bincount(test_y), counts)
    assert np.abs(np.bincount(test_y) - counts / 5).max() < 1
    rows = {image.tobytes() + bytes([label]) for image, label in zip(images, labels.tolist(), strict=True)}
    assert len(rows) == 1797  # all images differ, so the two parts share none


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        InputError, match=r"digits: scikit-learn, .*; install it with: pip install 'bitwright\[demo\]'"
    ):
        digits()
