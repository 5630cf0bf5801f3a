"""Latency and size of our file beside `quantize_static`'s and the float file, in interleaved rounds of one run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from peer import export, quantize_static, random_images
from record import Record, parser

import bitwright as bw
from bitwright.deploy.benchmark import benchmark
from bitwright.deploy.runtimes.onnxruntime import products_saturate

COLUMNS = [
    "network", "batch", "threads", "ours ms", "theirs ms", "reduced ms", "float ms", "ours / theirs", "ours / reduced",
    "ours / float", "size ours / float", "size theirs / float",
]  # fmt: skip


def main() -> None:
    """Time the three files of each network."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    made.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    made.add_argument("--rounds", type=int, default=10)
    flags = made.parse_args()
    record = Record(flags.output)
    for name in flags.network:
        keys = [{"network": name, "batch": b, "threads": t} for b in flags.batch for t in flags.threads]
        missing = [key for key in keys if not record.known(**key)]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            paths = write_files(name, Path(folder))
            for key in missing:
                record.add(key | compare(paths, key["batch"], key["threads"], flags.rounds))
                print(record.rows[-1], flush=True)
    record.show(COLUMNS)


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """The float file, ours, and the peer's; with 7-bit weights too where products of 8 bits saturate."""
    paths = {kind: folder / f"{kind}.onnx" for kind in ("ours", "theirs", "float")}
    images = random_images(8)
    export(name, paths["float"])
    bw.quantize(paths["float"], {"x": images}, batch=8).save(paths["ours"])
    quantize_static(paths["float"], paths["theirs"], images)
    if products_saturate():
        paths["reduced"] = folder / "reduced.onnx"
        quantize_static(paths["float"], paths["reduced"], images, reduce_range=True)
    return paths


def compare(paths: dict[str, Path], batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """One row: milliseconds, medians of the ratios within each round, sizes."""
    rows = benchmark(list(paths.values()), threads=threads, batch=batch, rounds=rounds)
    times = dict(zip(paths, rows, strict=True))
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    found: dict[str, Any] = {f"{kind} ms": timing.median_ms for kind, timing in times.items()}
    for kind in paths:
        if kind != "ours":
            found[f"ours / {kind}"] = 1 / times[kind].ratio
    return found | {
        "size ours / float": sizes["ours"] / sizes["float"],
        "size theirs / float": sizes["theirs"] / sizes["float"],
    }


if __name__ == "__main__":
    main()
