from __future__ import annotations

import pytest

from bitwright.cost import COSTS
from bitwright.cost.budget import UNITS, parse_budget, spelled
from bitwright.errors import InputError


@pytest.mark.parametrize(
    ("text", "name", "value", "relative"),
    [
        ("size=1/8", "size", 0.125, True),
        ("size = 3/16", "size", 0.1875, True),
        ("latency=0.5", "latency", 0.5, True),
        ("latency=40%", "latency", 0.4, True),
        ("size=1", "size", 1.0, True),
        ("bops=2e9", "bops", 2e9, False),
        ("bops=2G", "bops", 2e9, False),
        ("bops=2.5GBOP", "bops", 2.5e9, False),
        ("macs=40M", "macs", 4e7, False),
        ("size=200kB", "size", 2e5, False),
        ("size=1MiB", "size", 2.0**20, False),
        ("size=0.5MB", "size", 5e5, False),
        ("memory=4096", "memory", 4096.0, False),
        ("weights=1 kB", "weights", 1000.0, False),
        ("latency=500us", "latency", 0.5, False),
        ("latency=1.5", "latency", 1.5, False),
        ("energy=3uJ", "energy", 3e6, False),
        ("linear=1e6", "linear", 1e6, False),
    ],
)
def test_budgets_are_read(text: str, name: str, value: float, relative: bool) -> None:
    found = parse_budget(text)
    assert (found.name, found.relative) == (name, relative) and found.value == pytest.approx(value)
    assert found.limit(8.0) == pytest.approx(value * 8 if relative else value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("siez=1/8", "there is no cost 'siez'; did you mean 'size'?"),
        ("size", "is not understood; expected a cost and a bound"),
        ("size=", "is not understood"),
        ("size=small", "'small' is not a number"),
        ("size=nan", "'nan' is not a number"),
        ("size=1e999", "its bound is 1e999; expected a number above 0"),
        ("size=-1/8", "its bound is -1/8; expected a number above 0"),
        ("bops=-2e9", "its bound is -2e9; expected a number above 0"),
        ("size=0", "its bound is 0; expected a number above 0"),
        ("size=1/0", "'1/0' is no fraction"),
        ("size=1/8kB", "'1/8kB' is no fraction"),
        ("size=1/2/3", "'1/2/3' is no fraction"),
        ("size=20ms", "'ms' is no unit of this cost; expected one of B, kB"),
        ("latency=20kB", "'kB' is no unit of this cost; expected one of ns, us, ms, s"),
    ],
)
def test_others_are_refused_and_say_why(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_budget(text)
    assert told in str(caught.value) and str(caught.value).startswith(f"budget {text!r}")


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_has_a_unit_that_budgets_know(name: str) -> None:
    unit = COSTS[name].load().unit
    assert unit in UNITS
    assert unit.partition(" ")[0] in spelled(12.5, unit)
