"""Latency and size of our file beside `quantize_static`'s and the float file, in interleaved rounds of one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peer import export, quantize_static, random_images
from record import Record, parser

import bitwright as bw
from bitwright.deploy.benchmark import benchmark
from bitwright.deploy.runtimes.onnxruntime import products_saturate


def main() -> None:
    """Time the three files of each network."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    made.add_argument("--threads", type=int, nargs="+", default=[2])
    made.add_argument("--rounds", type=int, default=10)
    flags = made.parse_args()
    record = Record(flags.output)
    images = random_images(8)
    for name in flags.network:
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: Path(folder) / f"{kind}.onnx" for kind in ("theirs", "ours", "float")}
            export(name, paths["float"])
            bw.quantize(paths["float"], {"x": images}, batch=8).save(paths["ours"])
            quantize_static(paths["float"], paths["theirs"], images, reduce_range=products_saturate())
            sizes = {kind: path.stat().st_size for kind, path in paths.items()}
            for batch in flags.batch:
                for threads in flags.threads:
                    if record.known(network=name, batch=batch, threads=threads):
                        continue
                    rows = benchmark(list(paths.values()), threads=threads, batch=batch, rounds=flags.rounds)
                    theirs, ours, plain = rows
                    record.add({
                        "network": name, "batch": batch, "threads": threads, "ours ms": ours.median_ms,
                        "theirs ms": theirs.median_ms, "float ms": plain.median_ms, "ours / theirs": ours.ratio,
                        "float / ours": plain.ratio / ours.ratio, "size ours / float": sizes["ours"] / sizes["float"],
                        "size theirs / float": sizes["theirs"] / sizes["float"],
                    })  # fmt: skip
                    print(record.rows[-1], flush=True)
    record.show(["network", "batch", "threads", "ours ms", "theirs ms", "float ms", "ours / theirs", "float / ours",
                 "size ours / float", "size theirs / float"])  # fmt: skip


if __name__ == "__main__":
    main()
