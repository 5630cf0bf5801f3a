"""The picture of a front: accuracy against a cost, with the interval of each accuracy.

The same points give the same bytes: no dates, no settings of the user's, no state of matplotlib's.

The colours are those of Okabe and Ito, Color Universal Design, 2008, which people with any colour vision tell apart;
series differ in their markers too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitwright.cost.budget import spelled
from bitwright.errors import InputError, UnsupportedError
from bitwright.lookup import lookup
from bitwright.report.labels import Box, along, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Look:
    """How a series is drawn."""

    name: str
    colour: str
    marker: str
    line: str


KINDS: dict[str, Look] = {
    "float": Look("float", "#000000", "", "--"),
    "uniform": Look("one width for all", "#D55E00", "s", ":"),
    "search": Look("mixed precision", "#0072B2", "o", "-"),
    "other": Look("others", "#009E73", "D", ""),
}
FORMS = ("png", "svg")
#: Inches; dots an inch of a PNG.
SIZE, DPI = (8.0, 5.0), 150
#: Costs that differ by more than this factor stand on a logarithmic axis.
SPREAD = 5.0


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One network on the picture.

    Attributes:
        label: what stands beside it; empty for nothing.
        cost: in the unit of the picture.
        accuracy: a fraction.
        low: lower end of its 95 % interval, a fraction.
        high: upper end.
        kind: a row of `KINDS`; the float network is a line, all others are points.

    Raises:
        InputError: no such kind, a cost that is negative or not finite, or fractions out of order: `0 <= low <=
            accuracy <= high <= 1`.

    Example:
        >>> FrontPoint(label="W4A8", cost=2e5, accuracy=0.91, low=0.9, high=0.92, kind="serch")
        Traceback (most recent call last):
        bitwright.errors.InputError: kind of point 'serch': there is no kind of point of this name;
        did you mean 'search'?
    """

    label: str
    cost: float
    accuracy: float
    low: float
    high: float
    kind: str = "search"

    def __post_init__(self) -> None:
        lookup(KINDS, self.kind, "kind of point")
        if not 0 <= self.cost < math.inf:
            raise InputError(f"point {self.label!r}", f"a cost of {self.cost:g}", "0 or more")
        if not 0 <= self.low <= self.accuracy <= self.high <= 1:
            raise InputError(
                f"point {self.label!r}", f"an accuracy of {self.accuracy:g} in {self.low:g} to {self.high:g}",
                "fractions, low <= accuracy <= high",
            )  # fmt: skip


def picture(points: Sequence[FrontPoint], *, cost: str, unit: str, title: str = "", form: str = "png") -> bytes:
    """A picture of a front.

    Args:
        points: networks, at least one that is not float, at most one that is.
        cost: what is on the x axis, in a word.
        unit: of the costs, one of `bitwright.cost.budget.UNITS`.
        title: above the picture.
        form: `png` or `svg`.

    Raises:
        InputError: another form, no point, or two float networks.
        UnsupportedError: matplotlib is not installed.

    Example:
        >>> point = FrontPoint(label="W4A8", cost=2e5, accuracy=0.91, low=0.9, high=0.92)
        >>> picture([point], cost="size", unit="B")[:4]
        b'\\x89PNG'
    """
    if form not in FORMS:
        raise InputError("form", repr(form), " or ".join(FORMS))
    with _settings():
        drawn = figure(points, cost=cost, unit=unit, title=title)
        stream = io.BytesIO()
        metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[form]
        drawn.savefig(stream, format=form, dpi=DPI, metadata=metadata)
    return stream.getvalue()


def figure(points: Sequence[FrontPoint], *, cost: str, unit: str, title: str = "") -> Figure:
    """The same as a figure of matplotlib's, for those who go on drawing; arguments and errors as of `picture`.

    Example:
        >>> point = FrontPoint(label="W4A8", cost=2e5, accuracy=0.91, low=0.9, high=0.92)
        >>> figure([point], cost="size", unit="B").axes[0].get_xlabel()
        'size'
    """
    floats = [point for point in points if point.kind == "float"]
    shown = [point for point in points if point.kind != "float"]
    if not shown:
        raise InputError(
            "points", "none" if not points else "only the float network", "one or more quantized networks"
        )
    if len(floats) > 1:
        raise InputError("points", f"{len(floats)} float networks", "at most one")
    with _settings():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(drawn)
        axes = drawn.add_subplot()
        for point in floats:
            _line_of_float(axes, point, unit)
        for kind in KINDS:
            _series(axes, sorted((p for p in shown if p.kind == kind), key=lambda p: (p.cost, p.accuracy)), kind)
        _axes(axes, points, shown, cost, unit)
        if title:
            axes.set_title(title, loc="left", fontweight="bold", wrap=True)
        drawn.legend(loc="outside lower center", ncols=len(KINDS), frameon=False)
        _labels(drawn, axes, shown)
    return drawn


