"""One try of a recipe on a network: quantized, written, and measured as it would be served."""

from __future__ import annotations

import glob
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from bitwright.data.batches import Batches
from bitwright.deploy.evaluate import Evaluation, evaluate
from bitwright.deploy.simulate import runtime_of, subject
from bitwright.errors import InputError
from bitwright.lookup import did_you_mean
from bitwright.ptq.diagnosis.scan import SiteScan
from bitwright.recipes.recipe import Recipe
from bitwright.targets import TARGETS
from bitwright.verbs.quantized import Quantized, are_classes, model_bytes, run_recipe
from bitwright.verbs.terminal import Terminal


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all tries of a command share.

    Attributes:
        network: the float network.
        reference: the same as bytes.
        calibration: images that set ranges and teach rounding.
        measured: images that are measured on.
        labelled: whether right answers are counted on these.
        target, set, ends, plan: as `quantize` has them.
        settings: `{step: {setting: value}}`; each try takes those of the steps that it has.
        terminal: where to speak.
    """

    network: ir.Model
    reference: bytes
    calibration: Batches
    measured: Batches
    labelled: bool
    target: str
    set: tuple[str, ...]
    ends: int | None
    plan: str
    settings: Mapping[str, Mapping[str, Any]]
    terminal: Terminal


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A try and what came of it.

    Attributes:
        recipe: what ran.
        set: widths that were set.
        quantized: the integer network.
        served: its file.
        found: the file beside the float network.
        seconds: of quantizing and measuring.
    """

    recipe: Recipe
    set: tuple[str, ...]
    quantized: Quantized
    served: bytes
    found: Evaluation
    seconds: float


def run_trial(bench: Bench, recipe: Recipe, more: Sequence[str] = ()) -> Trial:
    """Quantize by a recipe, with widths beyond those that the user set, and measure the file.

    Raises:
        InputError: as `quantize`, and where the network cannot be quantized so.
    """
    start = time.perf_counter()
    names = {name for name, _ in recipe.steps}
    quantized = run_recipe(
        bench.network, bench.calibration, recipe, {k: v for k, v in bench.settings.items() if k in names},
        bench.terminal, target=bench.target, set=(*bench.set, *more), ends=bench.ends, plan=bench.plan or None,
    )  # fmt: skip
    served = model_bytes(quantized.model())
    with bench.terminal.progress("evaluate", len(bench.measured)) as advance:
        found = evaluate(
            subject(quantized.state, served), bench.measured, against=bench.reference,
            runtime=runtime_of(quantized.state), labelled=bench.labelled, progress=advance,
        )  # fmt: skip
    return Trial(
        recipe=recipe, set=(*bench.set, *more), quantized=quantized, served=served, found=found,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def check_settings(settings: Mapping[str, Mapping[str, Any]], recipes: Sequence[Recipe]) -> None:
    """Refuse settings of steps that none of the recipes has.

    Raises:
        InputError: such a step.
    """
    used = dict.fromkeys(name for recipe in recipes for name, _ in recipe.steps)
    for step in settings:
        if step not in used:
            raise InputError(f"--step {step}", "no recipe here has this step", fix=did_you_mean(step, used))


def check_labels(batches: Batches, network: ir.Model, where: str) -> None:
    """Refuse labels that are no classes of the network.

    Raises:
        InputError: no labels, or labels of other classes.
    """
    labels = batches.require_labels()
    shape = network.graph.outputs[0].shape
    classes = shape[1] if shape is not None and len(shape) == 2 and isinstance(shape[1], int) else None
    if classes is None:
        found = "gives no scores of classes, so labels cannot be counted"
        raise InputError("model", found, "a classifier with an output [batch, classes]")
    names = batches.class_names
    if names is not None and len(names) != classes:
        raise InputError(where, f"has {len(names)} classes", f"the {classes} of the network", "one sub-folder a class")
    if not are_classes(labels, network):
        raise InputError(
            where, f"has labels from {labels.min()} to {labels.max()}", f"classes 0 to {classes - 1} of the network"
        )


def raisable(rows: Sequence[SiteScan], target: str) -> dict[str, str]:
    """`{site: weight or activation}` of the scanned sites that a target can give more bits, in their order."""
    most = _widest(target)
    return {row.site: row.kind for row in rows if row.bits < most[row.kind]}


def eight_bits(sites: Mapping[str, str], target: str) -> tuple[str, ...]:
    """Overrides that raise sites to 8 bits, or to the widest that the target has.

    Args:
        sites: `{site: weight or activation}`.
        target: its name.

    Example:
        >>> eight_bits({"fc.weight": "weight", "/relu[0]": "activation"}, "onnxruntime-x64-avx2")
        ('fc.weight:W=7', '/relu[[]0]:A=8')
    """
    most = _widest(target)
    letters = {"weight": "W", "activation": "A"}
    return tuple(f"{glob.escape(site)}:{letters[kind]}={most[kind]}" for site, kind in sites.items())


def _widest(target: str) -> dict[str, int]:
    return {"weight": min(8, TARGETS[target].load().widest_weight), "activation": 8}
