from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.errors import InputError
from bitwright.ranges.histogram import Histogram, update_histogram


def stream(batches: list[Tensor], bins: int = 16, most_bins: int | None = None) -> Histogram:
    histogram = None
    for batch in batches:
        histogram = update_histogram(histogram, batch, bins=bins, most_bins=most_bins)
    assert histogram is not None
    return histogram


def by_definition(x: Tensor, width: float, k: int) -> list[int]:
    """Counts of j w < x <= (j + 1) w."""
    edges = torch.arange(k + 1) * width
    return [int(((x > edges[j]) & (x <= edges[j + 1])).sum()) for j in range(k)]


def test_bins_by_definition() -> None:
    x = torch.tensor([[-3.0, -2.5, -2.0, -0.1, 0.0, 0.0, 0.5, 1.0, 1.2, 4.0]])
    h = stream([x], bins=4)
    assert h.width.tolist() == [1.0]
    assert h.zeros.tolist() == [2]
    assert h.positive.tolist() == [by_definition(x, 1.0, 4)] == [[2, 1, 0, 1]]
    assert h.negative.tolist() == [by_definition(-x, 1.0, 3)] == [[1, 1, 2]]
    assert h.magnitude.tolist() == [[3, 2, 2, 1]]
    assert h.centres.tolist() == [[-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 3.5]]


def test_centres_stay_within_the_data() -> None:
    h = stream([torch.tensor([[1.0, -0.6, 4.0, 3.1]]), torch.tensor([[8.1]])], bins=4)
    assert h.centres.tolist()[0][0] == pytest.approx(-0.5)
    assert h.centres.tolist()[0][-1] == pytest.approx(8.1)  # the centre of 8 .. 9 lies beyond the data


def test_later_batches_append_bins_of_the_same_width() -> None:
    h = stream([torch.tensor([[1.0, 4.0]]), torch.tensor([[-5.5, 9.5]])], bins=4)
    assert h.width.tolist() == [1.0]
    assert h.positive.tolist() == [[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]]
    assert h.negative.tolist() == [[0, 0, 0, 0, 0, 1]]


def test_bins_merge_in_pairs_only_beyond_the_bound() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, -1.0, 0.0]])
    h = stream([x, torch.tensor([[-16.0]]), torch.tensor([[17.0]])], bins=4, most_bins=16)
    assert h.width.tolist() == [2.0]
    both = torch.cat([x, torch.tensor([[-16.0, 17.0]])], dim=1)
    assert h.positive[0, :9].tolist() == by_definition(both, 2.0, 9)
    assert h.negative[0, :8].tolist() == by_definition(-both, 2.0, 8)
    assert h.positive[0, 9:].sum() == h.negative[0, 8:].sum() == 0
    assert h.zeros.tolist() == [1]


def test_rows_have_their_own_width() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0], [-800.0, 100.0, 0.0]])
    h = stream([x], bins=4)
    assert h.width.tolist() == [0.0, 1.0, 200.0]
    later = update_histogram(h, torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]]), bins=4)
    assert later.width.tolist() == [0.75, 1.0, 200.0]  # the first row waited for its first value that is not zero
    assert later.zeros.tolist() == [4, 1, 2]
    assert later.counts.sum(1).tolist() == [5, 5, 5]


values = st.one_of(st.just(0.0), st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-10, 10, width=32))
batch = st.lists(values, min_size=6, max_size=6).map(lambda v: torch.tensor(v).reshape(2, 3))


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(batch, min_size=1, max_size=6))
def test_nothing_is_lost_and_the_memory_is_bounded(batches: list[Tensor]) -> None:
    h = stream(batches, bins=16, most_bins=32)
    together = torch.cat(batches, dim=1)
    assert h.counts.sum(1).tolist() == [together.shape[1]] * 2
    assert bool((h.counts >= 0).all())
    assert h.origin <= 33 and h.counts.shape[1] <= 67
    assert torch.equal(h.lo, together.amin(1)) and torch.equal(h.hi, together.amax(1))
    # A quotient that underflows counts as zero: never the other way round.
    assert bool((h.zeros >= (together == 0).sum(1)).all())
    for row in range(2):
        width = h.width[row].item()
        positive, negative = together[row][together[row] > 0], -together[row][together[row] < 0]
        for values_, counts in ((positive, h.positive), (negative, h.negative)):
            reach = torch.nonzero(counts[row]).flatten()
            if reach.numel():
                # One bin of slack: the edge is a rounded quotient.
                assert (int(reach[-1]) - 1) * width <= values_.max().item() <= (int(reach[-1]) + 2) * width


def test_chunks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 77, generator=torch.Generator().manual_seed(0))
    whole = stream([x])
    for chunk in (1, 10, 100, 200):
        monkeypatch.setattr("bitwright.ranges.histogram._CHUNK", chunk)
        assert torch.equal(stream([x]).counts, whole.counts)


def test_rows_must_match() -> None:
    h = stream([torch.ones(2, 3)])
    with pytest.raises(InputError, match="fc: 1 rows after 2 rows"):
        update_histogram(h, torch.ones(1, 3), bins=16, site="fc")
