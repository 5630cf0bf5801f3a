"""Mixed widths beside one width for all: accuracy of the served file, its bytes, BOPs and search time; as a page.

Of each network the files of one width are written first; every search then has the bytes of such a file as its budget,
and its point is quantized by the same recipe on the same images. Rows go to docs/results/mixed.jsonl and are not
measured again; docs/results/mixed.md is written from them. What a search has found stays in --work. With `--latency`
the files in it are timed beside the float file, in the same rounds, which wants a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import ROOT, Record, parser, write_page

from bitwright.cost.budget import spelled
from bitwright.cost.timing import Timer, compared, interleaved
from bitwright.verbs.fronts import found_front
from bitwright.verbs.open_search import open_search
from bitwright.verbs.preparing import data_for, float_network, resolve_target
from bitwright.verbs.searching import Searching
from bitwright.verbs.terminal import Terminal

NETWORKS = {
    "resnet20": ("resnet20_cifar10.onnx", "cifar10"),
    "mobilenetv2": ("mobilenetv2_tiny_imagenet.onnx", "tiny-imagenet"),
    "resnet18": ("resnet18_tiny_imagenet.onnx", "tiny-imagenet"),
}
#: Of all rows, whatever processor measures: its files are exact on each.
TARGET = "onnxruntime-x64-avx2"
BITS = (4, 3, 2)
#: Widths to choose from; 0 is the widest of the target.
CHOICES = {"resnet20": (0, 6, 5, 4, 3, 2, 1), "mobilenetv2": (0, 5, 4, 3, 2, 1), "resnet18": (0, 4, 3, 2, 1)}
#: Methods whose measure is smooth need fewer images than those that count answers.
FEW = {"val_limit": 256}
#: What the command does within a budget if nothing else is said.
USUAL = {"method": "kl", "refine": 32, "also": "adaquant", **FEW}
#: What moves: weights alone, activations staying at 8 bits; or both, a layer's weight as wide as what it reads.
#: Of the last one a search has the BOPs of the uniform file as a second budget.
SPACES: dict[str, dict[str, Any]] = {"weights": {}, "tied": {"tied": True}, "apart": {"activations": (7, 4, 3, 2)}}
SAID = {
    "weights": "weights move, activations of 8 bits",
    "tied": "weights and activations move together",
    "apart": "weights and activations move, budgets of size and BOPs",
}
METHODS: dict[str, dict[str, Any]] = {
    "zeroq": {"method": "zeroq", **FEW},
    "adaquant, milp": {"method": "adaquant", **FEW},
    "accuracy, greedy": {"method": "accuracy", "solver": "greedy"},
    "hawq": {"method": "hawq", "measure": {"samples": 50}, "val_limit": 128},
    "msq": {"method": "msq"},
    "msq, confidence": {"method": "msq", "measure": {"weighting": "confidence"}},
    # Where its paper is silent or contradicts itself (`bitwright/mixed/sensitivity/msq.py`): the other readings.
    "msq, signed": {"method": "msq", "measure": {"signed": True}},
    "msq, fused": {"method": "msq", "measure": {"fusion": "fused"}},
    "msq, literal": {"method": "msq", "measure": {"fusion": "literal"}},
    "msq, tau 1": {"method": "msq", "measure": {"tau": 1.0}},
    "msq, predicted class": {"method": "msq", "measure": {"confidence": "predicted"}},
    "msq, pools 1 2 3 6": {"method": "msq", "measure": {"pools": (1, 2, 3, 6)}},
    "msq, augmented": {"method": "msq", "measure": {"augment": True}},
    # The bound of its paper: a sixteenth of the bits of all weights, whatever the file adds to them.
    "msq, 16x in weight bits": {"method": "msq", "budget": ["weights=1/16"]},
    "kl": {"method": "kl", **FEW},
    "kl, 32 tries, judged": {"method": "kl", "refine": 32, **FEW},
    # What the command does if not told otherwise: of these and of one width the best file, on the calibration images.
    "kl, 32 tries, and adaquant, judged": USUAL,
    # And networks near the best of these, each made by the recipe of points.
    "kl, 32 tries, and adaquant, 24 polished, 4500 images": {**USUAL, "polish": 24, "images": 5000},
    "kl, 32 tries, and adaquant, 24 polished": {**USUAL, "polish": 24},
    "sqnr": {"method": "sqnr", **FEW},
    "fisher": {"method": "fisher", **FEW},
    "random": {"method": "random"},
    "size": {"method": "size"},
}
#: How points are quantized; all widths are calibrated by `closed-form` meanwhile.
RECIPES: dict[str, list[Any]] = {
    "closed form": [{"gptq": {"most_bits": 8, "inputs": "quantized"}}],
    "adaquant": ["adaquant"],
    "adaround": [{"adaround": {"iterations": 2000}}],
    "pd-quant": [{"pd_quant": {"iterations": 500, "correction": 100}}],
}
#: Of timing.
ROUNDS = 9
#: Images of a search: to calibrate with, and to score on if a method does not say how many (`images`). Of those of
#: CIFAR-10 to score on fewer are left, 900 of 1000 and 4500 of 5000: names of images to calibrate with are out.
CALIBRATION, VALIDATION = {"cifar10": 512, "tiny-imagenet": 1000}, 1000
COLUMNS = ["network", "space", "recipe", "bits", "method", "seed", "mean_bits", "served", "drop", "low", "high",
           "size", "bops", "seconds"]  # fmt: skip


def images_of(network: str, seed: int, validation: int, flags: Any) -> tuple[Path, Path]:
    """Calibration and validation images of a seed as arrays, with no image in both, neither from dev."""
    file, folder = NETWORKS[network]
    data = flags.shared / "data" / folder
    more = "" if validation == VALIDATION else f"-{validation}"
    found = tuple(flags.work / folder / f"{part}-{seed}.npz" for part in ("calibration", f"validation{more}"))
    if all(path.exists() for path in found):
        return found[0], found[1]
    model, terminal = float_network(str(flags.shared / "data/models" / file)), Terminal(seed=seed)
    calibration = data_for(model, str(data / "calib"), terminal)
    if folder == "cifar10":
        calibration = calibration.limited(CALIBRATION[folder], seed)
        names = {Path(name).name for name in data_for(model, str(data / "calib"), terminal).names}
        others = data_for(model, str(data / "train.zip"), terminal, limit=validation + validation // 10)
        kept = [i for i, name in enumerate(others.names) if Path(name).name not in names][:validation]
    else:
        calibration, others = calibration.halved(seed)
        kept = list(range(len(others)))
        if validation != VALIDATION:
            raise SystemExit(f"{network}: there are {len(kept)} images to score on, and {validation} are asked for")
    for path, batches, rows in ((found[0], calibration, None), (found[1], others, kept)):
        arrays = {key: np.concatenate([b.inputs[key][: b.valid] for b in batches]) for key in batches.specs}
        labels = batches.require_labels()
        chosen = range(len(labels)) if rows is None else rows
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **{key: array[chosen] for key, array in arrays.items()}, labels=labels[chosen])
        part.rename(path)
    return found[0], found[1]


def searching(key: dict[str, Any], flags: Any, **aim: Any) -> Searching:
    """A search on a network, in the folder of its seed."""
    network, seed, recipe, space = (key[name] for name in ("network", "seed", "recipe", "space"))
    file, folder = NETWORKS[network]
    calibration, validation = images_of(network, seed, aim.pop("images", VALIDATION), flags)
    path = flags.work / f"{recipe.replace(' ', '-')}.yaml"
    steps = ["fold_batchnorm", {"equalize": {"relu6": "widen"}, "when": "depthwise or per_tensor"}, "place",
             {"calibrate": {"activations": "mse", "weights": "mse"}}, *RECIPES[recipe]]  # fmt: skip
    path.write_text(yaml.safe_dump({"help": recipe, "steps": steps}))
    widest = resolve_target(TARGET, Terminal()).widest_weight
    choices = [w for w in CHOICES[network] if w != 1 or space != "tied"]  # no target has activations of one bit
    return open_search(
        str(flags.shared / "data/models" / file), str(calibration), val_data=str(validation),
        eval_data=str(flags.shared / "data" / folder / "dev"), terminal=Terminal(seed=seed, quiet=flags.quiet),
        output=flags.work / f"{network}-{seed}", weights=[min(w or 8, widest) for w in choices], set=["A=8"],
        target=TARGET, recipe=str(path), batch=100, **SPACES[space], **aim,
    )  # fmt: skip


def row_of(front_point: Any, key: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A row from a written point."""
    drop = front_point.drop
    return key | {
        "mean_bits": front_point.mean_bits, "served": drop["accuracy"], "float": drop["reference"],
        "drop": drop["drop"], "low": drop["low"], "high": drop["high"], "images": drop["images"],
        "size": front_point.costs["size"], "weights": front_point.costs["weights"], "bops": front_point.costs["bops"],
        "seconds": seconds, "point_seconds": front_point.found["seconds"], "codes": front_point.found["codes"],
        "mismatches": front_point.found["mismatches"], "proven": front_point.found["proven"],
        "widths": {region: list(w) for region, w in front_point.widths.items()},
        "folder": front_point.folder.name,
    }  # fmt: skip


