"""Places of names: off lines where there is space, near their points, and none where all are taken."""

from __future__ import annotations

import pytest

from bitwright.report import labels
from bitwright.report.labels import Box, along, place

FRAME = Box(-100.0, -100.0, 100.0, 100.0)


def test_a_name_stands_right_above_its_point_if_that_is_free() -> None:
    (box,) = place([(0.0, 0.0)], [(20.0, 8.0)], FRAME, [], gap=10.0)
    assert box == Box(7.0, 7.0, 27.0, 15.0)


def test_a_line_is_left_free_and_covered_only_where_nothing_else_is() -> None:
    line = along((0.0, 0.0), (60.0, 60.0), 2.0)
    (beside,) = place([(0.0, 0.0)], [(20.0, 8.0)], FRAME, [], line, gap=10.0)
    assert beside is not None and not any(beside.overlaps(part) for part in line)
    (covering,) = place([(0.0, 0.0)], [(20.0, 8.0)], Box(5.0, 5.0, 30.0, 17.0), [], line, gap=10.0)
    assert covering == Box(7.0, 7.0, 27.0, 15.0)


def test_what_is_taken_is_never_covered() -> None:
    taken = [Box(0.0, -50.0, 50.0, 50.0)]
    (box,) = place([(0.0, 0.0)], [(20.0, 8.0)], FRAME, taken, gap=10.0)
    assert box is not None and box.right <= 0
    assert place([(0.0, 0.0)], [(20.0, 8.0)], FRAME, [FRAME], gap=10.0) == [None]
    first, second = place([(0.0, 0.0)] * 2, [(20.0, 8.0)] * 2, Box(0.0, 0.0, 30.0, 16.0), [], gap=10.0)
    assert first is not None and second is None


def test_the_line_to_a_name_keeps_clear_of_names_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(-35.0, 0.0), (-18.0, -5.0), (12.0, -2.0), (24.0, 9.0), (29.0, 4.0)]
    markers = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]

    def crossed() -> int:
        """How many lines to names pass through a name that was placed before."""
        boxes = place(points, [(30.0, 8.0)] * 5, Box(-60.0, -40.0, 60.0, 40.0), markers, gap=10.0)
        placed = [box for box in boxes if box is not None]
        assert len(placed) == 5
        leaders = [along(point, box.nearest(*point), 1.0) for point, box in zip(points, placed, strict=True)]
        return sum(any(part.overlaps(name) for part in leaders[i] for name in placed[:i]) for i in range(5))

    assert crossed() == 0
    monkeypatch.setattr(labels, "CROSSING", 0)
    assert crossed() == 1
