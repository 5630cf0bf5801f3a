"""Closed-form rounding: seconds for ResNet-18 at 224x224, and accuracy of trained networks beside rounding to nearest.

The seconds are those of the step `gptq` alone, on random weights and images; accuracy is of the written file in its
runtime, or simulated where --placement is paper.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from accuracy import NETWORKS
from record import Record, parser

import bitwright as bw
from bitwright.models import build, example
from bitwright.ptq.gptq import Gptq
from bitwright.verbs.preparing import data_for
from bitwright.verbs.quantized import Quantized
from bitwright.verbs.terminal import Terminal


def seconds(network: str, images: int) -> float:
    """How long the step takes on a reference network with weights of 4 bits."""
    net = build(network)
    x = np.random.default_rng(0).standard_normal((images, *net.input_shape)).astype(np.float32)
    quantized = bw.quantize(net, {"x": x}, example=example(network), recipe="int8", set=["W=4"], limit=16)
    batches = data_for(quantized.state.model, {"x": x}, Terminal())
    start = time.perf_counter()
    Gptq(images=images)(quantized.state, batches)
    return time.perf_counter() - start


def main() -> None:
    """Time the step, then quantize each trained network at each width, to nearest and in closed form."""
    made = parser(__doc__ or "")
    made.add_argument("--time", nargs="*", default=["resnet18"], help="reference networks to time the step on")
    made.add_argument("--time-images", type=int, default=128)
    made.add_argument("--network", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--set", nargs="+", default=["W=4,A=8", "W=4,A=4", "W=3,A=8", "W=2,A=8"])
    made.add_argument("--inputs", nargs="+", default=["nearest", "float", "quantized"])
    made.add_argument("--activations", default="minmax", help="row of ESTIMATORS for activations")
    made.add_argument("--placement", default="deployable")
    made.add_argument("--images", type=int, default=0, help="at most so many dev images; 0 for all")
    flags = made.parse_args()
    record = Record(flags.output)
    for name in flags.time:
        key = {"network": name, "rounding": "float", "images": flags.time_images}
        if not record.known(**key):
            record.add(key | {"seconds": seconds(name, flags.time_images)})
            print(record.rows[-1], flush=True)
    for name in flags.network:
        for widths in flags.set:
            common = {"network": name, "set": widths, "placement": flags.placement, "ranges": flags.activations}
            asked = [r for r in flags.inputs if not record.known(**common, rounding=r)]
            if asked:
                measure(record, common, asked, flags.shared / "data", flags.images)
    record.show(["network", "placement", "set", "ranges", "rounding", "float", "served", "drop", "low", "high",
                 "agreement", "sqnr", "images", "seconds"])  # fmt: skip


def measure(record: Record, common: dict[str, str], asked: list[str], data: Path, images: int) -> None:
    """Calibrate once, then round in each way that is asked for."""
    name = common["network"]
    model, folder = data / "models" / f"{name}.onnx", data / NETWORKS[name]
    quantized = bw.quantize(
        model, folder / "calib", recipe="int8", set=[common["set"]], placement=common["placement"],
        steps=[f"calibrate.activations={common['ranges']}"],
    )  # fmt: skip
    batches = data_for(quantized.state.model, folder / "calib", Terminal())
    for rounding in asked:
        start = time.perf_counter()
        state = quantized.state if rounding == "nearest" else Gptq(inputs=rounding)(quantized.state, batches)
        took = time.perf_counter() - start
        found = Quantized(state=state).evaluate(folder / "dev", limit=images)
        assert found.drop is not None
        record.add(common | {
            "rounding": rounding, "float": found.drop.reference, "served": found.drop.accuracy,
            "drop": found.drop.drop, "low": found.drop.low, "high": found.drop.high, "agreement": found.agreement,
            "sqnr": found.sqnr_db, "images": found.images, "seconds": took,
        })  # fmt: skip
        print(record.rows[-1], flush=True)


if __name__ == "__main__":
    main()
