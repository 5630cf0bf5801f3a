"""Attempts of `bitwright auto`, each a JSON file and an ONNX file in a folder, so that a run that stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitwright.deploy.evaluate import Drop
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError
from bitwright.verbs.preparing import digest_of
from bitwright.verbs.trial import Bench

RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt, as it is kept.

    Attributes:
        name: of the rung.
        help: what it is.
        recipe: the recipe's name.
        steps: its steps with their settings, as they ran.
        set: widths that were set.
        drop: accuracy beside float, of the served file; None where it failed.
        sqnr_db: signal to noise of the outputs; None where it failed, or where they are equal.
        bytes: of the file; 0 where it failed.
        seconds: of quantizing and measuring.
        failed: why it could not be done; None where it was.
    """

    name: str
    help: str
    recipe: str
    steps: tuple[str, ...]
    set: tuple[str, ...]
    drop: Drop | None
    sqnr_db: float | None
    bytes: int
    seconds: float
    failed: str | None = None


class Folder:
    """The kept attempts of one run.

    Args:
        path: the folder; made where it is missing.
        run: what the run is; another one is refused.

    Raises:
        InputError: it cannot be made a folder, or holds another run.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(str(path), f"cannot be made a folder: {error.strerror}", fix="choose another") from error
        if (path / RUN).exists():
            kept = self._read(path / RUN)
            for key, value in run.items():
                if kept.get(key) != value:
                    raise InputError(
                        str(path), f"holds a run with another {key}: {_short(kept.get(key))}", _short(value),
                        "give another folder to --resume, or the same flags",
                    )  # fmt: skip
        elif any(path.iterdir()):
            raise InputError(str(path), "holds other files, and no run", "an empty folder, or one of a run before")
        else:
            write_bytes(path / RUN, json.dumps(run, indent=1).encode())

    def file(self, name: str) -> Path:
        """The ONNX file of an attempt."""
        return self.path / f"{_plain(name)}.onnx"

    def keep(self, attempt: Attempt, served: bytes) -> None:
        """Keep an attempt: its file first, so that the JSON file says that both are there."""
        if served:
            write_bytes(self.file(attempt.name), served)
        write_bytes(self.path / f"{_plain(attempt.name)}.json", json.dumps(asdict(attempt), indent=1).encode())

    def kept(self, name: str, steps: tuple[str, ...], set: tuple[str, ...]) -> Attempt | None:
        """The attempt of this name, if it ran with these steps and widths."""
        path = self.path / f"{_plain(name)}.json"
        if not path.exists():
            return None
        content = self._read(path)
        try:
            drop = None if content["drop"] is None else Drop(**content["drop"])
            lists = {"steps": tuple(content["steps"]), "set": tuple(content["set"])}
            found = Attempt(**{**content, **lists, "drop": drop})
        except (TypeError, KeyError) as error:
            raise InputError(str(path), "is no attempt that was kept", fix="delete it, to make it again") from error
        same = found.steps == steps and found.set == set
        return found if same and (found.failed is not None or self.file(name).exists()) else None

    def keep_order(self, name: str, sites: Sequence[tuple[str, str]]) -> None:
        """Keep the sites of an attempt whose repair pays off, the best first."""
        write_bytes(self.path / f"{_plain(name)}.sites.json", json.dumps(sites, indent=1).encode())

    def kept_order(self, name: str) -> list[list[str]] | None:
        """`[site, kind]` of the sites of an attempt to raise, the best first; None where they are not known."""
        path = self.path / f"{_plain(name)}.sites.json"
        found: list[list[str]] | None = self._read(path) if path.exists() else None
        return found

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(str(path), "cannot be read", "what a run before wrote", "delete it") from error


def _plain(name: str) -> str:
    return name.replace("/", "of")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def run_of(bench: Bench, seed: int, version: str) -> dict[str, Any]:
    """What makes two runs the same: network, images, widths, settings. Goal and budgets may differ."""
    images = {
        name: f"{len(batches)} images, {digest_of(batches)}"
        for name, batches in (("data", bench.calibration), ("eval-data", bench.measured))
    }
    return {
        "version": version,
        "network": hashlib.sha256(bench.reference).hexdigest()[:16],
        **images,
        "batch": bench.calibration.batch_size,
        "target": bench.target,
        "set": list(bench.set),
        "ends": bench.ends,
        "plan": bench.plan and hashlib.sha256(Path(bench.plan).read_bytes()).hexdigest()[:16],
        "step": json.loads(json.dumps(bench.settings)),
        "seed": seed,
    }
