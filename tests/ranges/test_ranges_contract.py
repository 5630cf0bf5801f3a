"""What holds for every row of ESTIMATORS."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import InputError
from bitwright.formats.affine import Affine
from bitwright.ranges import ESTIMATORS
from bitwright.ranges.cosine import Cosine
from bitwright.ranges.estimator import Estimator

GRID = Affine(bits=8, signed=False)
BINS = 2048  # of the default histogram


@pytest.fixture(params=sorted(ESTIMATORS))
def estimator(request: pytest.FixtureRequest) -> Estimator[Any]:
    return ESTIMATORS[request.param].load()()


def run(estimator: Estimator[Any], batches: list[Tensor], grid: Affine = GRID, symmetric: bool = False) -> Any:
    state = estimator.init()
    for batch in batches:
        state = estimator.update(state, batch)
    return estimator.finish(state, grid, symmetric=symmetric)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state_size(value: Any) -> int:
    """Numbers held in tensors, however deep."""
    if isinstance(value, Tensor):
        return value.numel()
    if dataclasses.is_dataclass(value):
        return sum(state_size(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, (tuple, list)):
        return sum(state_size(v) for v in value)
    return 0


def test_is_a_frozen_value_with_defaults(estimator: Estimator[Any]) -> None:
    assert estimator == type(estimator)()
    assert isinstance(estimator.extremes_only, bool)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "grid", [GRID, Affine(bits=4, signed=True, narrow=True), Affine(bits=2, signed=False)], ids=str
)
@pytest.mark.parametrize("rows", [1, 3])
def test_gives_a_range_around_zero_within_the_data(
    estimator: Estimator[Any], grid: Affine, symmetric: bool, rows: int
) -> None:
    data = noise(rows, 5000) + 0.5
    lo, hi = run(estimator, [data], grid, symmetric)
    assert lo.shape == hi.shape == (rows,)
    assert lo.dtype == hi.dtype == torch.float32
    assert bool((lo < 0).all() and (hi > 0).all())
    if symmetric:
        assert torch.equal(lo, -hi)
    amax = data.abs().amax(1)
    # Within the data, but for the cosine, whose published bracket reaches to twice the data.
    reach = amax * (2 if isinstance(estimator, Cosine) else 1) * 1.0001
    assert bool((hi <= reach).all() and (-lo <= reach).all())
    assert bool((hi >= amax * 0.05).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sided_data_keep_their_zero_end(estimator: Estimator[Any], sign: float) -> None:
    for data in (noise(2, 3000).relu(), noise(2, 3000).abs() + 0.3):
        lo, hi = run(estimator, [sign * data])
        near, far = (lo, hi) if sign > 0 else (hi, lo)
        assert torch.equal(near, torch.zeros(2))
        assert bool((far * sign > 0.5).all())


def test_mirrored_data_give_the_mirrored_range(estimator: Estimator[Any]) -> None:
    data = noise(2, 4000) ** 3 + 0.2
    lo, hi = run(estimator, [data])
    mirrored_lo, mirrored_hi = run(estimator, [-data])
    step = (hi - lo) / 255
    assert bool(((lo + mirrored_hi).abs() <= step).all() and ((hi + mirrored_lo).abs() <= step).all())


@pytest.mark.parametrize("factor", [1e-3, 4.0, 1e5])
def test_the_range_scales_with_the_data(estimator: Estimator[Any], factor: float) -> None:
    data = noise(1, 4000)
    lo, hi = run(estimator, [data])
    scaled_lo, scaled_hi = run(estimator, [data * factor])
    step = (hi - lo) / 255
    assert bool(((scaled_lo / factor - lo).abs() <= step).all() and ((scaled_hi / factor - hi).abs() <= step).all())


def test_rows_do_not_see_each_other(estimator: Estimator[Any]) -> None:
    data = noise(3, 2000) * torch.tensor([[1.0], [100.0], [0.01]])
    lo, hi = run(estimator, [data])
    for i in range(3):
        alone_lo, alone_hi = run(estimator, [data[i : i + 1]])
        assert (lo[i].item(), hi[i].item()) == (alone_lo.item(), alone_hi.item())


def test_all_zeros_are_a_range_of_zero(estimator: Estimator[Any]) -> None:
    lo, hi = run(estimator, [torch.zeros(2, 100)])
    assert torch.equal(lo, torch.zeros(2)) and torch.equal(hi, torch.zeros(2))


def test_same_data_same_range(estimator: Estimator[Any]) -> None:
    batches = [noise(2, 700, seed=i) for i in range(3)]
    first, second = run(estimator, batches), run(estimator, batches)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_update_returns_a_new_state_and_leaves_data_and_old_state_alone(estimator: Estimator[Any]) -> None:
    batch = noise(2, 500)
    kept = batch.clone()
    before = estimator.update(estimator.init(), batch)
    expected = estimator.finish(before, GRID, symmetric=False)
    estimator.update(before, 10 * noise(2, 500, seed=1))
    assert torch.equal(batch, kept)
    batch.zero_()  # the state must not look into the caller's buffer
    again = estimator.finish(before, GRID, symmetric=False)
    assert torch.equal(expected[0], again[0]) and torch.equal(expected[1], again[1])


def test_extremes_stand_for_the_data_where_the_estimator_says_so(estimator: Estimator[Any]) -> None:
    batches = [noise(2, 30_000, seed=i) ** 3 for i in range(2)]
    extremes = [torch.stack(torch.aminmax(b, dim=1), dim=1) for b in batches]
    for symmetric in (False, True):
        full, short = run(estimator, batches, symmetric=symmetric), run(estimator, extremes, symmetric=symmetric)
        same = torch.equal(full[0], short[0]) and torch.equal(full[1], short[1])
        assert same == estimator.extremes_only


def test_more_batches_do_not_grow_the_state(estimator: Estimator[Any]) -> None:
    state = estimator.init()
    sizes = []
    for i in range(40):
        state = estimator.update(state, noise(2, 4000, seed=i % 10))
        sizes.append(state_size(state))
    assert sizes[-1] == sizes[20]


def test_ever_wider_batches_do_not_grow_the_state_beyond_a_bound(estimator: Estimator[Any]) -> None:
    state = estimator.init()
    for i in range(25):
        state = estimator.update(state, noise(1, 4000, seed=i) * 4.0**i)
    assert state_size(state) <= 2 * 8 * BINS + 70_000
    lo, hi = estimator.finish(state, GRID, symmetric=False)
    assert bool(torch.isfinite(lo).all() and torch.isfinite(hi).all())


def test_no_data_is_an_error(estimator: Estimator[Any]) -> None:
    with pytest.raises(InputError, match=r"conv1: no data was seen; expected an update before finish"):
        estimator.finish(estimator.init(), GRID, symmetric=False, site="conv1")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("updates", [0, 1])
def test_nan_and_infinity_are_errors(estimator: Estimator[Any], bad: float, updates: int) -> None:
    state = estimator.init()
    for _ in range(updates):
        state = estimator.update(state, noise(2, 10))
    data = noise(2, 10)
    data[1, 3] = bad
    with pytest.raises(InputError, match="conv1: NaN or infinity in the data; expected finite values"):
        estimator.update(state, data, site="conv1")


def test_a_changed_number_of_rows_is_an_error(estimator: Estimator[Any]) -> None:
    state = estimator.update(estimator.init(), noise(2, 10))
    with pytest.raises(InputError, match="conv1: 3 rows after 2 rows; expected the same number of rows"):
        estimator.update(state, noise(3, 10), site="conv1")


@pytest.mark.parametrize("shape", [(4,), (2, 0), (1, 2, 3)])
def test_a_wrong_shape_is_an_error(estimator: Estimator[Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"tensor: data of shape \[.*\]; expected \[rows, n\]"):
        estimator.update(estimator.init(), torch.zeros(shape))
