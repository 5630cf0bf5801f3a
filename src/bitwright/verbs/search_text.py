"""What people read of `bitwright search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from bitwright.verbs.aim import MEASURED, told_cost
from bitwright.verbs.tables import columns, facts, percent, points


def told(json: Mapping[str, Any]) -> RenderableType:
    """Each point with what was measured of it, and what came of the bounds."""
    costs = [name for name in json["float"]["costs"] if all(name in row["costs"] for row in json["points"])]
    heads = (
        "point",
        "by",
        ">mean bits",
        ">accuracy",
        ">drop",
        ">95 % interval",
        *(f">{name}" for name in costs),
        "",
    )
    rows = [_row(json, row, costs) for row in json["points"]]
    accuracy = json["float"]["accuracy"]
    about = [("method", f"{json['method']}, on groups calibrated by {json['inside']}; points by {json['recipe']}")]
    if accuracy is not None:
        about.append(("accuracy, float", f"{percent(accuracy)} of {json['images']:,} images"))
    about.append(("costs, float", ", ".join(_spelled(name, json["float"]["costs"][name]) for name in costs)))
    about.append(("target", json["target"]))
    parts: list[RenderableType] = [facts(about), "", columns(heads, rows), ""]
    parts += [line for row in json["points"] if (line := _latency(row))]
    parts.append(_verdict(json))
    if json["same_images"]:
        parts.append("measured on the calibration images; give --eval-data for others")
    parts.append(f"files: {json['folder']}/points/NAME/model.onnx")
    return Group(*parts)


def _row(json: Mapping[str, Any], row: Mapping[str, Any], costs: list[str]) -> tuple[str, ...]:
    drop = row["drop"]
    interval = "" if drop is None else f"{points(drop['low'])} to {points(drop['high'])}"
    proof = "" if row["proven"] else "NOT PROVEN" if row["proven"] is False else "not verified"
    marks = [mark for mark, holds in (("best", row["best"]), ("on the front", row["on_front"])) if holds]
    return (
        row["name"], row["method"] or row["kind"], f"{row['mean_bits']:.2f}",
        "" if drop is None else percent(drop["accuracy"]),
        "" if drop is None else points(drop["drop"]), interval,
        *(told_cost(name, row["costs"][name]) for name in costs), ", ".join([*marks, *([proof] if proof else [])]),
    )  # fmt: skip


def _spelled(name: str, value: float) -> str:
    return f"{name} {told_cost(name, value)}"


def _latency(row: Mapping[str, Any]) -> str:
    found = row["latency"]
    if found is None:
        return ""
    ends = found["to_float_low"], found["to_float_high"]
    interval = "too few rounds for an interval" if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"
    return (
        f"{row['name']}: latency {found['ms']:.3g} ms measured ({found['to_float']:.3f} of float, "
        f"{interval}), {found['predicted_ms']:.3g} ms predicted "
        f"({found['predicted_to_float']:.3f} of float)"
    )


def _bound(json: Mapping[str, Any], best: Mapping[str, Any], name: str, limit: float) -> str:
    """A limit; a relative latency, which is held against the float file of the same rounds, as that share."""
    found = best["latency"]
    if name != MEASURED or name not in json["shares"] or found is None:
        return f"{name} <= {told_cost(name, limit)}"
    certain = json["confidence"] > 0 and found["to_float_high"] is not None
    return f"{name} <= {json['shares'][name]:g} of float" + (
        f" at a confidence of {found['confidence']:g}" if certain else ""
    )


def _verdict(json: Mapping[str, Any]) -> str:
    (best,) = (row for row in json["points"] if row["best"])
    asked = [_bound(json, best, name, limit) for name, limit in json["limits"].items()]
    if json["max_drop"] is not None:
        asked.append(f"drop <= {100 * json['max_drop']:g} points at a confidence of {json['confidence']:g}")
    if not asked:
        return f"most accurate: {json['best']}"
    if json["met"]:
        return f"bounds met ({', '.join(asked)}) by {json['best']}, as measured"
    above = [
        f"drop {value:.2f} points above the goal" if name == "drop" else f"{name} {100 * (value - 1):.1f} % above"
        for name, value in json["excess"].items()
    ]
    return f"BOUNDS MISSED ({', '.join(asked)}); nearest is {json['best']}: {', '.join(above)}"
