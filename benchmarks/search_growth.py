"""How the work of a sensitivity grows with depth: passes of ResNet-20, -56 and -110, counted, not timed.

Counted are multiplications of convolutions and products, forward and back, over those of one pass of the float network
over the same images; and the nodes that the simulation runs, over its nodes, where nothing is differentiated. What a
run does not compute again is in neither. Weights are random: they do not change what is run. Rows go to
docs/results/search_growth.jsonl and are not measured again; docs/results/search_growth.md is written from them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from record import ROOT, Record, parser, write_page
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bitwright.data.batches import Batches
from bitwright.data.opening import open_data
from bitwright.lookup import lookup
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.sensitivity.measure import Ordering
from bitwright.models import build
from bitwright.verbs.open_search import open_search
from bitwright.verbs.preparing import float_network, input_specs
from bitwright.verbs.terminal import Terminal

#: Networks, and the images that are passed.
NETWORKS = {"resnet20": 8, "resnet56": 4, "resnet110": 2}
WIDTHS = (8, 4, 2)
#: Settings: hawq draws as often as it may, so that the count does not depend on how fast a trace settles.
METHODS: dict[str, dict[str, Any]] = {
    "sqnr": {}, "kl": {}, "zeroq": {}, "hawq": {"samples": 30}, "fisher": {}, "msq": {},
}  # fmt: skip
COLUMNS = ["network", "method", "groups", "passes", "nodes", "stated", "steps", "images", "seconds"]


class Counted(TorchDispatchMode):
    """Counts what is run meanwhile: multiplications (twice), and nodes of simulations.

    Torch's own counter hangs on to every module, which gradients of gradients do not bear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.nodes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        result = func(*args, **(kwargs or {}))
        of = flop_registry.get(func.overloadpacket)
        if of is not None:
            self.flops += of(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what is run meanwhile."""
    run_node = fx.Interpreter.run_node
    with Counted() as found:

        def counted(interpreter: fx.Interpreter, node: fx.Node) -> Any:
            found.nodes += 1
            return run_node(interpreter, node)

        fx.Interpreter.run_node = counted  # type: ignore
        try:
            yield found
        finally:
            fx.Interpreter.run_node = run_node  # type: ignore[method-assign]


def made(name: str, flags: Any) -> tuple[Library, Batches, Batches]:
    """A library, and labelled images in two halves, of a batch each."""
    network = build(name, seed=flags.seed)
    random = np.random.default_rng(flags.seed)
    images, shape = flags.images or NETWORKS[name], network.input_shape
    x = random.normal(size=(2 * images, *shape)).astype(np.float32)
    model = float_network(network, example=torch.from_numpy(x[:2]))
    arrays = {model.graph.inputs[0].name or "": x, "labels": np.arange(2 * images) % 2}
    data = open_data(arrays, input_specs(model), batch_size=images)
    with tempfile.TemporaryDirectory() as folder:
        searching = open_search(
            model, data, terminal=Terminal(seed=flags.seed), output=folder, method="kl", weights=WIDTHS, inside="int8",
            target="onnxruntime-x64",
        )  # fmt: skip
        searching.stock()
    return searching.library, *data.halved(flags.seed)


def one_pass(library: Library, images: Batches) -> Counted:
    """What one pass of the float network runs."""
    board = LibraryBoard(library)
    board.turn([None] * len(library.space.groups), rest=False)
    with counting() as found:
        for batch in images:
            board.run({name: torch.from_numpy(array) for name, array in batch.inputs.items()})
    return found


def work(name: str, library: Library, half: Batches, other: Batches) -> dict[str, Any]:
    """What a method runs, in passes over its images: those of one half, for an order those of both."""
    sensitivity = lookup(SENSITIVITIES, name, "method").load()(**METHODS[name])
    one, images = one_pass(library, half), len(half)
    steps, start = 0, time.perf_counter()
    with counting() as found:
        if isinstance(sensitivity, Ordering):
            images += len(other)
            steps = len(list(sensitivity.trajectory(library, half, other, {}, {}))) - 1
        else:
            sensitivity(library, half)
    share = images / len(half)
    return {
        "steps": steps, "passes": found.flops / one.flops / share,
        "nodes": found.nodes / one.nodes / share if found.nodes else None,
        "stated": sensitivity.passes(library.space), "macs of a pass": one.flops // 2 // len(half),
        "nodes of a pass": one.nodes, "groups": len(library.space.groups), "images": images,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def main() -> None:
    """Count what is missing, and write the page."""
    parsed = parser(__doc__ or "")
    parsed.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parsed.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parsed.add_argument("--images", type=int, default=0, help="of one half; 0 for 8, 4 and 2 of the networks in turn")
    parsed.add_argument("--seed", type=int, default=0)
    parsed.add_argument("--page", action="store_true", help="only write docs/results/search_growth.md from the rows")
    flags = parsed.parse_args()
    record = Record(flags.output or ROOT / "docs/results/search_growth.jsonl")
    for network in flags.network if not flags.page else ():
        missing = [m for m in flags.method if m in SENSITIVITIES and not record.known(network=network, method=m)]
        if not missing:
            continue
        library, half, other = made(network, flags)
        for method in missing:
            record.add({"network": network, "method": method} | work(method, library, half, other))
            print(record.rows[-1], flush=True)
    write_page(ROOT / "docs/results/search_growth.md", MARK, "Work of a search by depth, counted", tables(record.rows))
    record.show(COLUMNS)


MARK = "<!-- written by benchmarks/search_growth.py from search_growth.jsonl -->"


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """One table: passes of each method and network, and how they grow beside the number of layers."""
    at = {(r["method"], r["network"]): r for r in rows}
    networks = [network for network in NETWORKS if any(r["network"] == network for r in rows)]
    groups = {network: next(r["groups"] for r in rows if r["network"] == network) for network in networks}
    heads = [f"{network}, {groups[network]} layers" for network in networks]
    lines = [
        "", "Passes by multiplications; in brackets by nodes of the simulation that were run, and what `passes()` "
        "states as the most.", "",
        "| method | " + " | ".join(heads) + " | growth over linear |", "|---|" + "---|" * (len(heads) + 1),
    ]  # fmt: skip
    for method in METHODS:
        mine = [at.get((method, network)) for network in networks]
        if not any(mine):
            continue
        lines.append(f"| {method} | " + " | ".join(map(told, mine)) + f" | {growth(mine)} |")
    lines += ["", "| of one pass | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    some = {network: next(r for r in rows if r["network"] == network) for network in networks}
    lines.append(
        "| million MACs an image | " + " | ".join(f"{r['macs of a pass'] / 1e6:.1f}" for r in some.values()) + " |"
    )
    lines.append("| nodes | " + " | ".join(f"{r['nodes of a pass']:,}" for r in some.values()) + " |")
    lines.append("| images | " + " | ".join(str(r["images"]) for r in some.values()) + " |")
    lines += [
        "", "Seconds, of one run on a core that other work shared; images are not the same number, so they do not "
        "compare from network to network:", "",
        "| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads),
    ]  # fmt: skip
    for method in METHODS:
        cells = [at.get((method, network)) for network in networks]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(took(r) for r in cells) + " |")
    return [*lines, ""]


def told(row: dict[str, Any] | None) -> str:
    """One cell."""
    if row is None:
        return ""
    nodes = "" if row["nodes"] is None else f"{row['nodes']:,.1f} by nodes, "
    return f"{row['passes']:,.1f} ({nodes}{row['stated']:,.0f} stated)"


def took(row: dict[str, Any] | None) -> str:
    """Seconds of one cell, and of how many steps."""
    if row is None:
        return ""
    part = f", {row['steps']} steps" if row["steps"] else ""
    return f"{row['seconds']:.0f}{part}"


def growth(rows: list[dict[str, Any] | None]) -> str:
    """Passes of the last network over those of the first, over the ratio of their layers; 1 is linear, 0 constant."""
    found = [r for r in rows if r is not None]
    if len(found) < 2:
        return ""
    first = found[0]
    ratios = [(r["passes"] / first["passes"]) / (r["groups"] / first["groups"]) for r in found[1:]]
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


if __name__ == "__main__":
    main()
