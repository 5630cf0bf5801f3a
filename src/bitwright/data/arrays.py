"""Arrays as rows of data: a dict of arrays, and `.npz` files, which stay on disk where they are not compressed."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.data.batches import InputSpecs, Rows
from bitwright.errors import InputError, UnsupportedError
from bitwright.lookup import did_you_mean

LABELS = "labels"
CHECKED_AT_ONCE = 1 << 24  # elements that are searched for NaN in one step


def numpy_dtype(name: str, where: str) -> np.dtype[Any]:
    """The numpy type of this name, with ml_dtypes' types (bfloat16 ...) where that package is installed.

    Raises:
        UnsupportedError: numpy knows no such type.

    Example:
        >>> numpy_dtype("float32", "image")
        dtype('float32')
    """
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(where, f"has the type {name!r}, which numpy does not know") from error


def fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Whether a shape is the expected one, where None fits any size.

    Example:
        >>> fits((3, 32, 32), (3, None, None)), fits((3, 32), (3, 64))
        (True, False)
    """
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape for people; `?` where any size fits.

    Example:
        >>> shape_text((3, None, 8))
        '[3, ?, 8]'
    """
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def as_numpy(value: Any, where: str) -> np.ndarray:
    """An array, a tensor of any framework, or numbers, as a numpy array.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(value, "detach"):  # a torch tensor, recognised without importing torch
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type; through float32 it is exact
            return value.float().numpy().astype(numpy_dtype("bfloat16", where))
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(where, f"a {type(value).__name__} is no array ({error})", "an array of numbers") from error
    if array.dtype.kind not in "biufcV":
        raise InputError(where, f"holds a {type(value).__name__} of type {array.dtype}", "an array of numbers")
    return array


def check_finite(array: np.ndarray, where: str, first: int = 0) -> None:
    """Refuse NaN and infinity; `first` is the index of the first row of `array`.

    Raises:
        InputError: naming the row.
    """
    if array.dtype.kind not in "fc" and array.dtype.name != "bfloat16":
        return
    step = max(1, CHECKED_AT_ONCE // max(1, array[0].size)) if len(array) else 1
    for start in range(0, len(array), step):
        rows = np.isfinite(array[start : start + step]).reshape(len(array[start : start + step]), -1).all(axis=1)
        if not rows.all():
            row = start + int(np.argmin(rows))
            value = "NaN" if np.isnan(array[row]).any() else "infinity"
            raise InputError(where, f"image {first + row} holds {value}", "finite numbers", "remove or repair it")


def check_row(array: np.ndarray, name: str, specs: InputSpecs, where: str, file: bool) -> None:
    """Refuse an array `[rows, ...]` whose type or shape is not that of the input `name`.

    Raises:
        InputError: the wrong type or shape.
    """
    shape, dtype = specs[name]
    wanted = shape_text((None, *shape[1:]))
    if array.ndim != len(shape) or not fits(array.shape[1:], shape[1:]):
        transposed = sorted(map(str, array.shape[1:])) == sorted(map(str, shape[1:]))
        fix = "transpose its axes" if transposed else f"{'store' if file else 'give'} it as {wanted}"
        raise InputError(where, f"has the shape {shape_text(array.shape)}", wanted, fix)
    if array.dtype != numpy_dtype(dtype, name):
        raise InputError(where, f"is {array.dtype}", dtype, f"convert it with .astype('{dtype}')")


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource:
    """Arrays `{input: [rows, ...]}` with `labels [rows, ...]` or None."""

    name: str
    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    class_names: None = None
    random_access: bool = True
    bad: set[int] = field(default_factory=set)

    @property
    def labels_fix(self) -> str:
        """Where labels would go."""
        return f"add an array {LABELS!r} with one label for each row"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def row_name(self, row: int) -> str:
        """`name[row]`."""
        return f"{self.name}[{row}]"

    def rows(self, order: Sequence[int], ahead: int) -> Rows:
        """The rows in order; nothing is read ahead."""
        for row in order:
            yield row, {name: array[row] for name, array in self.arrays.items()}


def array_source(arrays: Mapping[str, Any], specs: InputSpecs, where: str, file: bool = False) -> ArraySource:
    """Arrays by input name, and `labels`, as a source; everything is checked here, once.

    Raises:
        InputError: an input is missing; a wrong shape, type or length; NaN or infinity; no rows.
    """
    found: dict[str, np.ndarray] = {}
    for name in specs:
        if name not in arrays:
            keys = ", ".join(sorted(arrays)) or "nothing"
            raise InputError(where, f"has {keys}", f"an array {name!r}", did_you_mean(name, arrays))
        found[name] = as_numpy(arrays[name], f"{where}[{name!r}]")
        check_row(found[name], name, specs, f"{where}[{name!r}]", file)
    rows = {name: len(array) for name, array in found.items()}
    first, n = next(iter(rows.items()))
    for name, length in rows.items():
        if length != n:
            raise InputError(where, f"{name!r} has {length} rows, {first!r} has {n}", "one row for each image in all")
    if n == 0:
        raise InputError(where, f"{first!r} has no rows", "at least one image")
    labels = None
    if LABELS in arrays and LABELS not in specs:
        labels = check_labels(as_numpy(arrays[LABELS], f"{where}[{LABELS!r}]"), n, where)
    for name, array in found.items():
        check_finite(array, f"{where}[{name!r}]")
    return ArraySource(name=where, arrays=found, labels=labels)


def check_labels(labels: np.ndarray, n: int, where: str) -> np.ndarray:
    """The labels, if there are `n` of them.

    Raises:
        InputError: another number of labels, or no first axis.
    """
    if labels.ndim == 0 or len(labels) != n:
        found = "a single number" if labels.ndim == 0 else f"{len(labels)} labels"
        raise InputError(
            where, f"has {found} for {n} images", f"{n} labels", "give one label for each image, in order"
        )
    return labels


def npz_arrays(file: Path | bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`; those that are stored uncompressed in a file are mapped, not read.

    Raises:
        InputError: the file is damaged, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if not members:
                raise ValueError("there are no arrays in it")
            return {m.filename.removesuffix(".npy"): _member(archive, m, file) for m in members}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError) as error:
        raise InputError(where, f"is no readable .npz ({error})", "arrays by numpy.savez", "write it again") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path | bytes) -> np.ndarray:
    """One array: a map of the file where it lies there as it is, else read."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if isinstance(file, bytes) or member.compress_type != zipfile.ZIP_STORED or read_header is None:
            stream.seek(0)
            return np.lib.format.read_array(stream, allow_pickle=False)
        shape, fortran, dtype = read_header(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects")
    if member.file_size != header + dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{member.filename} is cut off")
    if 0 in shape or not shape:  # nothing to map
        return np.zeros(shape, dtype) if 0 in shape else _whole(archive, member)
    with open(file, "rb") as raw:
        # a local header: 30 bytes, of which the last four are the lengths of the name and of the extra field
        raw.seek(member.header_offset + 26)
        name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
    offset = member.header_offset + 30 + name + extra + header
    if offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) > os.path.getsize(file):
        raise ValueError(f"{member.filename} is cut off")
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def _whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
