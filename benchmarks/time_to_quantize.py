"""Seconds and peak memory to quantize ResNet-50 from a float file to an integer file, ours and `quantize_static`'s.

Each runs in a process of its own, one after the other; both read every image, in batches of 8, min-max.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import Record, parser


def measure(who: str, source: str, folder: str, images: int) -> None:
    """Quantize in this process, and print what it took as JSON."""
    import numpy as np
    from peer import quantize_static

    data = np.load(Path(folder) / f"images_{images}.npy", mmap_mode="r")
    out = Path(folder) / f"{who}.onnx"
    start = time.perf_counter()
    if who == "ours":
        import bitwright as bw

        bw.quantize(source, {"x": data}, batch=8).save(out)
    else:
        quantize_static(Path(source), out, data)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak MB": peak, "bytes": out.stat().st_size}))


def main() -> None:
    """Measure both at --images, and ours at other numbers of images."""
    if len(sys.argv) > 2 and sys.argv[1] == "measure":
        measure(*sys.argv[2:5], int(sys.argv[5]))
        return
    made = parser(__doc__ or "")
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--memory-images", type=int, nargs="*", default=[128, 1024])
    flags = made.parse_args()
    import numpy as np
    from peer import export

    record = Record(flags.output)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "resnet50.onnx"
        export("resnet50", source)
        runs = [("ours", flags.images), ("theirs", flags.images), *(("ours", n) for n in flags.memory_images)]
        for who, images in runs:
            if record.known(who=who, images=images):
                continue
            path = Path(folder) / f"images_{images}.npy"
            if not path.exists():
                array = np.lib.format.open_memmap(path, "w+", np.float32, (images, 3, 224, 224))
                generator = np.random.default_rng(0)
                for i in range(images):
                    array[i] = generator.standard_normal((3, 224, 224), dtype=np.float32)
                array.flush()
                del array
            command = [sys.executable, __file__, "measure", who, str(source), folder, str(images)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            record.add({"who": who, "images": images, **json.loads(done.stdout.splitlines()[-1])})
            print(record.rows[-1], flush=True)
    record.show(["who", "images", "seconds", "peak MB", "bytes"])
    seconds = {row["who"]: row["seconds"] for row in record.rows if row["images"] == flags.images}
    print(f"ours / theirs at {flags.images} images: {seconds['ours'] / seconds['theirs']:.3f}")


if __name__ == "__main__":
    main()
