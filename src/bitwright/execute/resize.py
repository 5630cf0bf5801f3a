"""Resize and GridSample.

A resize is separable: each axis is a matrix `[out, in]` whose rows hold the weights of the taps. torch's own
interpolation is used where it computes the same positions.

Lingo: the *coordinate* of an output element is its place on the input's axis; *taps* are the elements it mixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitwright.errors import InputError
from bitwright.execute.attributes import Ints, axes_of, ints, unsupported

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
# The runtime takes coordinates within 1e-6 of a half for halves.
_NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda coordinate: torch.ceil(coordinate - (0.5 + 1e-6)),
    "round_prefer_ceil": lambda coordinate: torch.floor(coordinate + (0.5 + 1e-6)),
    "floor": torch.floor,
    "ceil": torch.ceil,
}
_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One axis to resize: its sizes, the scale as given, and the region of interest as fractions."""

    dim: int
    size: int
    out: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """How the taps of an output element are found and weighted."""

    mode: str
    nearest_mode: str
    cubic_coeff_a: float
    antialias: bool
    exclude_outside: bool


def resize(
    x: Tensor,
    roi: Tensor | Sequence[float] | None = None,
    scales: Tensor | Sequence[float] | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """`x` sampled at another resolution along `axes` (all of them without it).

    Args:
        x: any shape and number of axes.
        roi: begins and ends of the region as fractions of the axes, for `tf_crop_and_resize`.
        scales: factor of each axis, `out = floor(in * scale)`.
        sizes: sizes of the result, where there are no scales.

    Raises:
        UnsupportedError: one of the modes is unknown.
        InputError: neither scales nor sizes are given.

    Example:
        >>> resize(torch.tensor([[[1.0, 3.0]]]), None, [1.0, 1.0, 2.0], mode="linear").tolist()
        [[[1.0, 1.5, 2.5, 3.0]]]
    """
    for name, value, known in (
        ("mode", mode, ("nearest", "linear", "cubic")),
        ("coordinate_transformation_mode", coordinate_transformation_mode, _COORDINATES),
        ("nearest_mode", nearest_mode, tuple(_NEAREST)),
        ("keep_aspect_ratio_policy", keep_aspect_ratio_policy, ("stretch", "not_larger", "not_smaller")),
    ):
        if value not in known:
            raise unsupported("Resize", name, value, ", ".join(known))
    dims = list(range(x.ndim)) if axes is None else axes_of("Resize", axes, x.ndim)
    plan = _axes(x, dims, roi, scales, sizes, keep_aspect_ratio_policy)
    kernel = _Kernel(
        mode=mode,
        nearest_mode=nearest_mode,
        cubic_coeff_a=cubic_coeff_a,
        antialias=bool(antialias),
        exclude_outside=bool(exclude_outside),
    )
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    plan = [axis for axis in plan if crop or axis.scale != 1 or axis.out != axis.size]
    fast = _by_torch(x, plan, kernel, coordinate_transformation_mode)
    if fast is not None:
        return fast
    y = x
    for axis in plan:
        coordinate = _coordinates(axis, coordinate_transformation_mode, x.device)
        y = _along(y, axis, coordinate, kernel)
    if crop:
        for axis in plan:
            coordinate = _coordinates(axis, coordinate_transformation_mode, x.device)
            outside = (coordinate < 0) | (coordinate > axis.size - 1)
            shape = [1] * x.ndim
            shape[axis.dim] = -1
            y = torch.where(outside.reshape(shape), torch.full_like(y, extrapolation_value), y)
    return y.to(x.dtype)


def _axes(
    x: Tensor,
    dims: list[int],
    roi: Tensor | Sequence[float] | None,
    scales: Tensor | Sequence[float] | None,
    sizes: Ints | None,
    policy: str,
) -> list[_Axis]:
    factors = [] if scales is None else [float(s) for s in (scales.tolist() if isinstance(scales, Tensor) else scales)]
    wanted = [] if sizes is None else ints(sizes)
    if len(factors or wanted) != len(dims):
        raise InputError(
            "Resize",
            f"has {len(factors)} scales and {len(wanted)} sizes for {len(dims)} axes",
            "one of each axis, of the one or the other",
            "check the model",
        )
    lengths = [x.shape[dim] for dim in dims]
    if factors:
        # the standard multiplies in float32, where 3 * 1.6666666 is 5
        products = torch.tensor(lengths, dtype=torch.float32) * torch.tensor(factors, dtype=torch.float32)
        wanted = [int(product) for product in products.floor().tolist()]
    else:
        factors = [out / length if length else 1.0 for out, length in zip(wanted, lengths, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            wanted = [math.floor(factor * length + 0.5) for length in lengths]
            factors = [factor] * len(dims)
    region = [] if roi is None else [float(r) for r in (roi.tolist() if isinstance(roi, Tensor) else roi)]
    n = len(dims)
    return [
        _Axis(
            dim=dims[i],
            size=lengths[i],
            out=wanted[i],
            scale=factors[i],
            roi=(region[i], region[n + i]) if len(region) == 2 * n else (0.0, 1.0),
        )
        for i in range(n)
    ]


def _by_torch(x: Tensor, plan: list[_Axis], kernel: _Kernel, coordinates: str) -> Tensor | None:
    """torch's own interpolation where it is the same function, else None."""
    ndim, spatial = x.ndim, {axis.dim for axis in plan}
    exact = all(axis.out == axis.size * axis.scale for axis in plan)
    usual = 3 <= ndim <= 5 and not spatial & {0, 1} and x.is_floating_point() and not kernel.antialias
    if not plan or not exact or not usual:
        return None
    size = list(x.shape[2:])
    for axis in plan:
        size[axis.dim - 2] = axis.out
    if kernel.mode == "nearest":
        # for whole factors these two pick floor(i / factor), as torch does
        whole = all(axis.scale == int(axis.scale) for axis in plan)
        pair = (coordinates, kernel.nearest_mode)
        same = whole and pair in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
        return F.interpolate(x, size, mode="nearest") if same else None
    half = coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and all(axis.out > 1 for axis in plan))
    if not half and coordinates != "align_corners":
        return None
    if kernel.mode == "linear":
        return F.interpolate(x, size, mode=_TORCH_LINEAR[ndim], align_corners=not half)
    if ndim == 4 and kernel.cubic_coeff_a == -0.75 and not kernel.exclude_outside:
        return F.interpolate(x, size, mode="bicubic", align_corners=not half)
    return None


def _coordinates(axis: _Axis, mode: str, device: torch.device) -> Tensor:
    """Where the output elements lie on the input's axis: `[out]`.

    In the runtime's precision and order of operations: ties of nearest are decided by the last bit.
    """
    i = torch.arange(axis.out, dtype=torch.float32, device=device)
    scale = torch.tensor(axis.scale, dtype=torch.float32, device=device)
    last = axis.size - 1
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * last / (axis.out - 1) if axis.out > 1 else i * 0
    if mode == "tf_crop_and_resize":
        begin, end = torch.tensor(axis.roi, dtype=torch.float32, device=device)
        if axis.out > 1:
            return begin * last + i * (end - begin) * last / (axis.out - 1)
        return i * 0 + 0.5 * (begin + end) * last
    if mode == "pytorch_half_pixel" and axis.out == 1:
        return i * 0
    if mode == "half_pixel_symmetric":
        # torch.div, since a Python number over a tensor goes through a rounded reciprocal
        offset = axis.size / 2 * (1 - torch.div(torch.full_like(scale, axis.out), scale * axis.size))
        return (offset.double() + (i.double() + 0.5) / scale.double() - 0.5).float()
    return (i + 0.5) / scale - 0.5


def _along(x: Tensor, axis: _Axis, coordinate: Tensor, kernel: _Kernel) -> Tensor:
    """`x` resampled along one axis."""
    if kernel.mode == "nearest":
        rounded = _NEAREST[kernel.nearest_mode](coordinate.double())
        return x.index_select(axis.dim, rounded.long().clamp(0, axis.size - 1))
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    matrix = _matrix(axis, coordinate.double(), kernel).to(dtype)
    return (x.to(dtype).movedim(axis.dim, -1) @ matrix.t()).movedim(-1, axis.dim)


def _matrix(axis: _Axis, coordinate: Tensor, kernel: _Kernel) -> Tensor:
    """The weights `[out, in]` of linear and cubic interpolation, each row summing to 1."""
    stretch = min(axis.scale, 1.0) if kernel.antialias else 1.0
    reach = 1 if kernel.mode == "linear" else 2
    first = math.floor(-reach / stretch) + 1
    base = torch.floor(coordinate)
    offset = torch.arange(first, 2 - first, device=coordinate.device, dtype=coordinate.dtype)
    distance = (((base - coordinate)[:, None] + offset) * stretch).abs()
    if kernel.mode == "linear":
        weight = (1 - distance).clamp(min=0)
    else:
        a = kernel.cubic_coeff_a
        near = ((a + 2) * distance - (a + 3)) * distance.square() + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        weight = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    taps = (base[:, None] + offset).long()
    if kernel.exclude_outside:
        weight = weight * ((taps >= 0) & (taps < axis.size))
    weight = weight / weight.sum(1, keepdim=True)
    matrix = torch.zeros(axis.out, axis.size, dtype=weight.dtype, device=weight.device)
    return matrix.scatter_add(1, taps.clamp(0, axis.size - 1), weight)


def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """`x` sampled at the places `grid`, which are -1 to 1 across each spatial axis, the last axis first.

    Args:
        x: `[batch, channels, *spatial]`, 2 or 3 spatial dimensions (cubic: 2).
        grid: `[batch, *out, rank]`.

    Raises:
        UnsupportedError: a mode or number of dimensions is unknown.
    """
    modes = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    if mode not in modes:
        raise unsupported("GridSample", "mode", mode, "linear, nearest or cubic")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise unsupported("GridSample", "padding_mode", padding_mode, "zeros, border or reflection")
    if x.ndim != 4 and not (x.ndim == 5 and mode != "cubic"):
        raise unsupported("GridSample", f"number of dimensions for mode {mode}", x.ndim, "4, or 5 unless cubic")
    return F.grid_sample(x, grid, modes[mode], padding_mode, bool(align_corners))
