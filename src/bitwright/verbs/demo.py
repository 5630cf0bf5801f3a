"""`bitwright demo`: from an untrained network to a proven integer network, on data that comes along."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Group, RenderableType
from rich.text import Text

from bitwright.data.digits import digits_split
from bitwright.deploy.benchmark import benchmark
from bitwright.deploy.evaluate import evaluate
from bitwright.deploy.verify import verify
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.graph.open import open_model
from bitwright.models import example
from bitwright.models.digits_cnn import digits_cnn, train_digits
from bitwright.recipes.recipe import load_recipe
from bitwright.verbs.preparing import data_for, float_network, resolve_target
from bitwright.verbs.quantized import model_bytes, run_recipe
from bitwright.verbs.tables import facts, percent, points
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, option

#: Training images that set the ranges.
CALIBRATION_IMAGES = 256
#: Threads and rounds of the latency measurement; the network is tiny.
THREADS, ROUNDS = 1, 5


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train a small network on handwritten digits, quantize it, prove it, and show what it costs: about half a minute.

    The files that it leaves (both networks, calibration and test images) are there to try the other commands on.
    """

    output: str = option("bitwright-demo", "the folder for its files", "--output", "-o")
    target: str = option("auto", "what the integer network is for; auto: this machine")

    def run(self, terminal: Terminal) -> Outcome:
        """Train, quantize, evaluate, verify, time."""
        start = time.perf_counter()
        train, test = digits_split()
        target = resolve_target(self.target, terminal).name
        folder = _made_folder(self.output)
        terminal.note("training a network of 32 thousand weights on 1,437 digits")
        module = digits_cnn(seed=terminal.seed)
        with one_thread():
            train_digits(module, train, test, seed=terminal.seed)
        terminal.note("quantizing and proving it")
        exported = open_model(module, example(module))
        network = float_network(exported)
        paths = {name: folder / name for name in ("digits.onnx", "digits.int8.onnx", "calibration.npz", "test.npz")}
        name = network.graph.inputs[0].name or ""
        chosen = np.arange(CALIBRATION_IMAGES) * len(train[0]) // CALIBRATION_IMAGES  # evenly over the writers
        _write_float(exported, paths["digits.onnx"])
        _write_arrays(paths["calibration.npz"], {name: train[0][chosen], "labels": train[1][chosen]})
        _write_arrays(paths["test.npz"], {name: test[0], "labels": test[1]})
        quantized = run_recipe(
            network, data_for(network, paths["calibration.npz"], terminal), load_recipe("int8"), {}, terminal,
            target=target, set=(), ends=8,
        )  # fmt: skip
        files = paths["digits.onnx"], paths["digits.int8.onnx"]
        quantized.save(files[1])
        batches = data_for(network, paths["test.npz"], terminal)
        found = evaluate(files[1], batches, against=files[0])
        proof = verify(files[1], batches)
        timing = benchmark(files, threads=THREADS, rounds=ROUNDS)
        assert found.drop is not None
        json = {
            "output": str(folder),
            "files": [path.name for path in paths.values()],
            "target": target,
            "bytes_before": files[0].stat().st_size,
            "bytes_after": files[1].stat().st_size,
            "integer_mac_share": quantized.integer_mac_share(),
            "accuracy": asdict(found.drop),
            "codes": proof.codes,
            "mismatches": proof.mismatches,
            "top1_agreement": proof.top1_agreement,
            "proven": proof.proven,
            "latency_ratio": timing[1].ratio,
            "seconds": time.perf_counter() - start,
        }
        return Outcome(json=json, text=_text(json), exit_code=0 if proof.proven else 1)


def _made_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(name, f"cannot be made a folder: {error.strerror}", fix="choose another --output") from error
    return folder


def _write_float(model: ir.Model, path: Path) -> None:
    """The float network as a file; the exporter's notes of the code that it came from are left out."""
    kept = model.clone()
    for node in kept.graph.all_nodes():
        node.metadata_props.clear()
    write_bytes(path, model_bytes(kept))


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: for a network this small faster than two, and the same weights on any number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _text(json: Mapping[str, Any]) -> RenderableType:
    accuracy, folder = json["accuracy"], Path(json["output"])
    size = f"{json['bytes_before']:,} -> {json['bytes_after']:,} ({json['bytes_after'] / json['bytes_before']:.3f}x)"
    interval = f"{points(accuracy['low'])} to {points(accuracy['high'])}"
    table = facts([
        ("accuracy, float", f"{percent(accuracy['reference'])} of {accuracy['images']} test images"),
        ("accuracy, integers", percent(accuracy["accuracy"])),
        ("drop", f"{points(accuracy['drop'])} points, 95 % interval {interval}"),
        ("bytes", size),
        ("integer MACs", percent(json["integer_mac_share"])),
        ("codes compared", f"{json['codes']:,}, simulated against served"),
        ("mismatching codes", f"{json['mismatches']:,}"),
        ("latency", f"{json['latency_ratio']:.2f}x that of the float network ({THREADS} thread, batch 1)"),
        ("target", json["target"]),
        ("time", f"{json['seconds']:.0f} s"),
    ])  # fmt: skip
    verdict = "proven: what is simulated is what is served" if json["proven"] else "NOT proven"
    tries = (
        f"bitwright inspect {folder / 'digits.onnx'}",
        f"bitwright quantize {folder / 'digits.onnx'} --data {folder / 'calibration.npz'} --set W=4,A=8",
        f"bitwright verify {folder / 'digits.int8.onnx'} --data {folder / 'test.npz'}",
    )
    commands = (Text(f"  {line}", no_wrap=True, overflow="ignore") for line in tries)  # whole, to be copied
    return Group(table, verdict, "", "try next:", *commands)
