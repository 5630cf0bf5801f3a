"""`bitwright search`: budgets in, networks out whose every layer has the width it deserves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bitwright.cost.workload import FLOAT
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError, UnsupportedError
from bitwright.recipes.recipe import parse_settings
from bitwright.verbs.fronts import Front, found_front, front_of, point_json
from bitwright.verbs.open_search import open_search
from bitwright.verbs.quantize import DataFlags, ShapeFlag, peak_memory_mb, preprocess_flags
from bitwright.verbs.search_text import told
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option

#: Widths that have a name.
WORDS = {"float": FLOAT}
#: Files of a search beside its points.
FRONT, PICTURE = "front.json", "front.png"


@dataclass(frozen=True, kw_only=True)
class GroupFlags(ShapeFlag, DataFlags):
    """What commands on groups of layers have in common: the network, its images, and what moves."""

    model: str = argument("an ONNX file, a .pt2 file, or module:callable returning an nn.Module")
    data_path: str = option(
        "", "images that set ranges: a folder, .npz, .zip, module:callable, or distilled", "--data", "-d"
    )
    val_data: str = option(
        "", "images that the method measures on, or distilled; those of --data, or half of them, if not"
    )
    val_limit: int = option(0, "use at most so many of --val-data, balanced over classes, but to polish; 0 for all")
    method: str = option(
        "",
        "how widths are judged: kl, sqnr, zeroq, adaquant, accuracy, hawq, fisher, msq and more; kl where the "
        "network gives scores of classes, else sqnr, if not given",
    )
    measure: tuple[str, ...] = option((), "a setting of the method: samples=50")
    weights: str = option(
        "", "widths of weights to choose from, as 8,4,2 or 8,float; the target's own of 2 bits and more if not"
    )
    activations: str = option("", "widths of activations to choose from; they stay as --set has them if not given")
    tied: bool = option(False, "a layer's weight and the activation it reads have the same bits")
    free_ends: bool = option(False, "first and last layers move, too; else they keep their bits")
    inside: str = option("closed-form", "the recipe that calibrates every width during the search")
    step: tuple[str, ...] = option((), "a setting of a step of the recipes: gptq.damping=0.02")
    target: str = option("auto", "what the files are for; auto: this machine")
    set: tuple[str, ...] = option((), "widths of what does not move: 'A=8', 'head.*:float'")
    ends: int | None = option(None, "bits of input, first and last layer, logits; 8 if not given, 0: as elsewhere")

    def given(self) -> dict[str, Any]:
        """These flags as arguments of `open_search`."""
        return {
            "model": self.model, "data": self.data_path, "val_data": self.val_data,
            "val_limit": self.val_limit, "method": self.method,
            "measure": parse_settings([f"method.{text}" for text in self.measure]).get("method", {}),
            "weights": whole_numbers("--weights", self.weights, WORDS),
            "activations": whole_numbers("--activations", self.activations), "tied": self.tied,
            "free_ends": self.free_ends, "inside": self.inside, "steps": self.step, "target": self.target,
            "set": self.set, "ends": self.ends, "shapes": self.shape, "batch": self.batch, "limit": self.limit,
            "skip_bad": self.skip_bad, "preprocess": preprocess_flags(self),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Search(GroupFlags):
    """Find the widths of all layers: within budgets, within a drop of accuracy, or a whole front of them.

    Each point is a file of its own, quantized anew, measured in its runtime and verified. With --budget the one that
    loses least within it; with --max-drop alone the cheapest within the drop; with neither a front. Exit code 1 where
    the bounds did not hold for what was written: the nearest point is named.
    """

    budget: tuple[str, ...] = option((), "a bound, of several at once too: size=1/8, bops=2e9, latency=0.5")
    cost: tuple[str, ...] = option((), "a setting of a cost: bops.accumulation=true, latency.rounds=40")
    max_drop: float = option(0.0, "percentage points of accuracy that may be lost; 0 for any")
    confidence: float = option(
        0.95, "at which --max-drop and a latency relative to the float file have to hold; 0 for what was measured"
    )
    over: str = option("size", "the cost that a front is spread over, or two of them: size,bops")
    points: int = option(8, "points of a front")
    uniform: bool = option(False, "write the networks of one width for all layers, too, to compare with")
    solver: str = option("", "milp, greedy or genetic with budgets, pareto without; the first of these if not given")
    also: str = option(
        "",
        "other methods whose networks within --budget are written, too, to take the best; adaquant if not given, "
        "none for none",
    )
    refine: int | None = option(
        None,
        "tries of whole networks near what the solver found, one pass each; 32 with --budget, else 0, if not given",
    )
    polish: int = option(
        0,
        "networks near the best that was written, each quantized by --recipe and measured on all validation images, "
        "best some thousands: slow, for few bits",
    )
    recipe: str = option("", "the recipe that points are quantized by; that of --inside if not given")
    eval_data: str = option("", "labelled images to measure points on; --data if not given, which flatters them")
    output: str = option(
        "", "the folder for points, picture and what is kept; MODEL's name with .search if not given", "--output", "-o"
    )
    verify_images: int = option(64, "images that each point is verified on; 0 for none")
    processes: int = option(1, "processes that make points; 1: this one")
    ray: str = option("", "a Ray cluster that makes points: HOST:PORT, auto or local")

    def run(self, terminal: Terminal) -> Outcome:
        """Search, write, draw."""
        own = {"over": self.over.split(",")} | {
            name: getattr(self, name)
            for name in ("budget", "max_drop", "confidence", "points", "uniform", "solver", "also", "refine", "polish",
                         "recipe", "eval_data", "verify_images", "processes", "ray")
        }  # fmt: skip
        output = self.output or f"{Path(self.model.replace(':', '.')).stem}.search"
        front = found_front(open_search(**self.given(), **own, costs=self.cost, terminal=terminal, output=output))
        found = front_json(front, self.eval_data or self.data_path)
        write_bytes(front.folder / FRONT, json.dumps(found, indent=1).encode())
        if front.reference is not None:
            try:
                for name in front.over:
                    picture = PICTURE if name == front.over[0] else PICTURE.replace(".", f"-{name}.")
                    front.plot(front.folder / picture, name)
            except UnsupportedError as error:  # a picture that cannot be drawn does not take the points away
                terminal.note(f"note: no picture: {error}")
        for note in front.notes:
            terminal.note(f"note: {note}")
        return Outcome(json=found, text=told(found), exit_code=0 if front.met else 1)


def front_json(front: Front, measured_on: str) -> dict[str, Any]:
    """The object that `--json` prints."""
    searching, on_front = front.searching, front_of(front.points, front.over)
    return {
        "met": front.met,
        "best": front.best.name,
        "excess": dict(front.excess),
        "limits": dict(front.limits),
        "shares": searching.aim.shares,
        "max_drop": searching.aim.max_drop,
        "confidence": searching.aim.confidence,
        "over": list(front.over),
        "method": searching.aim.method,
        "points": [point_json(point, on_front=point in on_front, best=point is front.best) for point in front.points],
        "float": {"accuracy": front.reference, "costs": dict(front.float_costs)},
        "groups": [
            {"name": group.name, "parameters": group.parameters, "choices": [str(c) for c in group.choices]}
            for group in searching.space.groups
        ],
        "fixed": [{"region": region, "reason": why} for region, why in searching.space.fixed.items()],
        "measured_on": measured_on,
        "same_images": searching.images.same,
        "images": len(searching.images.measured),
        "calibration_images": len(searching.images.calibration),
        "target": searching.placing.target,
        "recipe": searching.recipe,
        "inside": searching.placing.recipe,
        "folder": str(front.folder),
        "notes": list(front.notes),
        "seconds": front.seconds,
        "peak_memory_mb": peak_memory_mb(),
    }


def whole_numbers(flag: str, text: str, words: Mapping[str, int] = MappingProxyType({})) -> tuple[int, ...]:
    """Widths of a flag.

    Args:
        flag: what errors call it.
        text: as it was given.
        words: what stands for a number.

    Raises:
        InputError: something else than whole numbers.

    Example:
        >>> whole_numbers("--weights", "8,4"), whole_numbers("--weights", ""), whole_numbers("-w", "8,float", WORDS)
        ((8, 4), (), (8, 32))
    """
    try:
        return tuple(words[part] if part in words else int(part) for part in text.split(",")) if text else ()
    except ValueError:
        more = "".join(f", or {word}" for word in words)
        raise InputError(flag, f"is {text!r}", f"whole numbers with commas between, as 8,4,2{more}") from None
