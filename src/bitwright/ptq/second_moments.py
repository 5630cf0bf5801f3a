"""Second moments of what layers read, `E[x x^T]`, of all of them in one pass over the images.

A convolution is a product of its weight, made flat, with the values under each window (`execute/patches.py`); a
grouped one has a matrix of moments for each group, a depthwise one a small matrix for each channel. Layers that read
the same value through the same window share their moments.

Products are added in float32. A row of more than `MOST_COLUMNS` values is cut into parts, and correlations between
parts are left out; so no matrix is larger than a quarter of a gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.errors import UnsupportedError
from bitwright.execute.nodes import attributes_of
from bitwright.execute.patches import output_positions, patches
from bitwright.execute.window import Window, resolve_window
from bitwright.graph.macs import rows_per_image
from bitwright.graph.regions import Region

#: Columns of a part of a layer at most.
MOST_COLUMNS = 8192
#: Rows are multiplied so many bytes at a time.
CHUNK_BYTES = 32 * 2**20
#: Columns of a block of the product; blocks below the diagonal are left out.
BLOCK = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A layer as a product of matrices, `y [rows, O] = x [rows, D] W^T`, in `groups` groups.

    Attributes:
        region: its name.
        weight: name of its weight.
        site: what it reads.
        op: the node.
        groups: of its channels.
        transposed: its weight is `[D, O]`.
    """

    region: str
    weight: str
    site: str
    op: ir.Node
    groups: int = 1
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        value = self.op.inputs[1]
        assert value is not None and value.shape is not None
        return tuple(value.shape.numpy())

    @property
    def columns(self) -> int:
        """Inputs of one output, D."""
        return self.shape[0] if self.transposed else torch.Size(self.shape[1:]).numel()

    @property
    def parts(self) -> list[slice]:
        """Its columns, cut into parts."""
        return [slice(i, min(i + MOST_COLUMNS, self.columns)) for i in range(0, self.columns, MOST_COLUMNS)]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for layers that read the same rows."""
        kernel = () if self.op.op_type == "Gemm" else self.shape[1:]
        settings = {} if self.op.op_type == "Gemm" else attributes_of(self.op)
        told = tuple((k, tuple(v) if isinstance(v, list | tuple) else v) for k, v in sorted(settings.items()))
        return self.site, self.op.op_type, kernel, told

    @property
    def moment_bytes(self) -> int:
        """Size of its moments."""
        return 4 * self.groups * sum((p.stop - p.start) ** 2 for p in self.parts)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as `[groups, O / groups, D]`."""
        rows = weight.t() if self.transposed else weight.flatten(1)
        return rows.reshape(self.groups, -1, rows.shape[1])

    def tensor(self, matrix: Tensor) -> Tensor:
        """`matrix` undone."""
        rows = matrix.reshape(-1, matrix.shape[2])
        return rows.t().contiguous() if self.transposed else rows.reshape(self.shape)

    def rows(self, x: Tensor, most: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows `[rows, groups, D]` of what the layer reads, a bounded number at a time.

        Args:
            x: its input.
            most: rows of an image at most, drawn anew at each call, the same for all its images.
            generator: of the draw.
        """
        each = x.reshape(-1, self._rows_per_image(x), x.shape[1]) if self.op.op_type == "Gemm" else x
        window = None if self.op.op_type == "Gemm" else self._window(x)
        positions = each.shape[1] if window is None else output_positions(x, window)
        chosen = None if positions <= most else torch.randperm(positions, generator=generator)[:most].sort().values
        images = max(1, CHUNK_BYTES // (4 * min(positions, most) * self.columns * self.groups))
        for some in each.split(images):
            if window is None:
                found = some if chosen is None else some[:, chosen]
            else:
                found = patches(some, window, chosen)
            yield found.reshape(-1, self.groups, self.columns).float()

    def _rows_per_image(self, x: Tensor) -> int:
        value = self.op.inputs[0]
        assert value is not None and value.shape is not None
        rows = rows_per_image(self.op, value.shape)
        return rows if x.shape[0] % rows == 0 else 1

    def _window(self, x: Tensor) -> Window:
        attributes = attributes_of(self.op)
        return resolve_window(
            "Conv", x.shape[2:], self.shape[2:], strides=attributes.get("strides"),
            dilations=attributes.get("dilations"), pads=attributes.get("pads"),
            auto_pad=attributes.get("auto_pad", "NOTSET"),
        )  # fmt: skip


def layer_of(region: Region) -> Layer:
    """The layer of a region with a weight.

    Raises:
        UnsupportedError: it is no convolution and no linear layer.
    """
    assert region.weight is not None
    op, weight = region.op, region.weight.name or ""
    attributes = op.attributes
    known = op.op_type == "Conv" or (op.op_type == "Gemm" and not attributes.get_int("transA", 0))
    if not known:
        raise UnsupportedError(
            f"weight {weight!r}", f"of {op.op_type} in region {region.name}", "of a convolution or a linear layer",
            "leave it at more bits than gptq rounds (gptq.most_bits)",
        )  # fmt: skip
    site = op.inputs[0]
    assert site is not None
    return Layer(
        region=region.name, weight=weight, site=site.name or "", op=op,
        groups=attributes.get_int("group", 1) if op.op_type == "Conv" else 1,
        transposed=op.op_type == "Gemm" and not attributes.get_int("transB", 0),
    )  # fmt: skip


@dataclass(kw_only=True, eq=False)
class Moments:
    """Running sums of `x^T x`, or of `x^T y` of two values a layer reads.

    Attributes:
        layer: whose input it is.
        sums: one `[groups, d, d]` for each part of the columns; of `x^T x` only the upper part is filled.
        rows: how many there were.
    """

    layer: Layer
    sums: list[Tensor] = field(default_factory=list)
    rows: int = 0

    def __post_init__(self) -> None:
        sizes = [p.stop - p.start for p in self.layer.parts]
        self.sums = [torch.zeros(self.layer.groups, n, n) for n in sizes]

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add the products of rows `[rows, groups, D]`."""
        self.rows += len(x)
        for part, total in zip(self.layer.parts, self.sums, strict=True):
            add_products(total, x[..., part], None if y is None else y[..., part])

    def mean(self, symmetric: bool = True) -> list[Tensor]:
        """`E[x x^T]` of each part; the sums are used up."""
        found = []
        while self.sums:
            total = self.sums.pop(0).div_(max(self.rows, 1))
            found.append(total.triu_().add_(total.triu(1).mT) if symmetric else total)
        return found


def add_products(total: Tensor, x: Tensor, y: Tensor | None = None) -> None:
    """Add `x^T y` of each group to `total [groups, d, d]`; where y is None, the upper part of `x^T x`.

    Args:
        total: changed in place.
        x, y: rows `[rows, groups, d]`.

    Example:
        >>> total = torch.zeros(1, 2, 2)
        >>> add_products(total, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        >>> total.triu().tolist()
        [[[10.0, 14.0], [0.0, 20.0]]]
    """
    columns = x.shape[2]
    if x.shape[1] > 1:
        left = x.permute(1, 2, 0)
        total.baddbmm_(left, (x if y is None else y).transpose(0, 1))
        return
    left, right = x[:, 0], (x if y is None else y)[:, 0]
    for i in range(0, columns, BLOCK):
        j = i if y is None else 0
        total[0, i : i + BLOCK, j:].addmm_(left[:, i : i + BLOCK].t(), right[:, j:])
