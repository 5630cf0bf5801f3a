"""The bundled data: 1,797 handwritten digits of 8x8 pixels, as they come with scikit-learn.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import numpy as np

from bitwright.errors import InputError

EVERY = 5  # each fifth image of a class is for testing


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images float32 `[1797, 1, 8, 8]` in 0 to 1, and labels int64 `[1797]` from 0 to 9.

    `image = count / 16`, where count is the number of dark points, 0 to 16.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        fix = "install it with: pip install 'bitwright[demo]'"
        raise InputError("digits", "scikit-learn, which holds them, is not installed", fix=fix) from error
    found = load_digits()
    images = (found.images / 16).astype(np.float32)[:, np.newaxis]
    return images, found.target.astype(np.int64)


def digits_split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`(images, labels)` for training (1,437) and for testing (360: each fifth of each class).

    Nothing is drawn at random, so that the split never changes.

    Raises:
        InputError: scikit-learn is not installed.

    Example:
        >>> train, test = digits_split()
        >>> train[0].shape, test[1].shape
        ((1437, 1, 8, 8), (360,))
    """
    images, labels = digits()
    test = np.zeros(len(images), dtype=bool)
    test[np.argsort(labels, kind="stable")[::EVERY]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])
