"""Which runtime serves a file: the one that is asked for, the one it was made for, or the fastest here."""

from __future__ import annotations

import os

import onnx_ir as ir

from bitwright.deploy.benchmark import fastest, installed
from bitwright.deploy.reader import is_written, read_model
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.simulate import runtime_of
from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.verbs.terminal import Terminal

#: Asks for the fastest of the installed runtimes, as measured.
AUTO = "auto"
HELP = "what runs it: onnxruntime, openvino, or auto for the fastest here; left out: the one that the file is for"


def check_runtimes(names: list[str]) -> dict[str, str]:
    """`{runtime: version}` of runtimes that are asked for.

    Raises:
        InputError: there is no such runtime, or it is not installed.
    """
    versions = {name: str(lookup(RUNTIMES, name, "runtime").load().version) for name in names}
    missing = [name for name, version in versions.items() if not version]
    if missing:
        raise InputError(
            f"runtime {missing[0]!r}", "is not installed", f"one of {', '.join(installed())}",
            f'pip install "bitwright[{missing[0]}]"',
        )  # fmt: skip
    return versions


def resolve_runtime(
    name: str, network: ir.Model, path: str | os.PathLike[str], terminal: Terminal, *, threads: int, batch: int = 1
) -> str:
    """The runtime for a file; `auto` times the installed ones, and says which it takes and why.

    Args:
        name: what was asked for; "" for the runtime that the file is for.
        network: the opened file.
        path: the file.
        terminal: is told what `auto` found.
        threads: threads within an op; 0 for one a core.
        batch: images a run.

    Raises:
        InputError: there is no such runtime, or it is not installed.
    """
    if not name:
        return runtime_of(read_model(network, str(path))) if is_written(network) else next(iter(RUNTIMES))
    if name != AUTO:
        check_runtimes([name])
        return name
    found = fastest(str(path), threads=threads, batch=batch)
    why = "the only one installed"
    if found.slowest != found.runtime:
        why = f"{found.ratio:.2f} of the time that {found.slowest} takes for a batch of {batch}"
    terminal.note(f"runtime {found.runtime}: {why}")
    return found.runtime
