"""Size and latency of one network at several widths, beside its int8 file, in interleaved rounds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from exactness import WIDTHS
from record import Record, parser

import bitwright as bw
from bitwright.deploy.benchmark import benchmark
from bitwright.models import build, example


def main() -> None:
    """Write the network at each width, then time all files in the same rounds."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", default=["resnet18", "mobilenet_v2"])
    made.add_argument("--width", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument(
        "--loads", type=int, default=1,
        help="load each file so often: a session's place in memory alone can cost 30 % of a run of a few milliseconds",
    )  # fmt: skip
    flags = made.parse_args()
    record = Record(flags.output)
    for name in flags.network:
        missing = [b for b in flags.batch if not record.known(network=name, batch=b)]
        if not missing:
            continue
        network, sample = build(name), example(name)
        data = {"x": np.random.default_rng(0).standard_normal((4, *network.input_shape)).astype(np.float32)}
        widths = ["int8", *(w for w in flags.width if w != "int8")]
        with tempfile.TemporaryDirectory() as folder:
            files, sizes = [Path(folder) / f"{w}.onnx" for w in widths], []
            for width, file in zip(widths, files, strict=True):
                sizes.append(bw.quantize(network, data, example=sample, set=WIDTHS[width]).save(file))
            float_bytes = sum(p.numel() for p in network.parameters()) * 4
            for batch in missing:
                timings = benchmark(files * flags.loads, threads=flags.threads, batch=batch, rounds=flags.rounds)
                ratios = np.array([timing.ratio for timing in timings]).reshape(flags.loads, len(files))
                times = np.array([timing.median_ms for timing in timings]).reshape(flags.loads, len(files))
                middle = np.median(ratios, axis=0) / np.median(ratios[:, 0])
                for i, (width, size) in enumerate(zip(widths, sizes, strict=True)):
                    record.add({
                        "network": name, "width": width, "batch": batch, "threads": flags.threads,
                        "loads": flags.loads, "to int8": float(middle[i]), "ms": float(np.median(times[:, i])),
                        "spread of loads": float(times[:, i].max() / times[:, i].min()), "bytes": size,
                        "size": size / float_bytes,
                    })  # fmt: skip
                    print(record.rows[-1], flush=True)
    record.show(["network", "width", "batch", "threads", "to int8", "spread of loads", "ms", "bytes", "size"])


if __name__ == "__main__":
    main()
