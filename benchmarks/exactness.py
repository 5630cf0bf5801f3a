"""Codes that differ between simulation and runtime, on whole networks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, Record, parser

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.models import build, example


def networks(shared: Path) -> dict[str, Any]:
    """`{name: (model, calibration data, test data, example)}`."""
    found: dict[str, Any] = {}
    assets = ROOT / "tests" / "assets"
    found["digits"] = (assets / "digits.onnx", assets / "digits_calib.npz", assets / "digits.npz", None)
    for name in ("small_residual", "small_inverted_residual", "small_inception", "small_dense"):
        network = build(name)
        x = np.random.default_rng(0).standard_normal((64, *network.input_shape)).astype(np.float32)
        found[name] = (network, {"x": x}, {"x": x[::-1].copy()}, example(name))
    cifar = shared / "data" / "cifar10"
    if cifar.exists():
        found["resnet20"] = (shared / "data/models/resnet20_cifar10.onnx", cifar / "calib", cifar / "dev", None)
    else:
        print(f"resnet20 left out: {cifar} does not exist")
    return found


def main() -> None:
    """Verify each network at batch 1 and 16 with 1 and 2 threads."""
    made = parser(__doc__ or "")
    made.add_argument("--images", type=int, default=0, help="at most so many; 0 for all")
    made.add_argument("--target", nargs="+", default=["onnxruntime-x64-avx2", "onnxruntime-x64"])
    made.add_argument("--network", nargs="+", default=None)
    flags = made.parse_args()
    record = Record(flags.output)
    for name, (model, calibration, test, sample) in networks(flags.shared).items():
        if flags.network and name not in flags.network:
            continue
        for target in flags.target:
            runs = [{"network": name, "target": target, "batch": b, "threads": t} for b in (1, 16) for t in (1, 2)]
            missing = [key for key in runs if not record.known(**key)]
            if not missing:
                continue
            quantized = bw.quantize(model, calibration, example=sample, target=target)
            for key in missing:
                precise = target == "onnxruntime-x64" and products_saturate()
                with tempfile.TemporaryDirectory() as folder:
                    quantized.save(Path(folder) / "model.onnx")
                    found = quantized.verify(
                        test, batch=key["batch"], limit=flags.images, threads=key["threads"], precise=precise
                    )
                record.add(key | {
                    "precise": precise, "images": found.images, "tensors": found.tensors, "codes": found.codes,
                    "mismatches": found.mismatches, "float simulation misses": found.fake_quant_mismatches,
                    "integer MACs": quantized.integer_mac_share(), "proven": found.proven,
                })  # fmt: skip
                print(record.rows[-1], flush=True)
    record.show(["network", "target", "batch", "threads", "precise", "images", "tensors", "codes", "mismatches",
                 "float simulation misses", "integer MACs", "proven"])  # fmt: skip


if __name__ == "__main__":
    main()
