"""What a runtime is to us: something that loads a file and runs it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

#: Features of a processor on which integer kernels depend, as Linux calls them.
FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


class Runtime(Protocol):
    """One file, loaded; a class of this form is a row of `RUNTIMES`.

    Attributes:
        name, version: of the runtime; `version` is "" where it is not installed.
        where: what errors call the model.
        inputs, outputs: names.
        shapes, types: of each input; None for an open dimension, ONNX's names of types ("tensor(float)").
    """

    name: ClassVar[str]
    version: ClassVar[str]
    where: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]]
    types: Mapping[str, str]

    def __init__(self, model: str | Path | bytes, threads: int = 0, outputs: Sequence[str] = ()) -> None:
        """Load a file or a serialized model; `threads` within an op, 0 for one a core."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named inputs to named outputs."""
        ...

    @staticmethod
    def saturates() -> bool:
        """Whether its kernels on this machine add pairs of products in int16, and saturate there."""
        ...


@cache
def processor() -> str:
    """The processor and those of its features on which integer kernels depend."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    found = set(flags.group(1).split()) if flags else set()
    known = " ".join(feature for feature in FEATURES if feature in found)
    return f"{name.group(1).strip() if name else platform.machine()} ({known or 'none of the features known here'})"
