"""Codes that differ between simulation and runtime, on whole networks, at every width."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from record import ROOT, Record, parser

import bitwright as bw
from bitwright.deploy.runtimes.onnxruntime import products_saturate
from bitwright.models import build, example
from bitwright.models.light import LIGHT, light_model

SMALL = (
    "residual", "inverted_residual", "inception", "dense", "squeeze_excite", "shuffle", "unet", "conv_transpose",
    "vit", "bert",
)  # fmt: skip
FILES = {
    "resnet20": ("resnet20_cifar10.onnx", "cifar10"),
    "mobilenetv2": ("mobilenetv2_tiny_imagenet.onnx", "tiny-imagenet"),
    "resnet18": ("resnet18_tiny_imagenet.onnx", "tiny-imagenet"),
}
WIDTHS = {
    "int8": (), "W4A8": ("W=4,A=8",), "W4A4": ("W=4,A=4",), "W2A8": ("W=2,A=8",), "log2-W4A8": ("W=log2-4,A=8",),
    "W1A8": ("W=1,A=8",),
}  # fmt: skip


def networks(shared: Path, wanted: list[str] | None) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """Name, model, calibration data, test data and example batch of each network."""
    assets = ROOT / "tests" / "assets"
    known = {"digits": lambda: (assets / "digits.onnx", assets / "digits_calib.npz", assets / "digits.npz", None)}
    known |= {f"small_{name}": lambda name=name: _small(f"small_{name}") for name in SMALL}
    for name, (file, folder) in FILES.items():
        data = shared / "data" / folder
        if data.exists():
            model = shared / "data" / "models" / file
            known[name] = lambda model=model, data=data: (model, data / "calib", data / "dev", None)
        else:
            print(f"{name} left out: {data} does not exist")
    known |= {f"light_{name}": lambda name=name: _light(name) for name in LIGHT}
    for name, make in known.items():
        if wanted is None or name in wanted:
            yield (name, *make())


def _small(name: str) -> tuple[Any, Any, Any, Any]:
    network = build(name)
    x = example(name, 128).numpy()
    key = "tokens" if name == "small_bert" else "x"
    return network, {key: x[:64]}, {key: x[64:]}, example(name)


def _light(name: str) -> tuple[Any, Any, Any, Any]:
    model = ir.from_proto(light_model(name))
    (image,) = model.graph.inputs
    x = np.random.default_rng(0).standard_normal((6, 3, 224, 224)).astype(np.float32)
    return model, {image.name: x[:4]}, {image.name: x[4:]}, None


def main() -> None:
    """Verify each network at each width, at batch 1 and 16 (or its own) with 1 and 2 threads."""
    made = parser(__doc__ or "")
    made.add_argument("--images", type=int, default=0, help="at most so many; 0 for all")
    made.add_argument("--target", nargs="+", default=["onnxruntime-x64-avx2", "onnxruntime-x64"])
    made.add_argument("--network", nargs="+", default=None)
    made.add_argument("--width", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    made.add_argument("--calibration", type=int, default=64, help="images to set ranges from; 0 for all")
    flags = made.parse_args()
    record = Record(flags.output)
    for name, model, calibration, test, sample in networks(flags.shared, flags.network):
        batches = (1,) if name.startswith("light_") else (1, 16)
        for target, width in ((t, w) for t in flags.target for w in flags.width):
            runs = [
                {"network": name, "target": target, "width": width, "batch": b, "threads": t}
                for b in batches for t in (1, 2)
            ]  # fmt: skip
            missing = [key for key in runs if not record.known(**key)]
            if not missing:
                continue
            start = time.perf_counter()
            quantized = bw.quantize(
                model, calibration, recipe="int8", example=sample, target=target, set=WIDTHS[width],
                limit=flags.calibration, batch=batches[-1] if batches == (1,) else 32,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            # Runtimes other than ONNX Runtime have no precise kernels.
            precise = target == "onnxruntime-x64" and products_saturate()
            with tempfile.TemporaryDirectory() as folder:
                size = quantized.save(Path(folder) / "model.onnx")
            for key in missing:
                found = quantized.verify(
                    test, batch=key["batch"], limit=flags.images, threads=key["threads"], precise=precise
                )
                record.add(key | {
                    "precise": precise, "images": found.images, "tensors": found.tensors, "codes": found.codes,
                    "mismatches": found.mismatches, "float simulation misses": found.fake_quant_mismatches,
                    "integer MACs": quantized.integer_mac_share(), "proven": found.proven, "bytes": size,
                    "seconds": seconds, "float ops": sorted(set(quantized.plan.refused.values())),
                })  # fmt: skip
                print({k: v for k, v in record.rows[-1].items() if k != "float ops"}, flush=True)
    record.show(["network", "target", "width", "batch", "threads", "images", "tensors", "codes", "mismatches",
                 "float simulation misses", "integer MACs", "bytes", "proven"])  # fmt: skip


if __name__ == "__main__":
    main()
