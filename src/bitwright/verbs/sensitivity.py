"""`bitwright sensitivity`: what each width of each layer costs the network, without searching."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from bitwright.verbs.open_search import open_search
from bitwright.verbs.search import GroupFlags
from bitwright.verbs.tables import columns, facts, short
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, option


@dataclass(frozen=True, kw_only=True)
class Sensitivity(GroupFlags):
    """Measure what each width of each layer loses, by any of the methods that a search can use.

    Groups are layers that move together: those that read one encoding, where activations vary.
    """

    keep: str = option("", "a folder that keeps what is measured; the same command goes on where it was stopped")

    def run(self, terminal: Terminal) -> Outcome:
        """Measure, and list the groups."""
        start = time.perf_counter()
        with self._folder() as folder:
            searching = open_search(**self.given(), terminal=terminal, output=folder)
            searching.stock()
            found = None if searching.orders else searching.losses()
            values = searching.scores() if found is None else found.values
        images, groups = searching.images, searching.space.groups
        json = {
            "method": searching.aim.method,
            "orders": searching.orders,
            "groups": [
                {
                    "name": group.name, "parameters": group.parameters,
                    "regions": [product.name for product in searching.space.products[group.name]],
                    "choices": [str(choice) for choice in group.choices], "losses": list(losses),
                }
                for group, losses in zip(groups, values, strict=True)
            ],
            "pairs": [
                {"groups": [groups[g].name, groups[h].name], "losses": [list(row) for row in matrix]}
                for (g, h), matrix in (found.pairs if found is not None else {}).items()
            ],
            "fixed": [{"region": region, "reason": why} for region, why in searching.space.fixed.items()],
            "passes": searching.measure.passes(searching.space),
            "images": len(images.validation or images.calibration),
            "target": searching.placing.target,
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        return Outcome(json=json, text=_told(json))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.keep:
            yield Path(self.keep)
            return
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)


def _told(json: dict[str, Any]) -> RenderableType:
    choices = list(dict.fromkeys(choice for group in json["groups"] for choice in group["choices"]))
    rows = []
    for group in json["groups"]:
        at = dict(zip(group["choices"], group["losses"], strict=True)) if not json["orders"] else {}
        cells = [f"{at[choice]:.4g}" if choice in at else "" for choice in choices]
        if json["orders"]:
            cells = [f"{group['losses'][0]:.4g}"]
        rows.append((group["name"], short(group["parameters"]), *cells))
    heads = ("group", ">weights", *(f">{choice}" for choice in (["score"] if json["orders"] else choices)))
    about = facts([
        ("method", json["method"]),
        ("passes", f"at most {json['passes']:,.0f} of the network, over {json['images']:,} images"),
        ("target", json["target"]),
        *([("pairs", f"interactions of {len(json['pairs'])}, listed by --json")] if json["pairs"] else []),
    ])  # fmt: skip
    fixed = [f"{entry['region']} does not move: {entry['reason']}" for entry in json["fixed"]]
    return Group(about, "", columns(heads, rows), "", *fixed)
