"""`bitwright quantize`: a float network in, a proven integer network out."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from bitwright.data.batches import Batches
from bitwright.data.preprocess import Preprocess
from bitwright.deploy.evaluate import Evaluation, evaluate
from bitwright.deploy.runtimes.versions import needs
from bitwright.deploy.simulate import Simulation, runtime_of, subject
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.ranges.audit import Audit
from bitwright.recipes.recipe import load_recipe, make_steps, parse_settings, shared_settings
from bitwright.targets import TARGETS
from bitwright.verbs.preparing import check_output, data_for, file_bytes, float_network, model_files
from bitwright.verbs.quantized import (
    DISTILLED,
    are_classes,
    check_data,
    distilled_data,
    model_bytes,
    placing_of,
    run_recipe,
    shared_of,
    under,
)
from bitwright.verbs.tables import facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option

#: What commands say of a network that no integer kernels can run.
PAPER_TEXT = "paper: network input, logits, shortcuts, pools and biases are not quantized; no integer engine runs this"


def preprocess_flags(values: Any) -> dict[str, Any]:
    """The preprocessing flags that were given, as fields of `Preprocess`."""
    given: dict[str, Any] = {}
    for name in ("resize", "crop", "scale", "mean", "std"):
        text = getattr(values, name)
        if text:
            given[name] = _numbers(f"--{name}", text)
    for name in ("layout", "color", "interpolation"):
        if getattr(values, name):
            given[name] = getattr(values, name)
    if given:
        Preprocess.from_mapping(given, "flags")
    return given


def _numbers(flag: str, text: str) -> Any:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(flag, f"is {text!r}", "a number, or several with commas between") from None
    plain = [int(n) if n.is_integer() else n for n in numbers]
    return plain[0] if len(plain) == 1 else plain


@dataclass(frozen=True, kw_only=True)
class ShapeFlag:
    """The flag of commands that open files whose input sizes may be open."""

    shape: tuple[str, ...] = option((), "size of an input that the file leaves open: INPUT=Nx3x224x224")


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """Flags that say how images become a network's input."""

    resize: str = option("", "resize the shorter side to so many pixels, or H,W")
    crop: str = option("", "crop the centre: pixels, or H,W")
    scale: str = option("", "divide pixels by this first (255)")
    mean: str = option("", "subtract: one number, or one for each channel")
    std: str = option("", "divide by: one number, or one for each channel")
    layout: str = option("", "NCHW or NHWC")
    color: str = option("", "RGB, BGR or GRAY")
    interpolation: str = option("", "of resizing: nearest, box, bilinear, bicubic, lanczos")


