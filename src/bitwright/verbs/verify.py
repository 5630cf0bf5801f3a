"""`bitwright verify`: prove that the runtime serves what is simulated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType

from bitwright.deploy.reader import read_model
from bitwright.deploy.verify import Verification, verify
from bitwright.errors import InputError
from bitwright.graph.open import open_model
from bitwright.verbs.quantize import DataFlags
from bitwright.verbs.serving import HELP, resolve_runtime
from bitwright.verbs.tables import counted, facts
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option

#: For each runtime, the target whose files allow for products that saturate.
MADE_FOR_SATURATION = {"onnxruntime": "onnxruntime-x64-avx2", "openvino": "openvino-cpu-avx2"}


@dataclass(frozen=True, kw_only=True)
class Verify(DataFlags):
    """Compare simulation and runtime on every quantized tensor, code by code."""

    model: str = argument("a file written by quantize; plan and encodings are in it")
    data_path: str = option("", "images: a folder, .npz, .zip or module:callable", "--data", "-d")
    runtime: str = option("", HELP)
    threads: int = option(0, "threads within an op; 0: one a core")
    precise: bool = option(False, "without VNNI: use the runtime's slower kernels, whose products do not saturate")

    def run(self, terminal: Terminal) -> Outcome:
        """Verify."""
        if not self.data_path:
            raise InputError("--data", "is missing", "images: a folder, .npz, .zip")
        served = open_model(self.model)
        batches = self.data(read_model(served, self.model).model, self.data_path, terminal)
        runtime = resolve_runtime(self.runtime, served, self.model, terminal, threads=self.threads)
        with terminal.progress("verify", len(batches)) as advance:
            found = verify(
                self.model, batches, runtime=runtime, threads=self.threads, precise=self.precise, progress=advance
            )
        return Outcome(json=verification_json(found), text=_text(found), exit_code=0 if found.proven else 1)


def verification_json(found: Verification) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {**asdict(found), "proven": found.proven}


def _text(found: Verification) -> RenderableType:
    table = facts()
    table.add_row("images", f"{found.images:,}")
    table.add_row("quantized tensors", f"{found.tensors}")
    table.add_row("codes compared", f"{found.codes:,}")
    table.add_row("mismatching codes", f"{found.mismatches:,}")
    if found.first_mismatch is not None:
        table.add_row("first in", found.first_mismatch)
    table.add_row("borrowed tables", f"{found.borrowed}")
    if found.top1_agreement is not None:
        table.add_row("same top-1", f"{100 * found.top1_agreement:.2f} %")
    table.add_row("float simulation would miss", f"{found.fake_quant_mismatches:,} codes")
    table.add_row("kernels", counted(found.kernels))
    table.add_row("runtime", found.runtime)
    table.add_row("processor", found.processor)
    parts: list[RenderableType] = [table]
    if found.float_kernels:
        parts.append("not in integers, although planned: " + counted(found.float_kernels))
    if found.unplanned_kernels:
        parts.append("in integers, although planned in float: " + counted(found.unplanned_kernels))
    if found.mismatches and found.saturates and not found.made_for_saturation:
        parts.append(
            "this processor has no VNNI: products of uint8 and 8-bit weights saturate in pairs; quantize with "
            f"--target {MADE_FOR_SATURATION[found.runtime.split()[0]]} (7-bit weights) for it"
            + (", or verify with --precise for one that has VNNI" if found.runtime.startswith("onnxruntime") else "")
        )
    parts.append("proven: what is simulated is what is served" if found.proven else "NOT proven")
    return Group(*parts)
