"""Methods of post-training quantization x widths: accuracy of the served file, seconds, peak memory; as a page.

Every cell is a process of its own, so that its memory is its own. Rows go to docs/results/ptq.jsonl and are not
measured again; docs/results/ptq.md is written from them.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import ROOT, Record, parser, write_page

NETWORKS = {
    "resnet20": ("resnet20_cifar10.onnx", "cifar10"),
    "mobilenetv2": ("mobilenetv2_tiny_imagenet.onnx", "tiny-imagenet"),
    "resnet18": ("resnet18_tiny_imagenet.onnx", "tiny-imagenet"),
}
WIDTHS = {"W8A8": "A=8", "W4A8": "W=4,A=8", "W4A4": "W=4,A=4", "W2A4": "W=2,A=4"}
#: What stands before placing, and what after calibration.
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nearest": ((), ()),
    "correct_bias": ((), ("correct_bias",)),
    "equalize, correct_bias": (("equalize", "absorb_bias"), ("correct_bias",)),
    "easyquant": ((), ("easyquant",)),
    "gptq": ((), ("gptq",)),
    "gptq, quantized inputs": ((), ("gptq",)),
    "adaround": ((), ("adaround",)),
    "adaquant": ((), ("adaquant",)),
    "admm": ((), ("admm",)),
    "brecq": ((), ("brecq",)),
    "qdrop": ((), ("qdrop",)),
    "pd_quant": ((), ("pd_quant",)),
    "flexround": ((), ("flexround",)),
    "attention_round": ((), ("attention_round",)),
    "aquant": ((), ("aquant",)),
    "nwq": ((), ("nwq",)),
    "rapq": ((), ("rapq",)),
    "whitepaper": ((), ()),  # the recipe
    "datafree": ((), ()),  # the recipe, without images
}
#: Methods that are recipes of their own.
RECIPES = ("whitepaper", "datafree")
#: Iterations of the papers, or of their authors' scripts.
PAPER = {
    "adaround": 10_000, "admm": 10_000, "brecq": 20_000, "qdrop": 20_000, "pd_quant": 20_000, "flexround": 5_000,
    "attention_round": 20_000, "aquant": 20_000, "nwq": 20_000, "rapq": 20_000, "whitepaper": 10_000,
}  # fmt: skip
LEARNED = tuple(PAPER)
#: Methods with iterations of their own for the steps of activations, after those of the weights.
STEPS_AFTER = ("brecq", "rapq")
#: Methods of power-of-two scales.
POWERS = ("rapq",)
COLUMNS = ["network", "method", "width", "placement", "granularity", "seed", "iterations", "served", "drop", "low",
           "high", "seconds", "peak MB"]  # fmt: skip


def recipe(method: str, width: str, iterations: int, seed: int) -> dict[str, Any]:
    """The chain of a cell."""
    before, after = METHODS[method]
    ranges = {"activations": "minmax" if width.endswith("A8") else "mse"}

    def settings(step: str) -> dict[str, Any]:
        if step in LEARNED:
            after = {"step_iterations": iterations // 4} if step in STEPS_AFTER else {}
            if step == "pd_quant":  # its paper's 500 steps for each batch belong to 20,000 iterations
                after = {"correction": min(500, iterations // 10)}
            return {"iterations": iterations, "seed": seed, **after}
        if step == "gptq":
            return {"most_bits": 8, "inputs": "quantized" if "quantized" in method else "float"}
        return {"seed": seed} if step in ("adaquant", "easyquant") else {}

    steps: list[Any] = ["fold_batchnorm", *before, "place", {"calibrate": ranges}]
    return {"help": method, "steps": [*steps, *({step: settings(step)} for step in after)]}


def widths(method: str, width: str) -> str:
    """`W=4,A=8`, as the method's own formats."""
    found = WIDTHS[width]
    return found.replace("=", "=pow2-") if method in POWERS else found


def cell(flags: Any) -> dict[str, Any]:
    """Quantize and evaluate; runs in a process of its own."""
    import torch

    import bitwright as bw
    from bitwright.deploy.evaluate import evaluate
    from bitwright.deploy.simulate import runtime_of, subject
    from bitwright.verbs.preparing import data_for
    from bitwright.verbs.quantized import model_bytes
    from bitwright.verbs.terminal import Terminal

    method, width = flags.method[0], flags.width[0]
    file, folder = NETWORKS[flags.network[0]]
    model, data = flags.shared / "data/models" / file, flags.shared / "data" / folder
    step = [f"place.granularity={flags.granularity[0]}"]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe(method, width, flags.iterations, flags.seed[0])))
        if method == "whitepaper":
            step.append(f"adaround.iterations={flags.iterations}")
        start = time.perf_counter()
        quantized = bw.quantize(
            str(model), None if method == "datafree" else str(data / "calib"),
            recipe=method if method in RECIPES else str(path), set=[widths(method, width)], steps=step,
            seed=flags.seed[0], placement=flags.placement[0],
        )  # fmt: skip
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        dev = data_for(quantized.state.model, str(data / "dev"), Terminal(), limit=flags.images)
        served = subject(quantized.state, model_bytes(quantized.model()))
        found = evaluate(served, dev, against=str(model), runtime=runtime_of(quantized.state))
        assert found.drop is not None
        row = {"served": found.drop.accuracy, "float": found.drop.reference, "drop": found.drop.drop,
               "low": found.drop.low, "high": found.drop.high, "images": found.drop.images,
               "simulated": found.simulated, "seconds": seconds, "peak MB": peak, "sqnr": found.sqnr_db,
               "target": quantized.plan.target, "threads": torch.get_num_threads()}  # fmt: skip
        if not found.simulated:
            proof = quantized.verify(str(data / "dev"), limit=64)
            row |= {"codes": proof.codes, "mismatches": proof.mismatches, "proven": proof.proven}
    return row


