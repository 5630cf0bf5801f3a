"""Timings of regions on disk, by machine: JSON under `$XDG_CACHE_HOME/bitwright`, else `~/.cache/bitwright`.

    {"version": 1, "machines": {fingerprint: {signature: {"seconds": s, "samples": {"W8": [ms, ...], ...}}}}}

The fingerprint names the processor with its features, the number of cores, the runtime with its version, and the
threads; timings under another one are kept for that machine and not used here. Whatever cannot be read is ignored,
which the log says: it is measured again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import processor
from bitwright.deploy.writer import write_bytes
from bitwright.errors import InputError, first_line
from bitwright.lookup import lookup

log = logging.getLogger("bitwright")

VERSION = 1
Samples = dict[str, list[float]]


def default_path() -> Path:
    """Where timings are kept when nothing else is said."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "bitwright" / "latency.json"


def fingerprint(runtime: str, threads: int) -> str:
    """What timings depend on, beside the region."""
    version = lookup(RUNTIMES, runtime, "runtime").load().version
    return f"{processor()}, {os.cpu_count()} cores, {runtime} {version}, {threads or 'all'} threads"


@dataclass(frozen=True, kw_only=True)
class TimingCache:
    """Timings of one machine.

    Attributes:
        path: of the file.
        machine: fingerprint.
        entries: `{signature: {"seconds": ..., "samples": ...}}`, read and new.
    """

    path: Path
    machine: str
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def samples(self, signature: str, contenders: Mapping[str, Any], rounds: int, seconds: float) -> Samples | None:
        """Milliseconds of all contenders in the same rounds; None where they lack one, or had fewer rounds."""
        entry = self.entries.get(signature)
        if entry is None or entry["seconds"] < seconds:
            return None
        found: Samples = {name: times for name, times in entry["samples"].items() if name in contenders}
        enough = len(found) == len(contenders) and all(len(times) >= rounds for times in found.values())
        return found if enough else None

    def add(self, signature: str, samples: Samples, seconds: float) -> None:
        """Take new timings in place of those that are there."""
        self.entries[signature] = {"seconds": seconds, "samples": samples}

    def save(self) -> None:
        """Write the file; timings of other machines, and what others wrote meanwhile, stay in it."""
        machines = _read(self.path)
        machines[self.machine] = machines.get(self.machine, {}) | self.entries
        data = json.dumps({"version": VERSION, "machines": machines}, indent=1).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, data)
        except (OSError, InputError) as error:
            log.warning("timings are not kept: %s cannot be written (%s)", self.path, first_line(error))


def open_cache(path: Path, machine: str) -> TimingCache:
    """The timings that are known of this machine; of others none is used, which the log says."""
    machines = _read(path)
    if machines and machine not in machines:
        log.info(
            "%s has timings of %d other machines or versions, which are not used: this is %s",
            path,
            len(machines),
            machine,
        )
    return TimingCache(path=path, machine=machine, entries=dict(machines.get(machine, {})))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is ignored: it cannot be read (%s)", path, first_line(error))
        return {}
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        log.warning("%s is ignored: it is of version %r, not %d", path, version, VERSION)
        return {}
    machines = content.get("machines")
    if not isinstance(machines, dict) or not all(_is_sound(entries) for entries in machines.values()):
        log.warning("%s is ignored: it does not hold timings", path)
        return {}
    return machines


def _is_sound(entries: Any) -> bool:
    """Whether the timings of a machine have the form that `save` gives them: positive numbers, as many each."""
    if not isinstance(entries, dict):
        return False
    for entry in entries.values():
        samples = entry.get("samples") if isinstance(entry, dict) else None
        if not isinstance(samples, dict) or not samples or not isinstance(entry.get("seconds"), int | float):
            return False
        if not all(isinstance(times, list) and times for times in samples.values()):
            return False
        if not all(isinstance(t, int | float) and t > 0 for times in samples.values() for t in times):
            return False
        if len({len(times) for times in samples.values()}) != 1:
            return False
    return True
