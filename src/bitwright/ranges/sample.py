"""What the searching estimators keep of the data: the values while they are few, a histogram afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.ranges.estimator import no_data, row_extremes
from bitwright.ranges.histogram import Histogram, update_histogram


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Raw values `[rows, n]`, or a histogram; both None before the first update."""

    values: Tensor | None = None
    histogram: Histogram | None = None

    def points(self, site: str) -> tuple[Tensor, Tensor | None]:
        """Values `[rows, n]` and how often each occurs, `[rows, n]` float32; None where each occurs once."""
        if self.values is not None:
            return self.values, None
        if self.histogram is not None:
            return self.histogram.centres, self.histogram.counts.float()
        raise no_data(site)


def update_sample(sample: Sample, rows: Tensor, *, exact_limit: int, bins: int, site: str) -> Sample:
    """The sample after `rows`, `[rows, n]`, have been seen too.

    Args:
        sample: what was seen so far.
        rows: the new values.
        exact_limit: how many values of a row are kept as they are.
        bins: bins of the histogram over the largest magnitude of the first values.
        site: name of the tensor, for errors.

    Raises:
        InputError: as `row_extremes`.

    Example:
        >>> few = update_sample(Sample(), torch.ones(1, 3), exact_limit=4, bins=16, site="w")
        >>> many = update_sample(few, torch.ones(1, 3), exact_limit=4, bins=16, site="w")
        >>> few.histogram is None, many.values is None
        (True, True)
    """
    if sample.histogram is not None:
        return Sample(histogram=update_histogram(sample.histogram, rows, bins=bins, site=site))
    held = sample.values
    row_extremes(rows, None if held is None else held[:, 0], site)
    rows = rows.detach().float()
    if rows.shape[1] + (0 if held is None else held.shape[1]) <= exact_limit:
        # A copy: the caller may reuse the memory of a batch.
        return Sample(values=rows.clone() if held is None else torch.cat([held, rows], dim=1))
    histogram = None if held is None else update_histogram(None, held, bins=bins, site=site)
    return Sample(histogram=update_histogram(histogram, rows, bins=bins, site=site))