def main() -> None:
    """Measure the cells that are missing, each in its own process."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet20"])
    made.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--width", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    made.add_argument("--placement", nargs="+", choices=["deployable", "paper"], default=["deployable"])
    made.add_argument("--granularity", nargs="+", choices=["channel", "tensor"], default=["channel"])
    made.add_argument("--seed", nargs="+", type=int, default=[0])
    made.add_argument("--iterations", type=int, default=2000, help="of learned methods, a unit; 0 for the papers'")
    made.add_argument("--images", type=int, default=0, help="at most so many dev images; 0 for all")
    made.add_argument("--minutes", type=float, default=0.0, help="start no cell after so many; 0 for no bound")
    made.add_argument("--page", action="store_true", help="only write docs/results/ptq.md from the rows")
    made.add_argument("--cell", action="store_true", help="one cell, as JSON on the last line: for the script itself")
    flags = made.parse_args()
    if flags.cell:
        print(json.dumps(cell(flags)))
        return
    output = flags.output or ROOT / "docs/results/ptq.jsonl"
    record, start = Record(output), time.monotonic()
    cells = [
        {"network": n, "method": m, "width": w, "placement": p, "granularity": g, "seed": s,
         "iterations": (flags.iterations or PAPER[m]) if m in LEARNED else 0}
        for s in flags.seed for n in flags.network for m in flags.method for w in flags.width for p in flags.placement
        for g in flags.granularity
        if not (m in POWERS and w == "W8A8")  # 8 bits are the target's own choice of format here
    ]  # fmt: skip
    for key in cells if not flags.page else ():
        if record.known(**key):
            continue
        if flags.minutes and time.monotonic() - start > 60 * flags.minutes:
            break
        command = [sys.executable, __file__, "--cell", "--shared", str(flags.shared), "--images", str(flags.images)]
        command += [part for name, value in key.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise SystemExit(f"{key}:\n{done.stderr[-2000:]}")
        record.add(key | json.loads(done.stdout.splitlines()[-1]))
        print(record.rows[-1], flush=True)
    write_page(ROOT / "docs/results/ptq.md", MARK, "Post-training quantization, measured", tables(record.rows))
    record.show(COLUMNS)


MARK = "<!-- written by benchmarks/ptq_table.py from ptq.jsonl -->"


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table for each network, placement and granularity: the drop of each method at each width."""
    lines = []
    for network in NETWORKS:
        for placement, granularity in itertools.product(("deployable", "paper"), ("channel", "tensor")):
            wanted = {"network": network, "placement": placement, "granularity": granularity}
            mine = [r for r in rows if wanted.items() <= r.items()]
            if not mine:
                continue
            simulated = ", simulated" if any(r["simulated"] for r in mine) else ", served"
            beside = " Rows of one thread ran beside other work: their seconds are upper bounds."
            beside = beside if any(r.get("threads") == 1 for r in mine) else ""
            lines += [
                "", f"## {network}, placement {placement}, one scale a {granularity}{simulated}", "",
                f"Accuracy in percent of {mine[0]['images']} dev images, float {100 * mine[0]['float']:.2f}; in "
                "brackets the drop in points with its 95 % interval of a seed, or mean and deviation of several."
                + beside, "",
                "| method | iterations | " + " | ".join(WIDTHS) + " | seconds | peak MB |",
                "|---|---|" + "---|" * (len(WIDTHS) + 2),
            ]  # fmt: skip
            for method, iterations in dict.fromkeys((r["method"], r["iterations"]) for r in mine):
                cells = [r for r in mine if (r["method"], r["iterations"]) == (method, iterations)]
                by_width = (told([r for r in cells if r["width"] == width]) for width in WIDTHS)
                seconds = np.mean([r["seconds"] for r in cells])
                lines.append(
                    f"| {method} | {iterations or ''} | " + " | ".join(by_width)
                    + f" | {seconds:.0f} | {max(r['peak MB'] for r in cells):.0f} |"
                )  # fmt: skip
    return [*lines, ""]


def told(rows: list[dict[str, Any]]) -> str:
    """One cell."""
    if not rows:
        return ""
    drops = [100 * r["drop"] for r in rows]
    served = 100 * float(np.mean([r["served"] for r in rows]))
    if len(rows) == 1:
        return f"{served:.2f} ({drops[0]:+.2f}, {100 * rows[0]['low']:+.2f} to {100 * rows[0]['high']:+.2f})"
    return f"{served:.2f} ({np.mean(drops):+.2f} +- {np.std(drops, ddof=1):.2f}, {len(rows)} seeds)"


if __name__ == "__main__":
    main()
