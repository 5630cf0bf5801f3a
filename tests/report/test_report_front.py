"""The picture of a front: the data where it belongs, names that can be read, the same bytes again."""

from __future__ import annotations

import itertools
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason='needs matplotlib: pip install "bitwright[plots]"')

import matplotlib

from bitwright.errors import InputError, UnsupportedError
from bitwright.report.front import KINDS, FrontPoint, figure, picture


def point(label: str, cost: float, accuracy: float, kind: str = "search", spread: float = 0.01) -> FrontPoint:
    return FrontPoint(
        label=label, cost=cost, accuracy=accuracy, low=accuracy - spread, high=accuracy + spread / 2, kind=kind
    )


POINTS = [
    point("float", 8e5, 0.93, "float"),
    point("W8A8", 2.1e5, 0.925, "uniform"),
    point("W4A4", 1.2e5, 0.88, "uniform"),
    *(point(f"size {i}", 9e4 + 1e4 * i, 0.86 + 0.008 * i) for i in (4, 0, 2, 1, 3)),
    point("elsewhere", 1.3e5, 0.87, "other"),
]


def bars(drawn: Any) -> dict[str, np.ndarray]:
    """Of each series: cost, low, accuracy and high of its points, as drawn."""
    found = {}
    for container in drawn.axes[0].containers:
        line, _, (segments,) = container.lines
        ends = np.array(segments.get_segments())
        x, y = line.get_xydata().T
        assert np.array_equal(ends[:, 0, 0], x) and np.array_equal(ends[:, 1, 0], x)
        found[container.get_label()] = np.array([x, ends[:, 0, 1], y, ends[:, 1, 1]]).T
    return found


def test_bars_are_at_the_data_in_percent_and_each_series_by_rising_cost() -> None:
    found = bars(figure(POINTS, cost="size", unit="B"))
    assert set(found) == {KINDS[kind].name for kind in ("uniform", "search", "other")}
    for kind in ("uniform", "search", "other"):
        wanted = sorted((p.cost, 100 * p.low, 100 * p.accuracy, 100 * p.high) for p in POINTS if p.kind == kind)
        assert found[KINDS[kind].name] == pytest.approx(np.array(wanted))


def test_the_float_network_is_a_dashed_line_with_its_numbers() -> None:
    drawn = figure(POINTS, cost="size", unit="B")
    (line,) = (line for line in drawn.axes[0].lines if line.get_linestyle() == "--")
    assert np.array_equal(line.get_ydata(), [93.0, 93.0])
    (legend,) = drawn.legends
    assert legend.get_texts()[0].get_text() == "float: 93.00 % at 800 kB"
    without = figure(POINTS[1:], cost="size", unit="B")
    assert all(line.get_linestyle() != "--" for line in without.axes[0].lines)


def test_series_differ_in_colour_and_marker() -> None:
    drawn: Any = figure(POINTS, cost="size", unit="B")
    looks = [(c.lines[0].get_color(), c.lines[0].get_marker()) for c in drawn.axes[0].containers]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 3


def test_axes_say_what_they_are() -> None:
    axes = figure(POINTS, cost="size of the file", unit="B", title="digits").axes[0]
    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("digits", "size of the file")
    assert axes.get_ylabel() == "accuracy in %, with 95 % interval" and axes.get_xscale() == "linear"
    assert axes.xaxis.get_major_formatter()(200000.0, 0) == "200 kB"
    wide = figure([point("a", 1e4, 0.5), point("b", 1e6, 0.9)], cost="size", unit="B").axes[0]
    assert wide.get_xscale() == "log"
    free = figure([point("a", 0.0, 0.5), point("b", 1e6, 0.9)], cost="size", unit="B").axes[0]
    assert free.get_xscale() == "linear", "nothing is at 0 on a logarithmic axis"


def test_names_cover_neither_each_other_nor_a_point() -> None:
    drawn = figure(POINTS, cost="size", unit="B")
    axes = drawn.axes[0]
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(texts) == {p.label for p in POINTS if p.kind != "float"}
    frame = axes.get_window_extent()
    for box in texts.values():
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    for a, b in itertools.combinations(texts.values(), 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1)
    for p in POINTS:
        x, y = axes.transData.transform((p.cost, 100 * p.accuracy))
        assert not any(box.contains(x, y) for box in texts.values())


def test_names_without_a_place_are_counted() -> None:
    crowd = [point(f"one of very many points {i}", 1e5 + i, 0.9, spread=0.0) for i in range(90)]
    names = [text.get_text() for text in figure(crowd, cost="size", unit="B").axes[0].texts]
    (note,) = (name for name in names if "left out" in name)
    assert note == f"{90 - (len(names) - 1)} names left out for want of space" and len(names) > 10
    assert len(figure([point("", 1e5, 0.9)], cost="size", unit="B").axes[0].texts) == 0


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_same_points_give_the_same_bytes(form: str) -> None:
    first = picture(POINTS, cost="size", unit="B", title="digits", form=form)
    # Neither the order of the points nor what the user has set for other pictures counts.
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.hashsalt": None, "font.size": 30.0}):
        assert picture(POINTS, cost="size", unit="B", title="digits", form=form) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    assert picture(POINTS, cost="size", unit="B", title="other", form=form) != first
    assert b"Matplotlib" not in first and b"dc:date" not in first and b"tIME" not in first
    if form == "svg":
        assert ElementTree.fromstring(first).tag.endswith("svg")
    else:
        assert first.startswith(b"\x89PNG")


def test_nothing_of_pyplot_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert len(figure(POINTS, cost="size", unit="B").axes) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "serch"}, "kind of point 'serch': .* did you mean 'search'"),
        ({"low": 0.95}, "point 'a': an accuracy of 0.9 in 0.95 to 0.91; expected fractions, low <= accuracy <= high"),
        ({"accuracy": 90.0, "high": 91.0}, "point 'a': an accuracy of 90 in"),
        ({"cost": float("inf")}, "point 'a': a cost of inf; expected 0 or more"),
        ({"cost": float("nan")}, "point 'a': a cost of nan"),
        ({"cost": -1.0}, "point 'a': a cost of -1"),
    ],
)
def test_points_that_cannot_be_are_refused(changes: dict[str, Any], told: str) -> None:
    fields: dict[str, Any] = {"label": "a", "cost": 1.0, "accuracy": 0.9, "low": 0.89, "high": 0.91, **changes}
    with pytest.raises(InputError, match=told):
        FrontPoint(**fields)


def test_pictures_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="points: none; expected one or more"):
        picture([], cost="size", unit="B")
    with pytest.raises(InputError, match="points: only the float network"):
        picture(POINTS[:1], cost="size", unit="B")
    with pytest.raises(InputError, match="points: 2 float networks; expected at most one"):
        picture([*POINTS, POINTS[0]], cost="size", unit="B")
    with pytest.raises(InputError, match="form: 'pdf'; expected png or svg"):
        picture(POINTS, cost="size", unit="B", form="pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r'matplotlib is not installed; .*; pip install "bitwright\[plots\]"'):
        picture(POINTS, cost="size", unit="B")
