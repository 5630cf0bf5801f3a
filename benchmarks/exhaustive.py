"""Mixed precision beside the best there is: networks of eight layers, all 3^8 assignments of 8, 4 and 2 bits.

Every assignment is simulated on one half of the labelled images, walked depth first over the layers, so that a run
computes again only what comes after the layer that changed. Of those whose mean width is within the bound, the one of
the least divergence from the float network is the optimum. Beside it: what `milp` finds from the losses that each
sensitivity measures on the same half. Accuracies are of the other half. Rows go to docs/results/exhaustive.jsonl and
are not measured again; docs/results/exhaustive.md is written from them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from record import ROOT, Record, parser, write_page
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.data.digits import digits_split
from bitwright.data.opening import open_data
from bitwright.data.preprocess import Preprocess
from bitwright.lookup import lookup
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive, Choices, Problem
from bitwright.mixed.refine import refine
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.measure import divergence
from bitwright.mixed.solvers.milp import Milp
from bitwright.models.digits_cnn import train_digits
from bitwright.models.initialise import initialised
from bitwright.models.small import small_residual
from bitwright.ptq.diagnosis.switches import Values
from bitwright.verbs.open_search import open_search
from bitwright.verbs.preparing import float_network, input_specs
from bitwright.verbs.terminal import Terminal

WIDTHS = (8, 4, 2)
#: Bounds on the mean bits of a weight.
BITS = (3, 4, 5)
#: Rows of `SENSITIVITIES` that have losses, with settings.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}, pairs of {pairs}" if pairs != "none" else name: (name, {"pairs": pairs})
        for name in ("kl", "zeroq", "sqnr", "adaquant") for pairs in ("none", "neighbours", "all")
    },
    "hawq": ("hawq", {}),
    "fisher": ("fisher", {}),
}  # fmt: skip
#: Of these, milp's point is also the start of so many tries of whole networks, by divergence on the same half.
REFINED, TRIES = ("kl", "zeroq", "fisher"), 32
METHODS |= {f"{name}, {TRIES} tries": METHODS[name] for name in REFINED}
#: Images of CIFAR-10 at half its size, to train with and to halve.
SIDE, TRAINED, LABELLED = 16, 20_000, 2_000
COLUMNS = ["network", "bits", "method", "choices", "mean", "ratio", "rank", "fitting", "accuracy", "best accuracy"]

Labelled = tuple[np.ndarray, np.ndarray]


def digits(flags: Any) -> tuple[ir.Model, Labelled, Labelled]:
    """The digits network of the tests, calibration images, and labelled ones that it was not trained with."""
    assets = ROOT / "tests/assets"
    with np.load(assets / "digits_calib.npz") as calib:
        calibration = calib["image"], calib["labels"]
    return float_network(str(assets / "digits.onnx")), calibration, digits_split()[1]


def cifar(flags: Any) -> tuple[ir.Model, Labelled, Labelled]:
    """A residual network of eight layers with 8 to 32 channels, trained here with images of 16 by 16 pixels."""
    folder = flags.shared / "data/cifar10"

    def images(part: str, limit: int) -> Labelled:
        found = open_data(
            str(folder / part), {"x": ((None, 3, SIDE, SIDE), "float32")}, limit=limit, seed=flags.seed,
            preprocess=Preprocess.from_mapping({"resize": SIDE}, "the benchmark"),
        )  # fmt: skip
        batches = list(found)
        return np.concatenate([b.inputs["x"] for b in batches]), np.concatenate(
            [np.asarray(b.labels) for b in batches]
        )

    labelled = images("dev", LABELLED)
    network = initialised(small_residual(seed=flags.seed))
    accuracy = train_digits(network, images("train.zip", TRAINED), labelled, seed=flags.seed, epochs=flags.epochs)
    print(f"trained: {accuracy:.4f}", flush=True)
    return float_network(network, example=torch.from_numpy(labelled[0][:2])), images("calib", 256), labelled


NETWORKS = {"digits": digits, "cifar": cifar}


def opened(network: ir.Model, found: Labelled) -> Batches:
    """Images as batches for a network."""
    name = network.graph.inputs[0].name or ""
    return open_data({name: found[0], "labels": found[1]}, input_specs(network), batch_size=250)


def batches_of(images: Batches) -> Iterator[tuple[dict[str, Tensor], np.ndarray]]:
    """Tensors and labels of each batch."""
    for batch in images:
        yield {name: torch.from_numpy(array) for name, array in batch.inputs.items()}, np.asarray(batch.labels)


def divergences(library: Library, images: Batches) -> dict[Choices, float]:
    """Of every assignment, the mean divergence of its outputs from those of the float network."""
    board, groups = LibraryBoard(library), library.space.groups
    sums: dict[Choices, float] = {}

    def descend(inputs: Mapping[str, Tensor], reference: Tensor, y: Tensor, values: Values, at: Choices) -> None:
        """All assignments that begin with `at`; the layers after it are at their widest."""
        if len(at) == len(groups):
            sums[at] = sums.get(at, 0.0) + float(divergence(y.double(), reference).sum())
            return
        group = groups[len(at)]
        known = board.unchanged(values, group.name)
        descend(inputs, reference, y, values, (*at, 0))
        for choice in range(1, len(group.choices)):
            board.turn_group(group.name, choice)
            outputs, now = board.run(inputs, known)
            descend(inputs, reference, outputs[0], now, (*at, choice))
        board.turn_group(group.name, 0)

    for inputs, _ in batches_of(images):
        board.turn([None] * len(groups), rest=False)
        reference = board.run(inputs)[0][0].double()
        board.turn([0] * len(groups))
        outputs, values = board.run(inputs)
        descend(inputs, reference, outputs[0], values, ())
    return {choices: total / len(images) for choices, total in sums.items()}


def directly(library: Library, images: Batches, choices: Choices | None) -> tuple[float, float]:
    """Divergence from float and accuracy of one assignment, the whole network run; None for float."""
    board, groups = LibraryBoard(library), library.space.groups
    lost, right = 0.0, 0
    for inputs, labels in batches_of(images):
        board.turn([None] * len(groups), rest=False)
        reference = board.run(inputs)[0][0].double()
        if choices is not None:
            board.turn(choices)
        y = board.run(inputs)[0][0].double()
        lost += float(divergence(y, reference).sum())
        right += int((y.argmax(1).numpy() == labels).sum())
    return lost / len(images), right / len(images)


def check(library: Library, images: Batches, found: Mapping[Choices, float], seed: int) -> None:
    """That the walk gives what whole runs give, for assignments that are drawn."""
    known = list(found)
    for i in np.random.default_rng(seed).choice(len(known), 8, replace=False):
        whole = directly(library, images, known[i])[0]
        if abs(whole - found[known[i]]) > 1e-6 * whole:
            raise SystemExit(f"{known[i]}: {found[known[i]]} in the walk, {whole} in a run of the whole network")


def measure(name: str, flags: Any, record: Record) -> None:
    """All rows of a network that are missing."""
    keys = {
        (bits, method): {"network": name, "target": flags.target, "seed": flags.seed, "bits": bits, "method": method}
        for bits in BITS for method in METHODS
    }  # fmt: skip
    missing = {place: key for place, key in keys.items() if not record.known(**key)}
    if not missing:
        return
    network, calibration, labelled = NETWORKS[name](flags)
    with tempfile.TemporaryDirectory() as folder:
        searching = open_search(
            network, opened(network, calibration), terminal=Terminal(seed=flags.seed), output=folder, method="kl",
            weights=WIDTHS, free_ends=True, target=flags.target,
        )  # fmt: skip
        searching.stock()
    library, space = searching.library, searching.space
    half, other = opened(network, labelled).halved(flags.seed)
    start = time.perf_counter()
    found = divergences(library, half)
    print(f"{name}: {len(found)} assignments, {time.perf_counter() - start:.0f} s", flush=True)
    check(library, half, found, flags.seed)
    bits_of = Additive(values=tuple(
        tuple(float(group.parameters * (width.weight or 0)) for width in group.choices) for group in space.groups
    ))  # fmt: skip
    in_float = directly(library, other, None)[1]
    for method in dict.fromkeys(method for _, method in missing):
        row, settings = METHODS[method]
        made = lookup(SENSITIVITIES, row, "method").load()(**settings)
        loss = made(library, half)
        for bits in (bits for bits, of in missing if of == method):
            limits = {"bits": float(bits * space.parameters)}
            problem = Problem(groups=space.groups, loss=loss, costs={"bits": bits_of}, limits=limits)
            fitting = {choices: lost for choices, lost in found.items() if problem.fits(choices)}
            best = min(fitting, key=lambda choices: fitting[choices])
            start_at = Milp()(problem).best
            refined = method.endswith("tries")
            chosen = refine(problem, start_at, found.__getitem__, TRIES)[0].choices if refined else start_at.choices
            record.add(missing[bits, method] | {
                "choices": widths(library, chosen), "best": widths(library, best), "mean": space.mean_bits(chosen),
                "kl": found[chosen], "best kl": found[best], "ratio": found[chosen] / found[best],
                "rank": 1 + sum(lost < found[chosen] for lost in fitting.values()), "fitting": len(fitting),
                "assignments": len(found), "accuracy": directly(library, other, chosen)[1],
                "best accuracy": directly(library, other, best)[1], "float": in_float,
                "widest kl": found[(0,) * len(space.groups)], "passes": made.passes(space) + TRIES * refined,
                "images": [len(half), len(other)], "groups": [group.name for group in space.groups],
            })  # fmt: skip
            print(record.rows[-1], flush=True)


def widths(library: Library, choices: Choices) -> str:
    """Bits of every layer, in execution order."""
    pairs = zip(library.space.groups, choices, strict=True)
    return " ".join(str(group.choices[choice].weight) for group, choice in pairs)


def main() -> None:
    """Measure what is missing, and write the page."""
    made = parser(__doc__ or "")
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--target", default="onnxruntime-x64", help="whose widths and ranges are simulated")
    made.add_argument("--epochs", type=int, default=8, help="that the network of CIFAR-10 is trained for")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--page", action="store_true", help="only write docs/results/exhaustive.md from the rows")
    flags = made.parse_args()
    record = Record(flags.output or ROOT / "docs/results/exhaustive.jsonl")
    for name in flags.network if not flags.page else ():
        measure(name, flags, record)
    write_page(
        ROOT / "docs/results/exhaustive.md", MARK, "Mixed precision beside the optimum, measured", tables(record.rows)
    )
    record.show(COLUMNS)


MARK = "<!-- written by benchmarks/exhaustive.py from exhaustive.jsonl -->"


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table of all methods, and one for each network and seed."""
    lines = [
        "", "| losses by | passes | within 5 % of the optimum | largest ratio | largest rank | accuracy, at worst |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for method in METHODS:
        own = [r for r in rows if r["method"] == method]
        if own:
            points = 100 * min(r["accuracy"] - r["best accuracy"] for r in own)
            lines.append(
                f"| {method} | {own[0]['passes']:,.0f} | {sum(r['ratio'] <= 1.05 for r in own)} of {len(own)} "
                f"| {max(r['ratio'] for r in own):.3f} | {max(r['rank'] for r in own)} | {points:+.2f} |"
            )
    for name, target, seed in dict.fromkeys((r["network"], r["target"], r["seed"]) for r in rows):
        mine = [r for r in rows if (r["network"], r["target"], r["seed"]) == (name, target, seed)]
        one = mine[0]
        lines += [
            "", f"## {name}, {len(one['groups'])} layers, `{target}`, seed {seed}", "",
            f"{one['assignments']:,} assignments, divergence on {one['images'][0]:,} images (all at 8 bits: "
            f"{one['widest kl']:.3g}), accuracy on {one['images'][1]:,} others, float {100 * one['float']:.2f} %. "
            f"Layers: {', '.join(one['groups'])}.", "",
            "| mean bits | optimum | its divergence | its accuracy | assignments within |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for r in {r["bits"]: r for r in mine}.values():
            lines.append(
                f"| {r['bits']} | {r['best']} | {r['best kl']:.4g} | {100 * r['best accuracy']:.2f} "
                f"| {r['fitting']:,} |"
            )
        lines += [
            "", "Divergence of milp's point over the optimum's; in brackets its rank among all that are within the "
            "bound, and its accuracy less the optimum's in points.", "",
            "| losses by | passes | " + " | ".join(f"{bits} bits" for bits in BITS) + " |",
            "|---|---|" + "---|" * len(BITS),
        ]  # fmt: skip
        for method in METHODS:
            cells = [next((r for r in mine if (r["method"], r["bits"]) == (method, bits)), None) for bits in BITS]
            passes = next((f"{r['passes']:,.0f}" for r in cells if r), "")
            lines.append(f"| {method} | {passes} | " + " | ".join(map(told, cells)) + " |")
    return [*lines, ""]


def told(row: Mapping[str, Any] | None) -> str:
    """One cell."""
    if row is None:
        return ""
    points = 100 * (row["accuracy"] - row["best accuracy"])
    return f"{row['ratio']:.3f} ({row['rank']}, {points:+.2f})"


if __name__ == "__main__":
    main()
