"""Moments without data: as computed by hand, and as a million draws have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.errors import InputError
from bitwright.pipeline import State, run_chain
from bitwright.plan.spec import Derived
from bitwright.ptq.calibrate import Calibrate
from bitwright.ptq.moments import Moments, moments_of
from bitwright.ptq.place import Place
from bitwright.ptq.programs import float_program

Folded = Callable[..., State]
BN = ("BatchNormalization", "n gamma beta mean var", "c")
STATISTICS = {"gamma": [1.0, -2.0], "beta": [0.5, -1.0], "mean": [0.0, 0.0], "var": [1.0, 1.0]}


def arrays(**more: Any) -> dict[str, np.ndarray]:
    return {k: np.array(v, np.float32) for k, v in {**STATISTICS, "a": np.ones((2, 1, 1, 1)), **more}.items()}


def behind(folded: Folded, *nodes: tuple[Any, ...], n: float = 6.0, **more: Any) -> Moments:
    """Moments of `y`, behind a batch norm that gives `c`: N(0.5, 1) and N(-1, 4)."""
    state = folded([("Conv", "x a", "n"), BN, *nodes], arrays(**more), (1, 4, 4))
    known = moments_of(state, deviations=n)
    assert "y" in known.moments, known.unknown
    return known.moments["y"]


def close(found: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> bool:
    return bool(torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=tolerance))


def test_batch_norm_says_what_a_layer_gives(folded: Folded) -> None:
    m = behind(folded, ("Identity", "c", "y"))
    assert m.normal and close(m.mean, [0.5, -1.0]) and close(m.deviation, [1.0, 2.0])
    assert close(m.low, [-5.5, -13.0]) and close(m.high, [6.5, 11.0])


def test_relu_and_relu6_clip(folded: Folded) -> None:
    m = behind(folded, ("Relu", "c", "y"))
    assert close(m.mean[:1], [0.697797]) and close(m.low, [0, 0]) and close(m.high, [6.5, 11.0])
    bounds = {"zero": 0.0, "six": 6.0}
    assert close(behind(folded, ("Clip", "c zero six", "y"), **bounds).high, [6.0, 6.0])


def test_pools_keep_and_sums_add(folded: Folded) -> None:
    pooled = behind(folded, ("MaxPool", "c", "y", {"kernel_shape": [2, 2]}))
    assert close(pooled.mean, [0.5, -1.0]) and close(pooled.deviation, [1.0, 2.0])
    summed = behind(folded, ("Add", "c c", "y"))
    assert close(summed.mean, [1.0, -2.0]) and close(summed.deviation, [2**0.5, 8**0.5])
    assert close(summed.high, [1 + 6 * 2**0.5, -2 + 6 * 8**0.5])
    never_below = behind(folded, ("Relu", "c", "r"), ("Relu", "c", "q"), ("Add", "r q", "y"))
    assert close(never_below.low, [0.0, 0.0]), "two values of 0 and more"


def test_concat_joins_and_flatten_repeats(folded: Folded) -> None:
    joined = behind(folded, ("Relu", "c", "r"), ("Concat", "c r", "y", {"axis": 1}))
    assert close(joined.low, [-5.5, -13, 0, 0]) and close(joined.high, [6.5, 11, 6.5, 11])
    flat = behind(folded, ("MaxPool", "c", "p", {"kernel_shape": [4, 2]}), ("Flatten", "p", "y"))
    assert close(flat.mean, [0.5] * 3 + [-1.0] * 3)
    mixed = behind(folded, ("Transpose", "c", "y", {"perm": [0, 2, 1, 3]}))
    assert close(mixed.low, [-13.0]) and close(mixed.high, [11.0]) and close(mixed.mean, [-0.25])


@pytest.mark.parametrize("op", ["HardSwish", "Sigmoid", "LeakyRelu", "Tanh"])
def test_elementwise_functions_are_integrated(op: str, folded: Folded) -> None:
    m = behind(folded, (op, "c", "y"))
    drawn = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = drawn * torch.tensor([1.0, 2.0]) + torch.tensor([0.5, -1.0])
    functions: dict[str, Any] = {
        "HardSwish": torch.nn.functional.hardswish, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh,
        "LeakyRelu": lambda v: torch.nn.functional.leaky_relu(v, 0.01),
    }  # fmt: skip
    y = functions[op](x)
    assert torch.allclose(m.mean, y.mean(0), atol=6e-3) and torch.allclose(m.deviation, y.std(0), atol=6e-3)
    assert bool((m.low <= y.amin(0) + 1e-3).all() and (m.high >= y.amax(0) - 1e-3).all())


def test_a_layer_without_batch_norm_adds_up_its_inputs(folded: Folded) -> None:
    alike: dict[str, Any] = {key: [value] * 16 for key, value in dict(gamma=-1.0, beta=0.5, mean=0.0, var=1.0).items()}
    weight: dict[str, Any] = {
        "a": np.ones((16, 1, 1, 1)),
        "w": np.array([2.0, -1.0] * 8).reshape(1, 16, 1, 1),
        "b": [3.0],
    }
    m = behind(folded, ("Conv", "c w b", "y"), **alike, **weight)
    deviation = (8 * 4 + 8 * 1) ** 0.5
    assert close(m.mean, [8 * (2 * 0.5 - 0.5) + 3.0]) and close(m.deviation, [deviation])
    assert close(m.high, [7.0 + 12 * deviation], 1e-3), "its inputs are not independent: twice the deviations"
    # Two inputs cannot add up to more than twice what one can be.
    few = behind(folded, ("Conv", "c w", "y"), w=np.ones((1, 2, 1, 1)), gamma=[1.0, 1.0], beta=[0.0, 0.0])
    assert close(few.high, [12.0])


def test_without_batch_norm_there_are_intervals_that_nothing_leaves(folded: Folded) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((3, 1, 3, 3)),
        "b": rng.standard_normal((2, 3, 1, 1)),
        "c": rng.standard_normal(2),
    }
    nodes = [("Conv", "x a", "m", {"pads": [1, 1, 1, 1]}), ("Relu", "m", "r"), ("Conv", "r b c", "y")]
    state = folded(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, (1, 4, 4))
    m = moments_of(state, input_range=(-1.0, 2.0)).moments["y"]
    assert not m.normal
    y = float_program(state).module(3 * torch.rand(2000, 1, 4, 4) - 1)[0].double().amax((0, 2, 3))
    assert bool((y <= m.high).all()) and bool((m.high < 100).all())


def test_a_batch_norm_before_a_layer_tells_what_that_reads(folded: Folded) -> None:
    nodes = [
        ("Conv", "x a", "n"), ("Relu", "n", "r"), ("BatchNormalization", "r gamma beta mean var", "c"),
        ("Conv", "c w", "y"),
    ]  # fmt: skip
    state = folded(nodes, arrays(w=np.ones((1, 2, 1, 1)), mean=[1.0, 2.0], var=[4.0, 9.0]), (1, 4, 4))
    m = moments_of(state).moments["r"]
    assert m.normal and close(m.mean, [1.0, 2.0]) and close(m.deviation, [2.0, 3.0]) and close(m.low, [0.0, 0.0])


# Calibration by them.


def calibrated(
    folded: Folded, nodes: list[tuple[Any, ...]], constants: dict[str, np.ndarray], **settings: Any
) -> State:
    state = run_chain([Place()], folded(nodes, constants, (1, 4, 4)), None)
    return Calibrate(activations="batchnorm", **settings)(state)


CHAIN = [("Conv", "x a", "n"), BN, ("Relu", "c", "r"), ("Conv", "r w", "y")]


def test_ranges_come_from_the_statistics(folded: Folded) -> None:
    found = calibrated(folded, CHAIN, arrays(w=np.ones((1, 2, 1, 1)))).encodings
    assert float(found["x"].scale) == pytest.approx(6 / 255) and int(found["x"].zero_point) == 128
    assert float(found["r"].scale) == pytest.approx(11 / 255) and int(found["r"].zero_point) == 0
    narrow = calibrated(folded, CHAIN, arrays(w=np.ones((1, 2, 1, 1))), deviations=2.0, input_low=0.0, input_high=1.0)
    assert float(narrow.encodings["r"].scale) == pytest.approx(3 / 255)
    assert float(narrow.encodings["x"].scale) == pytest.approx(1 / 255)
    assert narrow.plan is not None
    assert all(spec.weight in narrow.encodings for spec in narrow.plan.sites.values() if isinstance(spec, Derived))


def test_sites_that_share_an_encoding_have_the_union(folded: Folded) -> None:
    nodes = [*CHAIN[:3], ("Concat", "c r", "y", {"axis": 1})]
    found = calibrated(folded, nodes, arrays()).encodings
    assert float(found["y"].scale) == pytest.approx(24 / 255)


def test_what_cannot_be_bounded_is_named(folded: Folded) -> None:
    nodes = [*CHAIN[:3], ("LRN", "r", "l", {"size": 3}), ("Conv", "l w", "y")]
    with pytest.raises(InputError, match=r"site 'l': its range cannot be told without data: .* known of what LRN"):
        calibrated(folded, nodes, arrays(w=np.ones((1, 2, 1, 1))))
    with pytest.raises(InputError, match=r"calibrate\.input_low: is 1\.0, and the high end 0\.0; expected the lower"):
        calibrated(folded, CHAIN, arrays(w=np.ones((1, 2, 1, 1))), input_low=1.0, input_high=0.0)