@dataclass(frozen=True, kw_only=True)
class DataFlags(ImageFlags):
    """Flags that every command with a set of images has."""

    batch: int = option(32, "images a batch")
    limit: int = option(0, "use at most so many images, balanced over classes; 0 for all")
    skip_bad: bool = option(False, "leave out images that cannot be read, and say so")

    def data(self, model: Any, source: str, terminal: Terminal) -> Any:
        """Batches of `source` for `model`."""
        return data_for(
            model, source, terminal, batch=self.batch, limit=self.limit, skip_bad=self.skip_bad,
            preprocess=preprocess_flags(self),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Quantize(ShapeFlag, DataFlags):
    """Quantize a trained network and write the integer network as ONNX."""

    model: str = argument("an ONNX file, a .pt2 file, or module:callable returning an nn.Module")
    data_path: str = option(
        "", "images: a folder, .npz, .zip or module:callable; distilled: from batch norm; none: --recipe datafree",
        "--data", "-d",
    )  # fmt: skip
    output: str = option("", "the file to write; MODEL's name with .int8.onnx if not given", "--output", "-o")
    recipe: str = option("fast", "a recipe's name, or a YAML file")
    target: str = option("auto", "what the file is for; auto: this machine")
    placement: str = option("", "deployable (the default), or paper: as papers place quantizers; simulated")
    set: tuple[str, ...] = option((), "widths: 'W=4,A=8', 'layer4.*:W=8', 'head.*:float'")
    ends: int | None = option(None, "bits of input, first and last layer, logits; 8 if not given, 0: as elsewhere")
    plan: str = option("", "a plan's JSON file to follow instead of placing; --set changes its widths")
    memory: str = option("", "memory that steps which learn may take: 4GiB, 500MB; any if not given")
    resume: str = option("", "folder that keeps what is finished: a run that was killed goes on where it was")
    step: tuple[str, ...] = option((), "a setting of a step: calibrate.activations=percentile")
    eval_data: str = option("", "labelled images to measure the drop on; --data if not given, unless distilled")

    def run(self, terminal: Terminal) -> Outcome:
        """Quantize, measure what will be written, write it: whatever fails leaves no file."""
        start = time.perf_counter()
        recipe, settings = load_recipe(self.recipe), parse_settings(self.step)
        output = Path(self.output or f"{Path(self.model.replace(':', '.')).stem}.int8.onnx")
        distilling = settings.pop("distill", {}) if self.data_path == DISTILLED else {}
        # Where steps have conditions it depends on the network which ones need images.
        settings = under(shared_settings(recipe, shared_of(terminal.seed, self.memory, self.resume)), settings)
        check_data(recipe, make_steps(recipe, settings), bool(self.data_path or recipe.when))
        self._check_paths(output)
        placing_of(self.target, self.set, self.ends, self.plan or None, Terminal(), self.placement)
        network = float_network(self.model, shapes=self.shape)
        if self.model.endswith(".onnx"):
            parts = dict.fromkeys(map(str, model_files(self.model)), "a part of the float network")
            check_output(output, parts)
        batches = self._calibration(network, distilling, terminal)
        measured = self.eval_data or ("" if self.data_path == DISTILLED else self.data_path)
        others = self.data(network, measured, terminal) if measured else None
        labelled = others is not None and self._labelled(others, network, measured, terminal)
        quantized = run_recipe(
            network, batches, recipe, settings, terminal, target=self.target, placement=self.placement, set=self.set,
            ends=self.ends, plan=self.plan or None,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        written = quantized.model()
        served = model_bytes(written)
        runtime = runtime_of(quantized.state)
        file = subject(quantized.state, served)
        found = None
        if others is not None:
            found = self._evaluate(file, model_bytes(network), others, labelled, runtime, terminal)
        write_bytes(output, served)
        for warning in quantized.calibration.warnings if quantized.calibration else ():
            terminal.note(f"note: {warning}")
        if batches is not None and batches.skipped:
            terminal.note(f"skipped {len(batches.skipped)} unreadable images, the first is {batches.skipped[0]}")
        before = file_bytes(self.model) if self.model.endswith(".onnx") else len(model_bytes(network))
        drop = None if found is None or found.drop is None else {**asdict(found.drop), "data": measured}
        json = {
            "output": str(output),
            "bytes_before": before,
            "bytes_after": len(served),
            "integer_mac_share": quantized.integer_mac_share(),
            "float_sites": [{"site": s, "reason": r} for s, r in quantized.plan.float_sites().items()],
            "float_regions": [{"region": n, "reason": r} for n, r in quantized.plan.refused.items()],
            "images_used": quantized.images_used,
            "calibration": audit_json(quantized.calibration),
            "needs": needs(written, TARGETS[quantized.plan.target].load().runtime),
            "seconds": seconds,
            "peak_memory_mb": peak_memory_mb(),
            "accuracy": drop,
            "agreement": None if found is None else found.agreement,
            "simulated": isinstance(file, Simulation),
            "target": quantized.plan.target,
            "placement": quantized.placement,
            "recipe": recipe.name,
            "diverged": quantized.diverged,
        }
        return Outcome(
            json=json, text=_summary(json, measured == self.data_path), exit_code=1 if json["diverged"] else 0
        )

    def _calibration(self, network: Any, distilling: dict[str, Any], terminal: Terminal) -> Batches | None:
        """The images that recipes work on."""
        if self.data_path == DISTILLED:
            return distilled_data(network, distilling, terminal, batch=self.batch, limit=self.limit)
        return self.data(network, self.data_path, terminal) if self.data_path else None

    def _labelled(self, others: Batches, network: Any, measured: str, terminal: Terminal) -> bool:
        """Whether accuracy can be measured; images to calibrate with need not be of the network's classes."""
        labels = others.require_labels() if self.eval_data else others.labels
        labelled = bool(self.eval_data) or are_classes(labels, network)
        if labels is not None and not labelled:
            terminal.note(
                f"note: the labels of {measured} are no classes of the network: its accuracy is not measured"
            )
        return labelled

    def _check_paths(self, output: Path) -> None:
        inputs = {
            self.model: "the float network itself", self.data_path: "what --data names",
            self.eval_data: "what --eval-data names", self.recipe: "the recipe", self.plan: "the plan",
        }  # fmt: skip
        check_output(output, inputs)

    def _evaluate(
        self, served: str | Path | bytes | Simulation, network: bytes, batches: Batches, labelled: bool,
        runtime: str, terminal: Terminal,
    ) -> Evaluation:  # fmt: skip
        with terminal.progress("evaluate what will be written", len(batches)) as advance:
            return evaluate(served, batches, against=network, runtime=runtime, labelled=labelled, progress=advance)


def audit_json(found: Audit | None) -> dict[str, Any] | None:
    """The object that `--json` prints of a calibration; None where there was none."""
    if found is None:
        return None
    stability = found.stability
    return {
        **asdict(found),
        "stability": None if stability is None else {
            **asdict(stability),
            "worst": [{"site": site, "change": change} for site, change in stability.worst],
        },
        "warnings": list(found.warnings),
    }  # fmt: skip


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _summary(json: dict[str, Any], on_calibration_images: bool) -> RenderableType:
    table = facts()
    ratio = json["bytes_after"] / json["bytes_before"]
    table.add_row("file", json["output"])
    table.add_row("bytes", f"{json['bytes_before']:,} -> {json['bytes_after']:,} ({ratio:.3f}x)")
    table.add_row("target", json["target"])
    if json["placement"] == "paper":
        table.add_row("placement", PAPER_TEXT)
    if json["diverged"]:
        table.add_row("diverged", f"{', '.join(json['diverged'])}: as rounded before; lower the step's rates")
    table.add_row("needs", ", ".join(f"{name} {least}" for name, least in json["needs"].items()) or "another runtime")
    table.add_row("integer MACs", f"{100 * json['integer_mac_share']:.2f} %")
    table.add_row("images used", f"{json['images_used']:,}")
    table.add_row("time, peak memory", f"{json['seconds']:.1f} s, {json['peak_memory_mb']:,.0f} MB")
    accuracy = json["accuracy"]
    if accuracy is not None:
        table.add_row("accuracy, float", f"{100 * accuracy['reference']:.2f} % of {accuracy['images']:,} images")
        how = "simulated" if json["simulated"] else "in its runtime"
        table.add_row("accuracy, written file", f"{100 * accuracy['accuracy']:.2f} %, {how}")
        interval = f"95 % interval {100 * accuracy['low']:+.2f} to {100 * accuracy['high']:+.2f}"
        table.add_row("drop", f"{100 * accuracy['drop']:+.2f} points, {interval}")
        if on_calibration_images:
            table.add_row("", "measured on the calibration images; give --eval-data for others")
    elif json["agreement"] is None:
        table.add_row("accuracy", "not measured; give --eval-data")
    else:
        table.add_row("same top-1 as float", f"{100 * json['agreement']:.2f} % (no labels, so no accuracy)")
    parts: list[RenderableType] = [table]
    if json["simulated"]:
        parts.append(f"simulated: no runtime here executes files for {json['target']}; the file itself was not run")
    if json["float_regions"]:
        parts.append(f"\n{len(json['float_regions'])} ops compute in float ({len(json['float_sites'])} sites):")
        parts.extend(f"  {entry['region']}: {entry['reason']}" for entry in json["float_regions"])
    else:
        every = "every layer but the first" if json["placement"] == "paper" else "every op"
        parts.append(f"{every} reads quantized values" if json["simulated"] else "nothing computes in float")
    return Group(*parts)
