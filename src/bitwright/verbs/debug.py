"""`bitwright debug`: where the error of a quantized network comes from, and what each remedy buys."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright.data.batches import Batches
from bitwright.deploy.evaluate import Evaluation
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.graph.regions import find_regions
from bitwright.pipeline import State
from bitwright.placement.ends import end_sites
from bitwright.ptq.diagnosis.findings import CAUSES, Finding, findings, remedies
from bitwright.ptq.diagnosis.layers import Layer, look
from bitwright.ptq.diagnosis.scan import Measured, Scan, scan
from bitwright.recipes.recipe import load_recipe, parse_settings
from bitwright.recipes.remedies import REMEDIES, Remedy, remedied
from bitwright.verbs.debug_text import line, told
from bitwright.verbs.pace import Pace, bench_steps, check_minutes
from bitwright.verbs.preparing import check_output, data_for, float_network, model_files
from bitwright.verbs.quantize import DataFlags, ShapeFlag, preprocess_flags
from bitwright.verbs.quantized import are_classes, model_bytes, placing_of
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.trial import Bench, Trial, check_labels, check_settings, eight_bits, raisable, run_trial
from bitwright.verbs.verb import Outcome, argument, finite, option

#: A remedy is kept when it lowers the noise by at least so many dB.
LEAST_GAIN_DB = 0.05
#: Of a scan.
PARTS = ("bypassed", "simulated", "weights", "activations", "both")
#: Steps that may change the float network itself: ReLU6 with other bounds, biases that were absorbed.
CHANGING = ("equalize", "absorb_bias")


@dataclass(frozen=True, kw_only=True)
class Debug(ShapeFlag, DataFlags):
    """Find where the error of a quantized network comes from, then try each remedy and measure what it buys.

    First without quantizers, then with those of the weights, of the activations, and of single sites on or off.
    """

    model: str = argument("an ONNX file, a .pt2 file, or module:callable returning an nn.Module")
    data_path: str = option("", "images that set the ranges: a folder, .npz, .zip or module:callable", "--data", "-d")
    eval_data: str = option("", "images to measure on, labelled or not; --data if not given")
    output: str = option("", "the file to write the best network to; none if not given", "--output", "-o")
    recipe: str = option("int8", "the recipe to start from: its name, or a YAML file")
    target: str = option("auto", "what the network is quantized for; auto: this machine")
    set: tuple[str, ...] = option((), "widths: 'W=4,A=8', 'layer4.*:W=8', 'head.*:float'")
    ends: int | None = option(None, "bits of input, first and last layer, logits; 8 if not given, 0: as elsewhere")
    plan: str = option("", "a plan's JSON file to follow instead of placing; --set changes its widths")
    step: tuple[str, ...] = option((), "a setting of a step of the recipe: calibrate.activations=percentile")
    top: int = option(8, "sites to look at closely, those that hurt most")
    limit: int = option(256, "images to measure on at most, balanced over classes; 0 for all")
    images: int = option(1024, "images of --data to use at most, balanced over classes; 0 for all")
    minutes: float = option(0.0, "time for all remedies; one that does not fit is not begun; 0 for any")

    def run(self, terminal: Terminal) -> Outcome:
        """Scan, look, find causes, apply remedies; write the best network where that is asked for."""
        start = time.perf_counter()
        bench = self._bench(terminal)
        pace = Pace(bench, self.minutes)
        base = run_trial(bench, load_recipe(self.recipe))
        pace.add(bench_steps(bench, base.recipe), base.seconds)
        state = base.quantized.state
        with terminal.progress("scan", len(bench.measured)) as advance:
            scanned = scan(state, bench.measured, labelled=bench.labelled, images_done=advance)
        chosen = [row.site for row in _worst(scanned, self.top)]
        with terminal.progress("look at layers", len(bench.measured)) as advance:
            layers = look(state, chosen, bench.measured, images_done=advance)
        found = findings(scanned, layers, {row.site: row.bits for row in scanned.sites}, _ends(state))
        changed = any(name in CHANGING for name, _ in base.recipe.steps)
        sound = scanned.sound and (changed or not scanned.moved)
        best, tried = _remedied(bench, base, found, scanned, pace) if sound else (base, [])
        if self.output:
            write_bytes(Path(self.output), best.served)
        json = {
            "images": scanned.images,
            "calibration_images": len(bench.calibration),
            "target": base.quantized.plan.target,
            "recipe": base.recipe.name,
            "labelled": bench.labelled,
            "float_accuracy": scanned.float_accuracy,
            "sound": sound,
            **{part: measured_json(getattr(scanned, part)) for part in PARTS},
            "moved": scanned.moved,
            "guilty": scanned.guilty,
            "sites": [site_json(row) for row in scanned.sites],
            "layers": [layer_json(layer) for layer in layers],
            "findings": [finding_json(finding) for finding in found],
            "remedies": tried,
            "served_before": served_json(base.found),
            "served_after": served_json(best.found),
            "steps": [{"step": name, "settings": _plain(own)} for name, own in best.recipe.steps],
            "set": list(best.set),
            "output": self.output or None,
            "bytes": len(best.served),
            "seconds": time.perf_counter() - start,
        }
        return Outcome(json=json, text=told(json, self.top), exit_code=0 if sound else 1)

    def _bench(self, terminal: Terminal) -> Bench:
        """Everything that the user gave, checked before anything runs."""
        if not self.data_path:
            raise InputError("--data", "is missing", "images to set the ranges from: a folder, .npz, .zip")
        for flag, value, least in (("--top", self.top, 1), ("--limit", self.limit, 0), ("--images", self.images, 0)):
            if value < least:
                raise InputError(flag, f"is {value}", f"a whole number from {least} on")
        check_minutes(self.minutes)
        recipe, settings = load_recipe(self.recipe), parse_settings(self.step)
        tries = [remedied(recipe, remedy) for remedy in REMEDIES.values()]
        check_settings(settings, [recipe, *(other for other in tries if other is not None)])
        if self.output:
            inputs = {
                self.model: "the float network itself", self.data_path: "what --data names",
                self.eval_data: "what --eval-data names", self.recipe: "the recipe", self.plan: "the plan",
            }  # fmt: skip
            if self.model.endswith(".onnx") and Path(self.model).is_file():
                inputs = dict.fromkeys(map(str, model_files(self.model)), "a part of the float network") | inputs
            check_output(Path(self.output), inputs)
        placing = placing_of(self.target, self.set, self.ends, self.plan or None, terminal)
        network = float_network(self.model, shapes=self.shape)
        calibration = self._images(network, self.data_path, self.images, terminal)
        measured = self._images(network, self.eval_data or self.data_path, self.limit, terminal)
        if self.eval_data and measured.labels is not None:
            check_labels(measured, network, self.eval_data)
        labelled = are_classes(measured.labels, network)
        if not labelled:
            terminal.note("note: no labels of the network's classes: signal to noise is measured, not accuracy")
        return Bench(
            network=network, reference=model_bytes(network), calibration=calibration, measured=measured,
            labelled=labelled, target=placing["target"], set=self.set, ends=self.ends, plan=self.plan,
            settings=settings, terminal=terminal,
        )  # fmt: skip

    def _images(self, network: Any, source: str, limit: int, terminal: Terminal) -> Batches:
        return data_for(
            network, source, terminal, batch=self.batch, limit=limit, skip_bad=self.skip_bad,
            preprocess=preprocess_flags(self),
        )  # fmt: skip


def _worst(scanned: Scan, top: int) -> list[Any]:
    """The sites to look at: those that hurt most alone, and those whose repair pays off most, in turn."""
    alone = scanned.sites
    repaired = sorted(scanned.sites, key=lambda row: -row.repaired)
    turns = [row for pair in zip(alone, repaired, strict=True) for row in pair]
    return list(dict.fromkeys(turns))[:top]


def _ends(state: State) -> list[str]:
    return [value.name or "" for value in end_sites(state.model, find_regions(state.model))]


def _remedied(
    bench: Bench, base: Trial, found: Sequence[Finding], scanned: Scan, pace: Pace
) -> tuple[Trial, list[dict[str, Any]]]:
    """Apply the remedies that findings ask for, in the table's order; each stays when it helps.

    A remedy helps when it lowers the noise by LEAST_GAIN_DB, and accuracy falls by no more than two standard errors.
    """
    asked = remedies(found)
    kinds = raisable(scanned.sites, base.quantized.plan.target)
    hurting = [f.site for f in found if "raise" in CAUSES[f.cause].remedies and f.site in kinds]
    best, tried = base, []
    for name, remedy in REMEDIES.items():
        if name not in asked:
            continue
        sites = list(dict.fromkeys(hurting)) if remedy.raises else []
        recipe = best.recipe if sites else remedied(best.recipe, remedy)
        if recipe is None or _is_decided(remedy, bench):
            continue
        more = eight_bits({site: kinds[site] for site in sites}, base.quantized.plan.target)
        start = time.perf_counter()
        after, reason, skipped = None, None, False
        try:
            steps = bench_steps(bench, recipe, more)
            reason = pace.refusal(pace.expected(steps))
            skipped = reason is not None
            if not skipped:
                after = run_trial(bench, recipe, more)
                pace.add(steps, time.perf_counter() - start)
        except InputError as error:  # what this network or target cannot do; the other remedies still can
            reason = str(error)
        kept = after is not None and _helps(best.found, after.found)
        tried.append({
            "remedy": name, "help": remedy.help, "causes": _causes(name, found), "sites": sites,
            "before": served_json(best.found), "after": None if after is None else served_json(after.found),
            "seconds": time.perf_counter() - start, "kept": kept, "reason": reason,
            "skipped": skipped,
        })  # fmt: skip
        bench.terminal.note(line(tried[-1]))
        if kept and after is not None:
            best = after
    return best, tried


def _is_decided(remedy: Remedy, bench: Bench) -> bool:
    """Whether the user's own settings stand against what a remedy would change."""
    own = {(step, key) for step, settings in bench.settings.items() for key in settings}
    return any((step, key) in own for step, settings in remedy.settings.items() for key in settings)


