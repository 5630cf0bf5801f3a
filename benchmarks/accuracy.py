"""Accuracy of the written file in its runtime beside the float network, with the 95 % interval of the difference."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from record import Record, parser

import bitwright as bw
from bitwright.deploy.evaluate import evaluate
from bitwright.verbs.preparing import data_for
from bitwright.verbs.terminal import Terminal

NETWORKS = {
    "resnet20_cifar10": "cifar10",
    "mobilenetv2_tiny_imagenet": "tiny-imagenet",
    "resnet18_tiny_imagenet": "tiny-imagenet",
}


def main() -> None:
    """Quantize each trained network and evaluate it on its dev set."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--recipe", nargs="+", default=["int8", "int8-percentile"])
    made.add_argument("--target", nargs="+", default=["auto"])
    made.add_argument("--set", nargs="+", default=[""], help="widths, as of `quantize --set`")
    made.add_argument("--images", type=int, default=0, help="at most so many dev images; 0 for all")
    flags = made.parse_args()
    record = Record(flags.output)
    for name in flags.network:
        folder = NETWORKS[name]
        model, data = flags.shared / "data/models" / f"{name}.onnx", flags.shared / "data" / folder
        for recipe in flags.recipe:
            for target in flags.target:
                for widths in flags.set:
                    key = {"network": name, "recipe": recipe, "asked": target, "set": widths}
                    if record.known(**key):
                        continue
                    start = time.perf_counter()
                    chosen = [widths] if widths else []
                    quantized = bw.quantize(model, data / "calib", recipe=recipe, target=target, set=chosen)
                    with tempfile.TemporaryDirectory() as out:
                        path = Path(out) / "model.onnx"
                        size = quantized.save(path)
                        seconds = time.perf_counter() - start
                        dev = data_for(quantized.state.model, data / "dev", Terminal(), limit=flags.images)
                        found = evaluate(path, dev, against=model)
                    assert found.drop is not None
                    record.add(key | {
                        "target": quantized.plan.target, "float": found.drop.reference, "served": found.drop.accuracy,
                        "drop": found.drop.drop, "low": found.drop.low, "high": found.drop.high,
                        "agreement": found.agreement, "size ratio": size / model.stat().st_size, "seconds": seconds,
                    })  # fmt: skip
                    print(record.rows[-1], flush=True)
    record.show(["network", "recipe", "target", "set", "float", "served", "drop", "low", "high", "agreement",
                 "size ratio", "seconds"])  # fmt: skip


if __name__ == "__main__":
    main()