def _line_of_float(axes: Axes, point: FrontPoint, unit: str) -> None:
    """The accuracy of the float network as a line: at its cost it would be far from everything else."""
    look = KINDS["float"]
    text = f"{point.label or look.name}: {100 * point.accuracy:.2f} % at {spelled(point.cost, unit)}"
    axes.axhspan(100 * point.low, 100 * point.high, color="#000000", alpha=0.06, linewidth=0, zorder=0)
    axes.axhline(100 * point.accuracy, color=look.colour, linestyle=look.line, linewidth=1.2, label=text, zorder=1)


def _series(axes: Axes, points: Sequence[FrontPoint], kind: str) -> None:
    """Points of one kind with their bars."""
    if not points:
        return
    look = KINDS[kind]
    below, above = ([100 * abs(end - p.accuracy) for end, p in zip(ends, points, strict=True)]
                    for ends in ([p.low for p in points], [p.high for p in points]))  # fmt: skip
    axes.errorbar(
        [p.cost for p in points], [100 * p.accuracy for p in points], yerr=[below, above], label=look.name,
        color=look.colour, marker=look.marker, markersize=6, markeredgecolor="white", markeredgewidth=0.8,
        linestyle=look.line or "none", linewidth=1.4, elinewidth=1.0, capsize=2.5, zorder=3,
    )  # fmt: skip


def _axes(axes: Axes, points: Sequence[FrontPoint], shown: Sequence[FrontPoint], cost: str, unit: str) -> None:
    """Limits with room for labels, ticks in the unit, a faint grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = (pick(p.cost for p in shown) for pick in (min, max))
    if low > 0 and high / low > SPREAD:
        axes.set_xscale("log")
        room = (high / low) ** 0.08
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.08 * (high - low) or 0.1 * high or 1.0
        axes.set_xlim(low - room if low >= room else low - room / 2, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value, unit)))
    bottom, top = 100 * min(p.low for p in points), 100 * max(p.high for p in points)
    space = 0.1 * (top - bottom) or 1.0
    axes.set_ylim(bottom - space, top + space)
    axes.set_xlabel(cost)
    axes.set_ylabel("accuracy in %, with 95 % interval")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _labels(drawn: Figure, axes: Axes, points: Sequence[FrontPoint]) -> None:
    """Names beside points, where neither another name nor a point is; how many found no place."""
    from matplotlib.patheffects import withStroke

    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")  # what is measured now stays where it is
    halo = [withStroke(linewidth=2.5, foreground="white")]
    named = [point for point in points if point.label]
    texts = [
        axes.annotate(
            p.label, (p.cost, 100 * p.accuracy), fontsize=8, color=KINDS[p.kind].colour, path_effects=halo, zorder=4
        )
        for p in named
    ]
    scale = drawn.dpi / 72
    sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in texts)]
    at = [_pixels(axes, p.cost, p.accuracy) for p in named]
    frame = axes.get_window_extent()
    within = Box(frame.x0, frame.y0, frame.x1, frame.y1)
    places = place(at, sizes, within, _covered(axes, points, scale), _lines(axes, scale), gap=7 * scale)
    for text, box, (x, y) in zip(texts, places, at, strict=True):
        if box is None:
            text.remove()
            continue
        text.xyann, text.anncoords = ((box.left - x) / scale, (box.bottom - y) / scale), "offset points"
        if box.distance(x, y) > 14 * scale:
            ends = [axes.transData.inverted().transform(end) for end in ((x, y), box.nearest(x, y))]
            axes.plot(*zip(*ends, strict=True), color="#888888", linewidth=0.6, zorder=2, label="_leader")
    left_out = places.count(None)
    if left_out:
        note = f"{left_out} names left out for want of space"
        axes.annotate(note, (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=7, color="#666666")


def _pixels(axes: Axes, cost: float, fraction: float) -> tuple[float, float]:
    """Where something stands in the picture."""
    x, y = axes.transData.transform((cost, 100 * fraction))
    return float(x), float(y)


def _covered(axes: Axes, points: Sequence[FrontPoint], scale: float) -> list[Box]:
    """Markers and bars."""
    found = []
    for point in points:
        x, y = _pixels(axes, point.cost, point.accuracy)
        low, high = (_pixels(axes, point.cost, end)[1] for end in (point.low, point.high))
        found.append(Box(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale))
        found.append(Box(x - 2 * scale, low - scale, x + 2 * scale, high + scale))
    return found


def _lines(axes: Axes, scale: float) -> list[Box]:
    """The lines of series and that of the float network."""
    found = []
    for line in axes.lines:
        if line.get_linestyle() == "None":
            continue
        for start, end in itertools.pairwise(line.get_transform().transform(line.get_xydata())):
            found += along(tuple(map(float, start)), tuple(map(float, end)), 3 * scale)
    return found


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """matplotlib's own settings, not the user's.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise UnsupportedError(
            "pictures", "matplotlib is not installed", "the package matplotlib", 'pip install "bitwright[plots]"'
        ) from error
    with style.context({"svg.hashsalt": "bitwright", "svg.fonttype": "path"}, after_reset=True):
        yield
