"""What people read of `bitwright auto`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from bitwright.verbs.tables import columns, facts, percent, points


def told(json: Mapping[str, Any]) -> RenderableType:
    """Each attempt with its cost, and what came of it."""
    rows = []
    for row in json["attempts"]:
        if row["drop"] is None:
            rows.append(
                (row["name"], row["help"], "", "", "", "", f"{row['seconds']:.1f}", f"failed: {row['failed']}")
            )
            continue
        drop = row["drop"]
        within = "within the goal" if row["upper"] <= json["max_drop"] else ""
        rows.append((
            row["name"], row["help"], percent(drop["accuracy"]), points(drop["drop"]), points(row["upper"]),
            f"{row['bytes']:,}", f"{row['seconds']:.1f}", within,
        ))  # fmt: skip
    rows += [(row["name"], "", "", "", "", "", "", f"skipped: {row['reason']}") for row in json["skipped"]]
    heads = ("attempt", "what", ">accuracy", ">drop", ">at most", ">bytes", ">seconds", "")
    best = next(row for row in json["attempts"] if row["name"] == json["best"])
    about = facts([
        ("goal", f"at most {100 * json['max_drop']:g} points, at a confidence of {json['confidence']:g}"),
        ("accuracy, float", f"{percent(best['drop']['reference'])} of {json['images']:,} images"),
        ("ranges set by", f"{json['calibration_images']:,} images"),
        ("target", json["target"]),
    ])  # fmt: skip
    verdict = f"{'goal met' if json['met'] else 'GOAL MISSED'} by {json['best']}: wrote {json['output']}"
    notes = ["measured on the calibration images; give --eval-data for others"] if json["same_images"] else []
    return Group(about, "", columns(heads, rows), "", verdict, *notes, *([json["next"]] if json["next"] else []))
