"""Anything that can be walked twice (a list of batches, a data loader) as a source of rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitwright.data.arrays import LABELS, as_numpy, check_finite, check_labels, check_row, shape_text
from bitwright.data.batches import InputSpecs, Rows
from bitwright.errors import InputError

ACCEPTED = "arrays, (arrays, labels) or {input: array}"


@dataclass(frozen=True, kw_only=True, eq=False)
class IterableSource:
    """The rows of the batches that `batches` gives, in its order, whatever their sizes.

    Built by `iterable_source`, which walks it once. `checksums` hold what each batch was then, so that a source that
    gives something else the next time (shuffled, augmented) is refused instead of matched with the wrong labels.
    """

    name: str
    batches: Iterable[Any]
    specs: InputSpecs
    labels: np.ndarray | None
    sizes: tuple[int, ...]
    checksums: tuple[int, ...]
    class_names: None = None
    random_access: bool = False
    bad: set[int] = field(default_factory=set)

    @property
    def labels_fix(self) -> str:
        """Where labels would go."""
        return "let it give (arrays, labels)"

    def __len__(self) -> int:
        return sum(self.sizes)

    def row_name(self, row: int) -> str:
        """`name[row]`."""
        return f"{self.name}[{row}]"

    def rows(self, order: Sequence[int], ahead: int) -> Rows:
        """The rows of an ascending order, one batch of the source at a time.

        Raises:
            InputError: the source does not give what it gave when it was opened.
        """
        wanted = iter(order)
        row = next(wanted, None)
        start = 0
        given = iter(self.batches)
        for number, size in enumerate(self.sizes):
            if row is None:
                return
            try:
                item = next(given)
            except StopIteration:
                raise self._changed(f"ended after {start} images instead of {len(self)}") from None
            arrays, labels = split_item(item, self.specs, f"{self.name}[{number}]")
            if checksum(arrays, labels) != self.checksums[number]:
                raise self._changed(f"gave another batch {number} than before")
            while row is not None and row < start + size:
                yield row, {name: array[row - start] for name, array in arrays.items()}
                row = next(wanted, None)
            start += size

    def _changed(self, found: str) -> InputError:
        fix = "turn off shuffling and random augmentation, or give a list of batches"
        return InputError(self.name, f"{found} when it was read again", "the same data at every reading", fix)


def iterable_source(batches: Iterable[Any], specs: InputSpecs, where: str) -> IterableSource:
    """A source of the rows of re-iterable batches; walks them once to count and check them.

    Raises:
        InputError: it can be walked only once; it is empty; an item is none of `ACCEPTED`; a wrong shape or type;
            NaN or infinity; labels for some batches only.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            where,
            f"is a {type(batches).__name__}, which can be read only once",
            "something that can be walked again and again",
            "give a list of batches, a dict of arrays, or an object whose __iter__ starts afresh",
        )
    sizes: list[int] = []
    sums: list[int] = []
    labels: list[np.ndarray | None] = []
    first: dict[str, tuple[int, ...]] = {}
    for number, item in enumerate(batches):
        at = f"{where}[{number}]"
        arrays, item_labels = split_item(item, specs, at)
        for name, array in arrays.items():
            check_row(array, name, specs, f"{at}[{name!r}]", file=False)
            check_finite(array, f"{where}[{name!r}]", first=sum(sizes))
            if array.shape[1:] != first.setdefault(name, array.shape[1:]):
                found, expected = shape_text(array.shape[1:]), shape_text(first[name])
                raise InputError(f"{at}[{name!r}]", f"its rows are {found}", f"{expected} as in the batches before")
        sizes.append(len(next(iter(arrays.values()))))
        sums.append(checksum(arrays, item_labels))
        labels.append(item_labels)
    if not sum(sizes):
        raise InputError(where, "is empty", ACCEPTED, "give at least one batch")
    given = [each for each in labels if each is not None]
    if given and len(given) < len(labels):
        without = next(number for number, each in enumerate(labels) if each is None)
        raise InputError(f"{where}[{without}]", "has no labels, but other batches have", "labels for all or for none")
    return IterableSource(
        name=where,
        batches=batches,
        specs=specs,
        labels=np.concatenate(given) if given else None,
        sizes=tuple(sizes),
        checksums=tuple(sums),
    )


def split_item(item: Any, specs: InputSpecs, where: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """What one step of an iterable gives, as `{input: [k, ...]}` and labels `[k, ...]` or None.

    With n inputs, a tuple or list has n entries, or n + 1 with labels. A single image without a batch axis is a batch
    of one.

    Raises:
        InputError: it is something else, or the lengths differ.
    """
    labels: Any = None
    if isinstance(item, Mapping):
        arrays = _of_mapping(item, specs, where)
        labels = item.get(LABELS) if LABELS not in specs else None
    elif isinstance(item, tuple | list):
        if len(item) == 2 and isinstance(item[0], Mapping):
            arrays, labels = _of_mapping(item[0], specs, where), item[1]
        elif len(item) in (len(specs), len(specs) + 1):
            arrays = {name: as_numpy(x, where) for name, x in zip(specs, item, strict=False)}
            labels = item[-1] if len(item) > len(specs) else None
        else:
            n = len(specs)
            found = f"a {type(item).__name__} of {len(item)} entries"
            raise InputError(where, found, f"{n}, or {n + 1} with labels (inputs: {', '.join(specs)})")
    elif len(specs) == 1:
        arrays = {next(iter(specs)): as_numpy(item, where)}
    else:
        found, fix = f"a {type(item).__name__} for {len(specs)} inputs", f"name them: {', '.join(specs)}"
        raise InputError(where, found, "a tuple or a dict", fix)
    single = all(array.ndim == len(specs[name][0]) - 1 for name, array in arrays.items())
    if single:
        arrays = {name: array[None] for name, array in arrays.items()}
    sizes = {len(array) if array.ndim else -1 for array in arrays.values()}
    if len(sizes) > 1:
        raise InputError(where, f"its inputs have {sorted(sizes)} rows", "the same number in all")
    if labels is None:
        return arrays, None
    labels = as_numpy(labels, f"{where}[{LABELS!r}]")
    return arrays, check_labels(labels[None] if single else labels, sizes.pop(), where)


def _of_mapping(item: Mapping[str, Any], specs: InputSpecs, where: str) -> dict[str, np.ndarray]:
    for name in specs:
        if name not in item:
            raise InputError(where, f"has {', '.join(map(str, item)) or 'nothing'}", f"an array {name!r}")
    return {name: as_numpy(item[name], f"{where}[{name!r}]") for name in specs}


def checksum(arrays: Mapping[str, np.ndarray], labels: np.ndarray | None) -> int:
    """A number that changes when a batch does (CRC-32 of all its bytes)."""
    total = 0
    for array in (*arrays.values(), *([] if labels is None else [labels])):
        total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data, total)
    return total