def one_width(key: dict[str, Any], flags: Any) -> dict[str, Any]:
    """The file of one width."""
    search = searching(key, flags)
    search.prepare()
    wanted = (key["bits"], None if key["space"] == "weights" else key["bits"])
    first = search.space.groups[0].choices
    choices = next(c for c in search.uniform() if (first[c[0]].weight, first[c[0]].activation) == wanted)
    (point,) = search.write("uniform", [search.problem().assignment(choices)])
    return row_of(point, key, 0.0)


def mixed(key: dict[str, Any], uniform: dict[str, Any], flags: Any) -> dict[str, Any]:
    """The point of a search that costs at most what the uniform file does."""
    aim, budgets = METHODS[key["method"]], [f"size={uniform['size']:.0f}B"]
    if key["space"] == "apart":
        budgets.append(f"bops={uniform['bops']:.0f}")
    start, began = time.perf_counter(), time.time()
    front = found_front(searching(key, flags, **{"budget": budgets, "refine": 0, "also": "none", **aim}))
    fresh = [point for point in front.points if (point.folder / "evaluation.json").stat().st_mtime >= began]
    made = sum(point.found["seconds"] for point in fresh)  # what a run before made took no time in this one
    searched = next(point for point in reversed(by_time(front)) if point.kind == "search")
    chosen = front.best if key["method"].endswith("judged") or "polish" in aim else searched
    return row_of(chosen, key, time.perf_counter() - start - made) | {"met": front.met}