def _causes(remedy: str, found: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(f.cause for f in found if remedy in CAUSES[f.cause].remedies))


def _helps(before: Evaluation, after: Evaluation) -> bool:
    """Whether noise went down, and accuracy did not go down by more than two standard errors.

    The error is that of `p = (right + 1) / (n + 2)`, which is not 0 where all are right.
    """
    assert before.sqnr_db is not None and after.sqnr_db is not None
    if before.top1 is not None and after.top1 is not None:
        n = before.images + 2
        p = (before.top1 * before.images + 1) / n
        if after.top1 < before.top1 - 2 * math.sqrt(p * (1 - p) / n):
            return False
    return after.sqnr_db >= before.sqnr_db + LEAST_GAIN_DB


def measured_json(found: Measured) -> dict[str, Any]:
    """As JSON; an infinite ratio, of equal outputs, is null."""
    return {**asdict(found), "sqnr_db": finite(found.sqnr_db)}


def served_json(found: Evaluation) -> dict[str, Any]:
    """What is shown of a file that was measured."""
    return {"accuracy": found.top1, "agreement": found.agreement, "sqnr_db": finite(found.sqnr_db)}


def site_json(row: Any) -> dict[str, Any]:
    """A scanned site as JSON."""
    return {**asdict(row), "only": measured_json(row.only), "without": measured_json(row.without)}


def layer_json(layer: Layer) -> dict[str, Any]:
    """A layer as JSON."""
    return {
        **asdict(layer), "sqnr_in_db": finite(layer.sqnr_in_db), "sqnr_out_db": finite(layer.sqnr_out_db)
    }  # fmt: skip


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding as JSON, with what its cause is and what helps."""
    cause = CAUSES[finding.cause]
    return {**asdict(finding), "text": cause.text, "remedies": list(cause.remedies)}


def _plain(own: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
