"""Finished units on disk, so that a run that was killed goes on where it was and ends as an unbroken one does.

A folder belongs to one run: network, plan, encodings, images and settings. Another run in it is refused, not mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitwright.data.batches import Batch
from bitwright.errors import InputError, first_line
from bitwright.pipeline import State
from bitwright.plan.encoding import from_plain, to_plain
from bitwright.ptq.reconstruct.method import Method

MARK = "run.json"


def fingerprint(state: State, method: Method, batch: Batch, images: int) -> str:
    """What a run's result depends on, as one number in text."""
    assert state.plan is not None
    found = hashlib.sha256(repr((method, images, batch.names)).encode())
    found.update(state.plan.dumps().encode())
    for site in sorted(state.encodings):
        encoding = state.encodings[site]
        for tensor in (encoding.scale, encoding.zero_point, encoding.codes, encoding.levels):
            found.update(b"-" if tensor is None else tensor.numpy().tobytes())
    for name in sorted(state.model.graph.initializers):
        found.update(name.encode() + state.tensor(name).contiguous().numpy().tobytes())
    for name in sorted(batch.inputs):
        found.update(batch.inputs[name].tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Finished:
    """The folder of one run."""

    folder: Path

    @classmethod
    def open(cls, folder: str, make: Callable[[], str]) -> Finished:
        """The folder, made where it is not there, and marked with the run that it belongs to.

        Raises:
            InputError: it cannot be written, or holds another run.
        """
        path, mark = Path(folder), make()
        try:
            path.mkdir(parents=True, exist_ok=True)
            note = path / MARK
            if note.is_file():
                known = json.loads(note.read_text(encoding="utf-8")).get("run")
                if known != mark:
                    raise InputError(
                        folder, "holds the finished units of another network, data or settings", "an empty folder",
                        "choose another folder, or empty this one",
                    )  # fmt: skip
            else:
                _whole(note, lambda part: part.write_text(json.dumps({"run": mark}), encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(folder, f"cannot be used ({first_line(error)})", "a folder to keep units in") from error
        return cls(path)

    def load(self, i: int) -> dict[str, Any] | None:
        """What was found for unit `i`; None where it is not finished."""
        file = self.folder / f"unit-{i}.pt"
        if not file.is_file():
            return None
        content: dict[str, Any] = torch.load(file, weights_only=True)
        content["encodings"] = {site: from_plain(entry, site) for site, entry in content["encodings"].items()}
        return content

    def save(self, i: int, changes: Mapping[str, Any]) -> None:
        """Keep what was found for unit `i`."""
        encodings = {site: to_plain(encoding) for site, encoding in changes["encodings"].items()}
        _whole(self.folder / f"unit-{i}.pt", lambda part: torch.save({**changes, "encodings": encodings}, part))


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    """A file appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    os.replace(part, path)