def timed(rows: list[dict[str, Any]], record: Record, flags: Any) -> None:
    """Milliseconds of files that are in --work and were not timed, each beside the float file in the same rounds."""
    for row in rows:
        folder = flags.work / f"{row['network']}-{row['seed']}" / "points" / row["folder"]
        key = {"network": row["network"], "seed": row["seed"], "folder": row["folder"]}
        if not (folder / "model.onnx").exists() or record.known(**key):
            continue
        files = {
            "float": (flags.shared / "data/models" / NETWORKS[row["network"]][0]).read_bytes(),
            "written": (folder / "model.onnx").read_bytes(),
        }
        times = interleaved(files, Timer(runtime="onnxruntime", threads=2, seconds=0.05), ROUNDS)
        ratio = compared(times["written"], times["float"], 0.95)
        record.add(key | {"ms": float(np.median(times["written"])), "float ms": float(np.median(times["float"])),
                          "ratio": ratio.ratio, "low": ratio.low, "high": ratio.high})  # fmt: skip
        print(record.rows[-1], flush=True)


def by_time(front: Any) -> list[Any]:
    """Points in the order in which they were written."""
    return sorted(front.points, key=lambda point: (point.folder / "evaluation.json").stat().st_mtime)


def main() -> None:
    """Measure the cells that are missing."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet20"])
    made.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS))
    made.add_argument("--space", nargs="+", choices=SPACES, default=["weights"])
    made.add_argument("--recipe", nargs="+", choices=RECIPES, default=["closed form"])
    made.add_argument("--seed", nargs="+", type=int, default=[0])
    made.add_argument("--work", type=Path, default=Path("mixed.work"), help="points, and what searches keep")
    made.add_argument("--minutes", type=float, default=0.0, help="start no cell after so many; 0 for no bound")
    made.add_argument("--latency", action="store_true", help="only time the files of the rows that are in --work")
    made.add_argument("--page", action="store_true", help="only write docs/results/mixed.md from the rows")
    made.add_argument("--quiet", action="store_true")
    flags = made.parse_args()
    output, start = flags.output or ROOT / "docs/results/mixed.jsonl", time.monotonic()
    record, latency = Record(output), Record(output.with_suffix(".latency.jsonl"))
    if flags.latency:
        timed(record.rows, latency, flags)
    cells = itertools.product(flags.seed, flags.network, flags.space, flags.recipe, flags.bits)
    for seed, network, space, recipe, bits in cells:
        for method in () if flags.page or flags.latency else ("uniform", *flags.method):
            key = {"network": network, "space": space, "recipe": recipe, "bits": bits, "method": method, "seed": seed}
            if record.known(**key):
                continue
            if flags.minutes and time.monotonic() - start > 60 * flags.minutes:
                break
            if method == "uniform":
                record.add(one_width(key, flags))
            else:
                same = key | {"method": "uniform"}
                beside = next(row for row in record.rows if same.items() <= row.items())
                record.add(mixed(key, beside, flags))
            print({name: record.rows[-1][name] for name in COLUMNS}, flush=True)
    write_page(ROOT / "docs/results/mixed.md", MARK, "Mixed precision, measured", tables(record.rows, latency.rows))
    record.show(COLUMNS)


MARK = "<!-- written by benchmarks/mixed_table.py from mixed.jsonl -->"


def tables(rows: list[dict[str, Any]], latencies: list[dict[str, Any]]) -> list[str]:
    """A table for each network and recipe: each method at the bytes of each uniform file."""
    lines: list[str] = []
    ratios = {(one["network"], one["seed"], one["folder"]): one["ratio"] for one in latencies}
    parts = ("network", "space", "recipe")
    for network, space, recipe in dict.fromkeys(tuple(row[part] for part in parts) for row in rows):
        mine = [row for row in rows if tuple(row[part] for part in parts) == (network, space, recipe)]
        lines += [
            "", f"## {network}, {SAID[space]}, points by {recipe}", "",
            f"Accuracy in percent of {mine[0]['images']} dev images, float {100 * mine[0]['float']:.2f}; in brackets "
            "the drop in points with its 95 % interval of a seed, or mean and deviation of several. Seconds are those "
            "of measuring and solving, all budgets together, without calibrating widths and without making points. "
            "Latency is that of a batch of 1, two threads, as a part of the float file's in the same rounds.",
            "", "| method | " + " | ".join(f"bytes of {b} bits | mean bits, size, BOPs, latency" for b in BITS)
            + " | seconds |",
            "|---|" + "---|" * (2 * len(BITS) + 1),
        ]  # fmt: skip
        for method in dict.fromkeys(row["method"] for row in mine):
            cells = []
            for bits in BITS:
                found = [row for row in mine if (row["method"], row["bits"]) == (method, bits)]
                cells += [told(found), costs(found, ratios)]
            own = [row for row in mine if row["method"] == method]
            seconds = [row["seconds"] for row in own]  # None where a run before had measured a part
            told_seconds = "" if None in seconds else f"{sum(seconds) / len({row['seed'] for row in own}):.0f}"
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {told_seconds} |")
    return [*lines, ""]


def told(rows: list[dict[str, Any]]) -> str:
    """Accuracy of one cell."""
    if not rows:
        return ""
    drops, served = [100 * row["drop"] for row in rows], 100 * float(np.mean([row["served"] for row in rows]))
    if len(rows) == 1:
        return f"{served:.2f} ({drops[0]:+.2f}, {100 * rows[0]['low']:+.2f} to {100 * rows[0]['high']:+.2f})"
    return f"{served:.2f} ({np.mean(drops):+.2f} +- {np.std(drops, ddof=1):.2f}, {len(rows)} seeds)"


def costs(rows: list[dict[str, Any]], ratios: dict[Any, float]) -> str:
    """Mean bits, bytes, BOPs and latency of one cell."""
    if not rows:
        return ""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("mean_bits", "size", "bops")}
    own = [ratios[key] for row in rows if (key := (row["network"], row["seed"], row["folder"])) in ratios]
    latency = f", {np.mean(own):.2f}" if own else ""
    return f"{mean['mean_bits']:.2f}, {spelled(mean['size'], 'B')}, {spelled(mean['bops'], 'BOP')}{latency}"


if __name__ == "__main__":
    main()
