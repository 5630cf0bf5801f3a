"""`bitwright evaluate`: accuracy of a file in its runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bitwright.deploy.evaluate import Evaluation, evaluate
from bitwright.deploy.metric import Mean, Metric
from bitwright.deploy.reader import is_written, read_model
from bitwright.deploy.simulate import subject
from bitwright.errors import InputError
from bitwright.graph.open import find_named
from bitwright.targets import TARGETS
from bitwright.verbs.preparing import check_same_inputs, served_network
from bitwright.verbs.quantize import PAPER_TEXT, DataFlags, ShapeFlag
from bitwright.verbs.quantized import are_classes
from bitwright.verbs.serving import HELP, resolve_runtime
from bitwright.verbs.tables import facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, finite, option


@dataclass(frozen=True, kw_only=True)
class Evaluate(ShapeFlag, DataFlags):
    """Run a file over images in its runtime: top-1, top-5, and how it compares with another file."""

    model: str = argument("an ONNX file, float or written by quantize")
    data_path: str = option("", "images: a folder, .npz, .zip or module:callable", "--data", "-d")
    against: str = option("", "a file to compare with on the same images, usually the float network")
    metric: str = option("", "module:callable that scores images: (outputs, labels or None) -> [images], or by name")
    runtime: str = option("", HELP)
    threads: int = option(0, "threads within an op; 0: one a core")
    require_labels: bool = option(False, "fail when the data have no labels")

    def run(self, terminal: Terminal) -> Outcome:
        """Evaluate."""
        if not self.data_path:
            raise InputError("--data", "is missing", "images: a folder, .npz, .zip")
        metric = self._metric()
        model = served_network(self.model, shapes=self.shape)
        if self.against:
            check_same_inputs(model, served_network(self.against, shapes=self.shape), self.against)
        batches = self.data(model, self.data_path, terminal)
        if self.require_labels:
            batches.require_labels()
        state = read_model(model, self.model) if is_written(model) else None
        served = self.model if state is None else subject(state, self.model)
        plan = None if state is None else state.plan
        placement = None if plan is None else TARGETS[plan.target].load().placement
        runtime = resolve_runtime(
            self.runtime, model, self.model, terminal, threads=self.threads, batch=self.batch
        )  # fmt: skip
        with terminal.progress("evaluate", len(batches)) as advance:
            found = evaluate(
                served, batches, against=self.against or None, runtime=runtime, threads=self.threads, metric=metric,
                metric_name=self.metric, labelled=metric is None or are_classes(batches.labels, model),
                progress=advance,
            )  # fmt: skip
        json = {**evaluation_json(found), "runtime": runtime, "placement": placement}
        return Outcome(json=json, text=_table(found, placement))

    def _metric(self) -> Metric | None:
        if not self.metric:
            return None
        if ":" not in self.metric:
            raise InputError("--metric", f"is {self.metric!r}", "module:callable")
        return find_named(self.metric, "module:callable that scores images", "metric")


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """The object that `--json` prints."""
    json = asdict(found)
    for entry in (json, *json["outputs"]):
        entry["sqnr_db"] = finite(entry["sqnr_db"])  # agreement then says 1
    return {**json, "outputs": list(json["outputs"]), "metrics": list(json["metrics"])}


def _table(found: Evaluation, placement: str | None) -> Table:
    table = facts()
    table.add_row("images", f"{found.images:,}")
    if found.simulated:
        table.add_row("simulated", "no runtime here executes the file; it was not run")
    if placement == "paper":
        table.add_row("placement", PAPER_TEXT)
    if found.top1 is None:
        table.add_row("accuracy", "no labels")
    else:
        table.add_row("top-1", f"{100 * found.top1:.2f} %")
    if found.top5 is not None:
        table.add_row("top-5", f"{100 * found.top5:.2f} %")
    for output in found.outputs:
        of = f" of {output.output}" if len(found.outputs) > 1 else ""
        if output.agreement is not None:
            what = "same top-1 as the reference" if output.of == "images" else f"same {output.of} as the reference"
            table.add_row(what + of, f"{100 * output.agreement:.2f} %")
        table.add_row("signal to noise" + (of or " of the output"), f"{output.sqnr_db:.1f} dB")
    if found.drop is not None:
        drop = found.drop
        interval = f"95 % interval {100 * drop.low:+.2f} to {100 * drop.high:+.2f}"
        table.add_row("drop against the reference", f"{100 * drop.drop:+.2f} points, {interval}")
    for measured in found.metrics:
        table.add_row(measured.name, _interval(measured.score))
        if measured.reference is not None and measured.difference is not None:
            table.add_row(f"{measured.name}, reference", _interval(measured.reference))
            table.add_row(f"{measured.name}, difference", _interval(measured.difference, "+"))
    return table


def _interval(found: Mean, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.4g}, one image"
    return f"{found.mean:{sign}.4g}, 95 % interval {found.low:{sign}.4g} to {found.high:{sign}.4g}"
