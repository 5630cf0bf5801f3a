"""`bitwright methods`: every algorithm, number format, packing and runtime that one can choose."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding

from bitwright.cost import COSTS
from bitwright.deploy.forms import FORMS
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.errors import BitwrightError
from bitwright.execute import OPS
from bitwright.formats import FORMATS
from bitwright.lookup import Row, lookup
from bitwright.mixed.sensitivity import SENSITIVITIES
from bitwright.mixed.solvers import SOLVERS
from bitwright.ptq import STEPS
from bitwright.ranges import ESTIMATORS
from bitwright.targets import TARGETS
from bitwright.verbs.tables import columns
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument

#: What there is to choose from, by kind: where it is chosen, and the table.
KINDS: dict[str, tuple[str, Mapping[str, Row]]] = {
    "steps": ("in a recipe; their parameters with --step STEP.PARAMETER=VALUE", STEPS),
    "estimators": ("with --step calibrate.activations=NAME, and of weights", ESTIMATORS),
    "formats": ("with --set W=NAME-BITS", FORMATS),
    "forms": ("by the target: how a written file spells quantization", FORMS),
    "runtimes": ("with --runtime where a command runs a file", RUNTIMES),
    "costs": ("with search --budget NAME=VALUE, or --over NAME", COSTS),
    "sensitivities": ("with search or sensitivity --method NAME; parameters with --measure", SENSITIVITIES),
    "solvers": ("with search --solver NAME", SOLVERS),
}
#: A full stop that ends a sentence, not an abbreviation.
SENTENCE = re.compile(r"(?<!\bal)(?<!\bpp)(?<!\bvol)\.\s")


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List what one can choose: steps, range estimators, number formats, packings, forms of files and runtimes.

    Each with its parameters, their defaults, and the paper it comes from.
    """

    kinds: tuple[str, ...] = argument(
        "steps, estimators, formats, packings, forms, runtimes, costs, sensitivities, solvers; all if none", default=()
    )

    def run(self, terminal: Terminal) -> Outcome:
        """List."""
        known = [*KINDS, "packings"]
        for kind in self.kinds:
            lookup(dict.fromkeys(known), kind, "kind of method")
        chosen = [kind for kind in known if not self.kinds or kind in self.kinds]
        json: dict[str, Any] = {kind: described_rows(KINDS[kind][1]) for kind in chosen if kind in KINDS}
        if "packings" in chosen:
            json["packings"] = described_packings()
        json = {**{kind: [] for kind in known}, **json, "ops": len(OPS)}
        return Outcome(json=json, text=_text(json, chosen))


def described_rows(table: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Each row of a table: help, parameters with their defaults, source, and whether it can be used here."""
    rows = []
    for name, row in table.items():
        try:
            loaded = row.load()
            missing = "not installed" if getattr(loaded, "version", None) == "" else None
        except (ImportError, BitwrightError) as error:  # what needs a package that is not installed
            loaded, missing = None, str(error)
        rows.append({
            "name": name, "help": row.help, "required": required_of(loaded), "parameters": parameters_of(loaded),
            "source": None if loaded is None else source_of(loaded), "missing": missing,
        })  # fmt: skip
    return rows


def parameters_of(loaded: Any) -> dict[str, Any]:
    """Fields of a dataclass with their defaults.

    Example:
        >>> from bitwright.ranges.percentile import Percentile
        >>> parameters_of(Percentile)["percentile"]
        99.99
    """
    return {f.name: _plain(f.default) for f in _fields(loaded) if f.default is not dataclasses.MISSING}


def required_of(loaded: Any) -> list[str]:
    """Fields of a dataclass that have no default."""
    return [f.name for f in _fields(loaded) if f.default is dataclasses.MISSING]


def _fields(loaded: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(loaded) if inspect.isclass(loaded) and dataclasses.is_dataclass(loaded) else ()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def source_of(loaded: Any) -> str | None:
    """The first sentence behind `Source:` in the docstring of an object or of its module; None without one.

    Example:
        >>> from bitwright.ranges.aciq import ACIQ
        >>> source_of(ACIQ)[:45]
        'Banner et al., Post Training 4-bit Quantizati'
    """
    module = sys.modules.get(getattr(loaded, "__module__", ""))
    for text in (inspect.getdoc(loaded), inspect.getdoc(module)):
        found = re.search(r"^\s*Source: (.*?)(?:\n\s*\n|\Z)", text or "", re.DOTALL | re.MULTILINE)
        if found:
            return SENTENCE.split(" ".join(found[1].split()))[0].rstrip(".")
    return None


def described_packings() -> list[dict[str, Any]]:
    """Each way to store weights, and the formats and widths for which targets choose it."""
    uses: dict[str, dict[str, dict[str, list[int]]]] = {}
    for name in TARGETS:
        for number_format, widths in lookup(TARGETS, name, "target").load().weight_packing.items():
            for bits, packing in sorted(widths.items()):
                uses.setdefault(packing, {}).setdefault(name, {}).setdefault(number_format, []).append(bits)
    return [{"name": packing, "targets": targets} for packing, targets in uses.items()]


def _text(json: Mapping[str, Any], chosen: list[str]) -> RenderableType:
    parts: list[RenderableType] = []
    for kind in chosen:
        where = KINDS[kind][0] if kind in KINDS else "by the target, from format and width"
        parts.append(f"{kind} ({where})")
        if kind == "packings":
            lines = [(row["name"], _uses(row["targets"])) for row in json[kind]]
            table = columns(("name", "weights of"), lines)
        else:
            rows = [(row["name"], _help(row), _parameters(row), row["source"] or "") for row in json[kind]]
            filled = [i for i in range(4) if any(cells[i] for cells in rows)]
            heads = ("name", "what it is", "parameters", "source")
            table = columns([heads[i] for i in filled], [[cells[i] for i in filled] for cells in rows])
        parts.extend((Padding(table, (0, 0, 0, 2)), ""))
    parts.append(f"{json['ops']} ONNX ops run on torch; see also `bitwright recipes` and `bitwright targets`")
    return Group(*parts)


def _help(row: Mapping[str, Any]) -> str:
    return f"{row['help']} (not usable here: {row['missing']})" if row["missing"] else str(row["help"])


def _parameters(row: Mapping[str, Any]) -> str:
    return ", ".join([*row["required"], *(f"{name}={value}" for name, value in row["parameters"].items())])


def _uses(targets: Mapping[str, Mapping[str, list[int]]]) -> str:
    told = []
    for target, formats in targets.items():
        widths = "; ".join(f"{name} {', '.join(map(str, bits))}" for name, bits in formats.items())
        told.append(f"{target} ({widths})")
    return ", ".join(told)
