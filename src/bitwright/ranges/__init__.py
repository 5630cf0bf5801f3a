"""Range estimators: from what a tensor holds to the range `[lo, hi]` that its codes cover.

Each is a frozen dataclass with `init() -> state`, `update(state, rows) -> state` and
`finish(state, grid, symmetric=...) -> (lo, hi)`; rows are `[rows, n]`, one row for each scale.
"""

from __future__ import annotations

from bitwright.lookup import Row

ESTIMATORS: dict[str, Row] = {
    "minmax": Row("bitwright.ranges.minmax:MinMax", "smallest and largest value seen"),
    "ema": Row("bitwright.ranges.ema:EMA", "moving average of the extremes of each batch"),
    "average": Row("bitwright.ranges.ema:AverageMinMax", "mean of the extremes of each batch"),
    "percentile": Row("bitwright.ranges.percentile:Percentile", "quantiles of the values seen, from a histogram"),
    "mse": Row("bitwright.ranges.mse:MSE", "range with the least mean |x - Q(x)|^p, by search"),
    "kl": Row(
        "bitwright.ranges.kl:KL", "threshold with the least KL divergence between histograms (8-bit activations)"
    ),
    "cosine": Row("bitwright.ranges.cosine:Cosine", "range with the greatest cosine between x and Q(x), by search"),
    "aciq": Row("bitwright.ranges.aciq:ACIQ", "optimal clipping of a Laplace or normal distribution, closed form"),
}
