"""What people read of `bitwright debug`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from bitwright.verbs.tables import columns, facts, percent

#: Sites that are named of each cause.
SHOWN = 2
VERDICTS = {
    "weights": "the weights give most of the error",
    "activations": "the activations give most of the error",
    "both": "weights and activations both give a good part of the error",
    "none": "there is no error",
}


def told(json: Mapping[str, Any], top: int) -> RenderableType:
    """The whole report: checks, scans, layers, findings, remedies."""
    about = facts([
        ("images", f"{json['images']:,} measured, {json['calibration_images']:,} set the ranges"),
        ("start", f"recipe {json['recipe']} for {json['target']}"),
    ])  # fmt: skip
    parts: list[RenderableType] = [about, "", _groups(json)]
    if not json["sound"]:
        parts.append(
            "NOT SOUND: without any quantizer the simulation differs from the float network. Fix this first: it is "
            "no error of quantization (an op that is computed otherwise, weights that are not finite, other inputs)"
        )
        return Group(*parts)
    if json["moved"]:
        parts.append(
            "the float network itself was changed before it was quantized, by equalize or absorb_bias: see 'none "
            "(simulated)' beside the float file; equalize.relu6=keep leaves ReLU6 alone"
        )
    parts += [VERDICTS[json["guilty"]], "", _sites(json, top), "", _layers(json), "", _findings(json)]
    parts += ["", _remedies(json), "", _result(json)]
    return Group(*parts)


def decibels(number: float | None) -> str:
    """A ratio for people; None where outputs are equal."""
    return "equal" if number is None else f"{number:.1f}"


def _accuracy(measured: Mapping[str, Any] | None) -> str:
    return "" if measured is None or measured["accuracy"] is None else percent(measured["accuracy"])


def _kl(measured: Mapping[str, Any]) -> str:
    return "" if measured["kl"] is None else f"{measured['kl']:.2g}"


def _groups(json: Mapping[str, Any]) -> RenderableType:
    rows = [("none (the float file)", percent(json["float_accuracy"]) if json["labelled"] else "", "", "")]
    names = {
        "bypassed": "none (simulated)", "weights": "weights", "activations": "activations", "both": "all",
    }  # fmt: skip
    rows += [
        (name, _accuracy(json[part]), decibels(json[part]["sqnr_db"]), _kl(json[part])) for part, name in names.items()
    ]
    return columns(("quantizers on", ">accuracy", ">SQNR dB", ">KL"), rows)


def _sites(json: Mapping[str, Any], top: int) -> RenderableType:
    rows = [
        (
            row["site"], row["kind"], str(row["bits"]), _accuracy(row["only"]), decibels(row["only"]["sqnr_db"]),
            _accuracy(row["without"]), decibels(row["without"]["sqnr_db"]), f"{100 * row['repaired']:+.0f} %",
        )
        for row in json["sites"][:top]
    ]  # fmt: skip
    heads = (
        "site", "kind", ">bits", ">alone", ">SQNR dB", ">all but it", ">SQNR dB", ">noise it repairs"
    )  # fmt: skip
    more = len(json["sites"]) - len(rows)
    note = f"{more} more sites with --json, or --top {len(json['sites'])}" if more > 0 else ""
    return Group(columns(heads, rows), *([note] if note else []))


def _layers(json: Mapping[str, Any]) -> RenderableType:
    rows = []
    for layer in json["layers"]:
        weights, values = layer["weights"], layer["values"]
        if weights is not None:
            seen = f"channels {weights['channels']} ({weights['dead']} dead), spread {weights['spread']:.1f}, "
            seen += f"tail {weights['tail']:.1f}, shift {100 * weights['bias']:.0f} % of the error"
        else:
            seen = f"clipped {100 * values['clipped']:.2f} %, used {100 * values['used']:.0f} % of the codes, "
            seen += f"99.9 % in {100 * values['core']:.0f} %"
        shown = [
            "" if layer["region"] == "" else decibels(layer[key]) for key in ("sqnr_in_db", "sqnr_out_db")
        ]  # fmt: skip
        rows.append((layer["site"], layer["region"], *shown, seen))
    return columns(("site", "region", ">in dB", ">out dB", "weights or values"), rows)


def _findings(json: Mapping[str, Any]) -> RenderableType:
    if not json["findings"]:
        return "nothing stands out in these layers"
    rows = []
    for cause in dict.fromkeys(row["cause"] for row in json["findings"]):
        same = [row for row in json["findings"] if row["cause"] == cause]
        seen = ", ".join(f"{row['site']} ({row['evidence']})" for row in same[:SHOWN])
        more = f" and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        rows.append((same[0]["text"], seen + more, ", ".join(same[0]["remedies"]) or "nothing to do"))
    return columns(("cause", "seen at", "remedies"), rows)


def _remedies(json: Mapping[str, Any]) -> RenderableType:
    if not json["remedies"]:
        return "no remedy applies"
    rows = []
    for row in json["remedies"]:
        after = row["after"]
        rows.append((
            row["remedy"], _accuracy(row["before"]), _accuracy(after), decibels(row["before"]["sqnr_db"]),
            decibels(after["sqnr_db"]) if after else "", f"{row['seconds']:.1f}",
            _fate(row),
        ))  # fmt: skip
    heads = ("remedy", ">accuracy", ">then", ">SQNR dB", ">then", ">seconds", "")
    return columns(heads, rows)


def line(row: Mapping[str, Any]) -> str:
    """A remedy in one line, for when it has been tried."""
    if row["after"] is None:
        return f"{row['remedy']}: {_fate(row)}"
    ratios = " -> ".join(decibels(found["sqnr_db"]) for found in (row["before"], row["after"]))
    return f"{row['remedy']}: {_fate(row)}, {ratios} dB, {row['seconds']:.1f} s"


def _fate(row: Mapping[str, Any]) -> str:
    if row["reason"] is not None:
        return f"{'skipped' if row['skipped'] else 'failed'}: {row['reason']}"
    return "kept" if row["kept"] else "dropped"


def _result(json: Mapping[str, Any]) -> RenderableType:
    before, after = json["served_before"], json["served_after"]
    rows = [("signal to noise", f"{decibels(before['sqnr_db'])} -> {decibels(after['sqnr_db'])} dB, written file")]
    if json["labelled"]:
        texts = f"{_accuracy(before)} -> {_accuracy(after)}, float {percent(json['float_accuracy'])}"
        rows.append(("accuracy", texts))
    rows.append(("steps", ", ".join(_spelled(entry) for entry in json["steps"])))
    if json["set"]:
        rows.append(("widths", " ".join(json["set"])))
    if json["output"]:
        rows.append(("wrote", f"{json['output']}, {json['bytes']:,} bytes"))
    return facts(rows)


def _spelled(entry: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in entry["settings"].items())
    return f"{entry['step']}({settings})" if settings else str(entry["step"])
