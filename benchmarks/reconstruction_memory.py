"""Peak memory of reconstructing the largest block of ResNet-50 at 224 pixels under a budget, with random weights.

What counts is the process's own resident memory at its peak (VmHWM), calibration and all before it included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from record import Record, parser

import bitwright as bw
from bitwright.models import build, example


class Images:
    """Random images, drawn anew and the same at each walk, so that none is kept."""

    def __init__(self, count: int, batch: int) -> None:
        self.count, self.batch = count, batch

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        draw = np.random.default_rng(0)
        for at in range(0, self.count, self.batch):
            shape = (min(self.batch, self.count - at), 3, 224, 224)
            yield {"x": draw.standard_normal(shape, dtype=np.float32)}


def peak_mib() -> float:
    """Peak of the process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    """Quantize with the budget, and say what it took."""
    made = parser(__doc__ or "")
    made.add_argument("--memory", default="4GiB")
    made.add_argument("--images", type=int, default=1024)
    made.add_argument("--iterations", type=int, default=50)
    made.add_argument("--block", default="layer1.0")
    flags = made.parse_args()
    record = Record(flags.output)
    settings: dict[str, Any] = {"iterations": flags.iterations, "images": flags.images, "only": (flags.block,)}
    start = time.perf_counter()
    quantized = bw.quantize(
        build("resnet50"), Images(flags.images, 8), example=example("resnet50"), recipe="learned", set=["W=4,A=4"],
        memory=flags.memory, batch=8,
        steps={"qdrop": settings, "calibrate": {"activations": "minmax", "weights": "minmax"}},
    )  # fmt: skip
    (told,) = (event.facts for event in quantized.state.log if "spilled" in event.facts)
    record.add({
        "block": flags.block, "images": flags.images, "iterations": flags.iterations, "memory": flags.memory,
        "peak MiB": peak_mib(), "spilled MiB": told["spilled"] / 2**20, "units": len(told["units"]),
        "seconds": time.perf_counter() - start,
    })  # fmt: skip
    record.show(list(record.rows[-1]))


if __name__ == "__main__":
    main()
