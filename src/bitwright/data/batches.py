"""Batches: a stream over images or arrays that can be walked again and again, in the same order.

Whatever the data were, they are a `Source`: numbered rows (one image each) that are read when they are needed.
`Batches` chooses rows of a source and groups them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np

from bitwright.errors import InputError, UnsupportedError

Rows = Generator[tuple[int, dict[str, np.ndarray]], None, None]
InputSpecs = Mapping[str, tuple[tuple[int | None, ...], str]]  # name -> (shape with None where any size fits, dtype)


class Source(Protocol):
    """Numbered rows of data; a row is `{input name: array without the batch axis}`."""

    @property
    def name(self) -> str:
        """What the user called it: the file, the folder, the callable."""

    @property
    def labels(self) -> np.ndarray | None:
        """One label for each row, `[rows, ...]`."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name that belongs to each label, where the data say so."""

    @property
    def random_access(self) -> bool:
        """Whether rows can be read in any order; if not, only in ascending order."""

    @property
    def bad(self) -> set[int]:
        """Rows that turned out to be unreadable and are skipped; it grows while rows are read."""

    @property
    def labels_fix(self) -> str:
        """What to do when labels are needed, but missing."""

    def __len__(self) -> int: ...

    def row_name(self, row: int) -> str:
        """The name of one row: a file in a folder, or an index."""

    def rows(self, order: Sequence[int], ahead: int) -> Rows:
        """`(row, arrays)` for the rows of `order`, reading at most `ahead` rows ahead; bad ones are left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A few images as the network wants them.

    Args:
        inputs: input name -> array `[k, ...]`. A network with a fixed batch of k always gets k rows: the last
            batch is filled up by repeating its last row.
        labels: `[valid, ...]`, or None; one for each real row, none for the repeated ones.
        names: `valid` names, one for each real row.
        valid: how many of the k rows are real; cut outputs to `[:valid]` before counting.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    names: tuple[str, ...]
    valid: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """Re-iterable batches; every walk gives the same batches in the same order.

    Images are decoded while one walks, by a few threads that read at most two batches ahead.
    `len()` is the number of images, not of batches. Where unreadable images are skipped, they leave `len()`,
    `labels` and `names` as soon as they are found, at the latest after one whole walk.

    Args:
        source: where the rows come from.
        specs: input name -> (shape, dtype).
        order: the chosen rows, in order.
        batch_size: rows in a batch; the network's own where that is fixed.
        fixed: whether the last batch is filled up to `batch_size` (see `Batch.valid`).
        preprocess_source: the `preprocess.yaml` that was read, "default", "flags", "FILE, overridden by flags: crop",
            or "none" for arrays, which are taken as they are.

    Raises:
        InputError: while walking, for the row at fault: unreadable, of the wrong shape, changed since it was opened.
    """

    source: Source
    specs: InputSpecs
    order: tuple[int, ...]
    batch_size: int
    fixed: bool = False
    preprocess_source: str = field(default="none")

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        # closing: a walk that is broken off must stop the threads that read ahead
        with closing(self.source.rows(order, 2 * self.batch_size)) as rows:
            empty = True
            while chunk := list(islice(rows, self.batch_size)):
                empty = False
                yield self._batch(chunk)
        if empty:
            raise InputError(
                self.source.name,
                f"none of the {len(self.order)} chosen images can be read",
                fix="look at one of them in an image viewer, and choose another data set",
            )

    def __len__(self) -> int:
        return len(self._order())

    @property
    def labels(self) -> np.ndarray | None:
        """The label of every image in order, `[len, ...]`; None when the data have none."""
        if self.source.labels is None:
            return None
        return self.source.labels[np.asarray(self._order(), dtype=np.int64)]

    def require_labels(self) -> np.ndarray:
        """The labels, `[len, ...]`.

        Raises:
            InputError: the data have no labels.
        """
        labels = self.labels
        if labels is None:
            raise InputError(self.source.name, "has no labels", "a label for every image", self.source.labels_fix)
        return labels

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every image in order."""
        return tuple(self.source.row_name(row) for row in self._order())

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """`class_names[label]`, where the data say so (the sub-folders of an image folder)."""
        return self.source.class_names

    @property
    def skipped(self) -> list[str]:
        """Names of the chosen images that could not be read, as far as they have been met."""
        return [self.source.row_name(row) for row in self.order if row in self.source.bad]

    def take(self, n: int) -> Batches:
        """The first `n` images (all, if there are fewer).

        Raises:
            InputError: n < 1.
        """
        _at_least_one("take", n)
        return dataclasses.replace(self, order=self._order()[:n])

    def limited(self, limit: int, seed: int = 0) -> Batches:
        """At most `limit` images, drawn at random and balanced over the classes (see `balanced_order`).

        A source that can only be read in its own order (a data loader) keeps that order; else classes alternate.

        Raises:
            InputError: limit < 1.
        """
        _at_least_one("limit", limit)
        rows = np.asarray(self._order(), dtype=np.int64)
        chosen = rows[balanced_order(len(rows), self.labels, limit, seed)]
        if not self.source.random_access:
            chosen = np.sort(chosen)
        return dataclasses.replace(self, order=tuple(chosen.tolist()))

    def halved(self, seed: int = 0) -> tuple[Batches, Batches]:
        """Two sets that have no image in common and together have all, drawn at random and balanced over the classes.

        Raises:
            InputError: fewer than two images.
        """
        if len(self) < 2:
            raise InputError(self.source.name, f"{len(self)} image cannot be halved", "two images or more")
        rows = np.asarray(self._order(), dtype=np.int64)
        drawn = rows[balanced_order(len(rows), self.labels, len(rows), seed)]
        parts = (drawn[: (len(rows) + 1) // 2], drawn[(len(rows) + 1) // 2 :])
        if not self.source.random_access:
            parts = (np.sort(parts[0]), np.sort(parts[1]))
        first, second = (dataclasses.replace(self, order=tuple(part.tolist())) for part in parts)
        return first, second

    def shuffled(self, seed: int) -> Batches:
        """The same images in another order, which is fixed by `seed`: one epoch of training.

        Raises:
            UnsupportedError: the source can only be read in its own order.
        """
        if not self.source.random_access:
            raise UnsupportedError(
                self.source.name,
                "can only be read in its own order, so it cannot be shuffled",
                "an image folder, a zip, an npz or a dict of arrays",
            )
        order = np.random.default_rng(seed).permutation(np.asarray(self._order(), dtype=np.int64))
        return dataclasses.replace(self, order=tuple(order.tolist()))

    def _order(self) -> tuple[int, ...]:
        bad = self.source.bad
        return tuple(row for row in self.order if row not in bad) if bad else self.order

    def _batch(self, chunk: list[tuple[int, dict[str, np.ndarray]]]) -> Batch:
        numbers = [row for row, _ in chunk]
        filled = [arrays for _, arrays in chunk]
        if self.fixed:
            filled += [filled[-1]] * (self.batch_size - len(filled))
        labels = self.source.labels
        return Batch(
            inputs={name: np.stack([arrays[name] for arrays in filled]) for name in self.specs},
            labels=None if labels is None else labels[numbers],
            names=tuple(self.source.row_name(row) for row in numbers),
            valid=len(chunk),
        )


def balanced_order(n: int, labels: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """`min(limit, n)` of the rows 0 to n-1, drawn by `seed`, so that classes alternate.

    Every round takes one row from each class that still has one, in a drawn order of classes. So each prefix is
    balanced, and a smaller limit gives a prefix of a larger one. Without labels, or with labels that are not
    whole numbers `[n]`, it is a plain random draw.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
        >>> sorted(labels[balanced_order(8, labels, 6, seed=0)].tolist())
        [0, 0, 1, 1, 2, 2]
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(n)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return drawn[:limit]
    classes, index = np.unique(labels[drawn], return_inverse=True)
    by_class = np.argsort(index, kind="stable")
    counts = np.bincount(index)
    rounds = np.empty(n, dtype=np.int64)  # how many of the same class were drawn before
    rounds[by_class] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    turn = rng.permutation(len(classes))[index]
    return drawn[np.lexsort((turn, rounds))][:limit]


def _at_least_one(what: str, n: int) -> None:
    if n < 1:
        raise InputError(what, f"is {n}", "a whole number from 1 on", f"choose {what}=1 or more")
