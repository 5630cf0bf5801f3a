"""`bitwright evaluate`: accuracy of a file in its runtime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from bitwright.deploy.evaluate import Evaluation, evaluate
from bitwright.errors import InputError
from bitwright.verbs.preparing import check_same_inputs, served_network
from bitwright.verbs.quantize import DataFlags, ShapeFlag
from bitwright.verbs.tables import facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option


@dataclass(frozen=True, kw_only=True)
class Evaluate(ShapeFlag, DataFlags):
    """Run a file over images in its runtime: top-1, top-5, and how it compares with another file."""

    model: str = argument("an ONNX file, float or written by quantize")
    data_path: str = option("", "images: a folder, .npz, .zip or module:callable", "--data", "-d")
    against: str = option("", "a file to compare with on the same images, usually the float network")
    threads: int = option(0, "threads within an op; 0: one a core")
    require_labels: bool = option(False, "fail when the data have no labels")

    def run(self, terminal: Terminal) -> Outcome:
        """Evaluate."""
        if not self.data_path:
            raise InputError("--data", "is missing", "images: a folder, .npz, .zip")
        model = served_network(self.model, shapes=self.shape)
        if self.against:
            check_same_inputs(model, served_network(self.against, shapes=self.shape), self.against)
        batches = self.data(model, self.data_path, terminal)
        if self.require_labels:
            batches.require_labels()
        with terminal.progress("evaluate", len(batches)) as advance:
            found = evaluate(self.model, batches, against=self.against or None, threads=self.threads, progress=advance)
        return Outcome(json=evaluation_json(found), text=_table(found))


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """The object that `--json` prints."""
    json = asdict(found)
    if found.sqnr_db is not None and abs(found.sqnr_db) == float("inf"):
        json["sqnr_db"] = None  # JSON has no infinity; agreement then says 1
    return json


def _table(found: Evaluation) -> Table:
    table = facts()
    table.add_row("images", f"{found.images:,}")
    if found.top1 is None:
        table.add_row("accuracy", "no labels")
    else:
        table.add_row("top-1", f"{100 * found.top1:.2f} %")
    if found.top5 is not None:
        table.add_row("top-5", f"{100 * found.top5:.2f} %")
    if found.agreement is not None:
        table.add_row("same top-1 as the reference", f"{100 * found.agreement:.2f} %")
    if found.sqnr_db is not None:
        table.add_row("signal to noise of the output", f"{found.sqnr_db:.1f} dB")
    if found.drop is not None:
        drop = found.drop
        interval = f"95 % interval {100 * drop.low:+.2f} to {100 * drop.high:+.2f}"
        table.add_row("drop against the reference", f"{100 * drop.drop:+.2f} points, {interval}")
    return table
