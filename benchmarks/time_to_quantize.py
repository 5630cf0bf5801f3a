"""Seconds and peak memory to quantize ResNet-50 from a float file to an integer file, ours and `quantize_static`'s.

Each runs in a process of its own, one after the other; both read every image, in batches of 8, min-max.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from record import Record, parser

SAMPLE_SECONDS = 0.02


class OwnMemory(threading.Thread):
    """Largest memory of this process without the pages of files that it maps (Linux), in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0.0, threading.Event()

    def run(self) -> None:
        """Look at it again and again."""
        while not self.done.wait(SAMPLE_SECONDS):
            text = Path("/proc/self/status").read_text()
            line = next(line for line in text.splitlines() if line.startswith("RssAnon:"))
            self.peak = max(self.peak, int(line.split()[1]) / 1024)


def measure(who: str, source: str, folder: str, images: int) -> None:
    """Quantize in this process, and print what it took as JSON. Imports are part of it."""
    data, out = Path(folder) / f"images_{images}.npz", Path(folder) / f"{who}.onnx"
    memory = OwnMemory()
    memory.start()
    start, preparing = time.perf_counter(), 0.0
    if who == "ours":
        import bitwright as bw

        bw.quantize(source, data, batch=8).save(out)
    else:
        from peer import quantize_static

        from bitwright.data.arrays import npz_arrays  # maps the array, as ours does

        preparing = quantize_static(Path(source), out, npz_arrays(data, str(data))["x"])
    seconds = time.perf_counter() - start
    memory.done.set()
    memory.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": seconds, "pre-processing": preparing, "peak MB": peak, "own MB": memory.peak}
    print(json.dumps(found | {"bytes": out.stat().st_size}))


def random_npz(path: Path, images: int) -> None:
    """Random images as an uncompressed `.npz`, made a few at a time."""
    generator = np.random.default_rng(0)
    plain = path.with_suffix(".npy")
    array = np.lib.format.open_memmap(plain, "w+", np.float32, (images, 3, 224, 224))
    for i in range(images):
        array[i] = generator.standard_normal((3, 224, 224), dtype=np.float32)
    array.flush()
    del array
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(plain, "x.npy")
    plain.unlink()


def main() -> None:
    """Measure both at --images, and ours at other numbers of images."""
    if len(sys.argv) > 2 and sys.argv[1] == "measure":
        measure(*sys.argv[2:5], int(sys.argv[5]))
        return
    made = parser(__doc__ or "")
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--memory-images", type=int, nargs="*", default=[128, 1024])
    flags = made.parse_args()
    from peer import export

    record = Record(flags.output)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "resnet50.onnx"
        export("resnet50", source)
        runs = [("ours", flags.images), ("theirs", flags.images), *(("ours", n) for n in flags.memory_images)]
        for who, images in runs:
            if record.known(who=who, images=images):
                continue
            path = Path(folder) / f"images_{images}.npz"
            if not path.exists():
                random_npz(path, images)
            command = [sys.executable, __file__, "measure", who, str(source), folder, str(images)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            record.add({"who": who, "images": images, **json.loads(done.stdout.splitlines()[-1])})
            print(record.rows[-1], flush=True)
    record.show(["who", "images", "seconds", "pre-processing", "peak MB", "own MB", "bytes"])
    print("peak MB counts the pages of the mapped images too, own MB does not")
    rows: dict[str, Any] = {row["who"]: row for row in record.rows if row["images"] == flags.images}
    ours, theirs = rows["ours"]["seconds"], rows["theirs"]["seconds"]
    alone = theirs - rows["theirs"]["pre-processing"]
    print(
        f"ours / theirs at {flags.images} images: {ours / theirs:.3f}, without their pre-processing {ours / alone:.3f}"
    )


if __name__ == "__main__":
    main()
