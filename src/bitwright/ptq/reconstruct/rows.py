"""The values of a network's activations for every calibration image, in memory or, beyond a budget, in a file.

A file is read and written by position, not mapped: pages of a mapped file would count as the process's own memory.
Images are stored with their channels last, the layout in which convolutions of few channels and elementwise work are
fastest on a CPU, and what is read comes in it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from bitwright.plan.encoding import Encoding

#: Axes of a batch of images.
IMAGES = 4


@dataclass(kw_only=True, eq=False)
class Budget:
    """Bytes that cached values may take in memory; what does not fit lies in files.

    Attributes:
        limit: bytes; None for no limit.
        folder: of the files; the system's for temporary files if empty.
        used: bytes in memory now.
        spilled: bytes that went into files so far.
    """

    limit: int | None = None
    folder: str = ""
    used: int = field(default=0, init=False)
    spilled: int = field(default=0, init=False)


class Rows:
    """One value for `count` images: `rows[index]` are those of some images.

    Args:
        count: images.
        shape: of one image's value.
        budget: of the memory.
        encoding: of a value that lies on its grid: its codes are stored, in a byte each where they fit.
        dtype: of what is stored otherwise; float32 if None.

    Example:
        >>> rows = Rows(3, (2,), Budget(limit=0))
        >>> rows.write(0, torch.arange(6.0).reshape(3, 2))
        >>> rows[torch.tensor([2, 0])].tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    def __init__(
        self, count: int, shape: tuple[int, ...], budget: Budget, encoding: Encoding | None = None, *,
        dtype: np.dtype[Any] | None = None,
    ) -> None:  # fmt: skip
        self._file: IO[bytes] | None = None
        self._array: np.ndarray | None = None
        self.count, self.shape, self.budget = count, shape, budget
        self._stored = (*shape[1:], shape[0]) if 1 + len(shape) == IMAGES else shape
        fits = encoding is not None and encoding.spec.grid.qmin >= 0 and encoding.spec.grid.qmax <= 255
        self.encoding = encoding if fits else None
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if fits else dtype or np.dtype(np.float32)
        self.bytes = count * int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        if budget.limit is not None and budget.used + self.bytes > budget.limit:
            self._file = tempfile.TemporaryFile(dir=budget.folder or None, buffering=0)
            budget.spilled += self.bytes
        else:
            self._array = np.empty((count, *self._stored), dtype=self.dtype)
            budget.used += self.bytes

    def write(self, first: int, values: Tensor) -> None:
        """Set the rows from `first` on."""
        stored = values if self.encoding is None else self.encoding.quantize(values)
        stored = stored.movedim(1, -1) if stored.ndim == IMAGES else stored
        array = np.ascontiguousarray(stored.detach().numpy().astype(self.dtype, copy=False))
        if self._array is not None:
            self._array[first : first + len(array)] = array
            return
        assert self._file is not None
        left, at = memoryview(array.reshape(-1).view(np.uint8).data), first * self._row_bytes()
        while left:
            done = os.pwrite(self._file.fileno(), left, at)
            left, at = left[done:], at + done

    def __getitem__(self, index: Tensor) -> Tensor:
        numbers = index.numpy()
        found = self._read(numbers) if self._array is None else self._array[numbers]
        values = torch.from_numpy(found)
        values = values.movedim(-1, 1) if values.ndim == IMAGES else values
        if self.encoding is None:
            return values
        return self.encoding.dequantize(values.int() if self.encoding.levels is not None else values.float())

    def __len__(self) -> int:
        return self.count

    def _row_bytes(self) -> int:
        return self.bytes // self.count

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        assert self._file is not None
        found = np.empty((len(numbers), *self._stored), dtype=self.dtype)
        size = self._row_bytes()
        for row, number in zip(found.reshape(len(numbers), -1).view(np.uint8), numbers.tolist(), strict=True):
            left, at = memoryview(row.data), number * size
            while left:
                done = os.preadv(self._file.fileno(), [left], at)
                left, at = left[done:], at + done
        return found

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory, or the file, back."""
        if self._array is not None:
            self.budget.used -= self.bytes
        if self._file is not None:
            self._file.close()
        self._array, self._file = None, None
