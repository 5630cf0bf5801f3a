"""Closed-form rounding: each weight in turn, the error of every rounding taken up by the weights that follow.

For a layer `y = W x` and `H = 2 E[x x^T]` the error of a rounding is `tr((W~ - W) H (W~ - W)^T) / 2`. Columns are
rounded in order; the error of one is made up for by those not yet rounded, in the way that makes the error smallest if
they were real numbers. With `H + lambda I = (I + F) D (I + F)^T`, F strictly upper triangular,

    q_k = Q(w_k + sum_{i<k} (w_i - q_i) F_ik)

which is what subtracting `(w_i - q_i) / U_ii U_ij`, U the upper Cholesky factor of the inverse of `H + lambda I`, from
the columns behind gives (`F_ij = -U_ij / U_ii`), without an inverse. Scales and zero points stay as calibration found
them. An output channel that this leaves worse than rounding to nearest is rounded to nearest.

Choices made where the paper is silent: weights that are zero stay zero, which are pruned ones and the taps that a
transposed convolution does not have; columns whose input is always zero are rounded to nearest, since the images say
nothing of them (the reference code sets them to zero).

With `inputs="quantized"` the layer reads `x^`, what the quantized layers before it give, and `||W x - W~ x^||^2` is
made small: its minimum over real numbers is `W C H^-1`, `C = E[x x^^T]`, `H = E[x^ x^^T]`, and this is rounded.

Source: Frantar, Ashkboos, Hoefler and Alistarh, GPTQ, ICLR 2023, algorithm 1; Frantar, Singh and Alistarh, Optimal
Brain Compression, NeurIPS 2022 (H of a convolution); Chee et al., QuIP, NeurIPS 2023, theorem 6 (the form with F).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.formats.affine import dequantize, quantize
from bitwright.graph.regions import find_regions
from bitwright.pipeline import Event, Progress, State
from bitwright.plan.encoding import Encoding
from bitwright.ptq.prefix import images_that_fit, quantized_prefix
from bitwright.ptq.reading import in_passes, watch_inputs
from bitwright.ptq.second_moments import Layer, Moments, layer_of

#: Columns in whose midst errors are carried on one by one; all errors before them are added at once. The paper has
#: 128; the result is the same, and here fewer are faster.
BLOCK = 32
#: What a layer may read while it is rounded.
INPUTS = ("float", "quantized")
#: `[..., groups, rows]` of real values to their codes and the values that these stand for.
Rounding = Callable[[Tensor], tuple[Tensor, Tensor]]


def damped(moments: Tensor, damping: float) -> Tensor:
    """`H + lambda I` in float64, lambda that part of the mean of the diagonal; of an input that is always zero, I.

    Args:
        moments: `[groups, d, d]`.
        damping: part of the mean.

    Example:
        >>> damped(torch.tensor([[[2.0, 1.0], [1.0, 4.0]]]), 0.01).diagonal(dim1=1, dim2=2).tolist()
        [[2.03, 4.03]]
    """
    found = moments.double()
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    diagonal += damping * diagonal.mean(dim=-1, keepdim=True)
    diagonal[dead] = 1.0
    return found


def feedback(moments: Tensor, where: str = "weight") -> Tensor:
    """F of `H = (I + F) D (I + F)^T`, `[groups, d, d]`, float32, strictly upper triangular.

    Args:
        moments: H, damped, float64.
        where: for errors.

    Raises:
        InputError: H is not positive definite.

    Example:
        >>> feedback(torch.tensor([[[4.04, 2.0], [2.0, 4.04]]], dtype=torch.float64))[0, 0].tolist()
        [0.0, 0.49504950642585754]
    """
    # H = R R^T with R upper triangular: the lower Cholesky factor of H with rows and columns in reverse.
    factor, failed = torch.linalg.cholesky_ex(moments.flip(-2, -1))
    if bool(failed.any()):
        raise InputError(
            where, "second moments of its input that have no Cholesky factor", "a positive definite matrix",
            "raise gptq.damping, or give more images",
        )  # fmt: skip
    upper = factor.flip(-2, -1)
    return (upper / upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).triu_(1).float()


def round_columns(weight: Tensor, back: Tensor, rounding: Rounding, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Round a matrix column after column, and carry the errors on.

    Args:
        weight: `[groups, rows, d]`; what is exactly zero is rounded as zero.
        back: F, `[groups, d, d]`.
        rounding: `[groups, rows]` to codes and their values.
        block: columns to which the errors of all those before are carried at once.

    Returns:
        Codes (int32) and their values, `[groups, rows, d]`.

    Example:
        >>> half = torch.tensor([[[0.0, 0.495], [0.0, 0.0]]])
        >>> to_quarters = lambda w: (torch.round(w / 0.25).int(), torch.round(w / 0.25) * 0.25)
        >>> round_columns(torch.tensor([[[0.4, 0.39]]]), half, to_quarters)[1].tolist()
        [[[0.5, 0.25]]]
    """
    columns = weight.permute(2, 0, 1).contiguous()  # one column after the other in memory
    zero = columns == 0
    codes = torch.empty(columns.shape, dtype=torch.int32)
    values, errors = torch.empty_like(columns), torch.zeros_like(columns)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        moved = columns[start:stop].clone()
        if start:
            # [groups, block, done] x [groups, done, rows]
            carried = torch.bmm(back[:, :start, start:stop].mT, errors[:start].transpose(0, 1))
            moved += carried.transpose(0, 1)
        for k in range(start, stop):
            column = moved[k - start].masked_fill_(zero[k], 0.0)
            codes[k], values[k] = rounding(column)
            error = errors[k] = columns[k] - values[k]
            moved[k - start + 1 :].addcmul_(back[:, k, k + 1 : stop].t().unsqueeze(-1), error)
    return codes.permute(1, 2, 0), values.permute(1, 2, 0)


def rounding_of(encoding: Encoding, groups: int) -> Rounding:
    """Rounding to nearest of one column, each output channel on its own grid or table."""
    spec = encoding.spec if encoding.spec.axis is None else dataclasses.replace(encoding.spec, axis=0)
    column = dataclasses.replace(encoding, spec=spec, codes=None)
    scale, zero_point = encoding.scale, encoding.zero_point
    if spec.axis is not None:
        scale, zero_point = scale.reshape(groups, -1), zero_point.reshape(groups, -1)

    def affine(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = quantize(x, scale, zero_point, spec.grid)
        return codes, dequantize(codes, scale, zero_point)

    def levels(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = column.quantize(x.reshape(-1))
        return codes.reshape(groups, -1), column.dequantize(codes).reshape(groups, -1)

    return affine if encoding.levels is None else levels


def row_errors(difference: Tensor, moments: Tensor) -> Tensor:
    """`diag(E H E^T)`, `[groups, rows]`: mean squared error of each output.

    Example:
        >>> round(row_errors(torch.tensor([[[0.1, -0.14]]]), torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])).item(), 4)
        0.0312
    """
    return (torch.bmm(difference, moments) * difference).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """Round the weights of few bits so that each layer's output changes least.

    Args:
        most_bits: weights of more bits are rounded to nearest.
        images: as many calibration images at most.
        rows: of each image a layer's second moments use so many rows (output positions, tokens) at most.
        damping: part of the mean of H's diagonal that is added to the diagonal.
        act_order: round the columns with the largest inputs first.
        inputs: float: as in the float network; quantized: what the quantized layers before give.
        correct_inputs: with quantized inputs, aim at the output of the float network (`W C H^-1`); else at that of the
            layer's own float weight.
        seed: of the choice of images and rows.
    """

    most_bits: int = 4
    images: int = 256
    rows: int = 32
    damping: float = 0.01
    act_order: bool = True
    inputs: str = "float"
    correct_inputs: bool = True
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"plan", "encodings"})
    gives: ClassVar[frozenset[str]] = frozenset({"rounded weights"})
    clashes: ClassVar[frozenset[str]] = frozenset({"corrected biases"})
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
        if self.inputs not in INPUTS:
            raise InputError("gptq.inputs", f"is {self.inputs!r}", " or ".join(INPUTS))
        if self.damping < 0:
            raise InputError("gptq.damping", f"is {self.damping}", "0 or more; the paper's is 0.01")
        for name in ("images", "rows", "most_bits"):
            if getattr(self, name) < 1:
                raise InputError(f"gptq.{name}", f"is {getattr(self, name)}", "1 or more")

    def __call__(self, state: State, batches: Batches | None = None, images_done: Progress | None = None) -> State:
        """A state whose encodings hold the chosen codes; its log says how much smaller the error of each layer is.

        Raises:
            InputError: no data.
            UnsupportedError: a weight of neither a convolution nor a linear layer.
        """
        layers = self.layers(state)
        if not layers:
            return state.but()
        if batches is None:
            raise InputError("gptq", "no data", "images to know what layers read", "give --data")
        most = min(self.images, images_that_fit(state)) if self.inputs == "quantized" else self.images
        images = batches.limited(most, self.seed) if len(batches) > most else batches
        encodings = dict(state.encodings)
        told: dict[str, Any] = {"images": len(images), "layer errors": {}}
        walk = self._quantized(state, layers, images, encodings) if self.inputs == "quantized" else self._float(
            state, layers, images, told
        )  # fmt: skip
        for layer, moments, crossed in walk:
            codes, errors = self.round(state, layer, moments, crossed)
            encodings[layer.weight] = dataclasses.replace(encodings[layer.weight], codes=codes)
            told["layer errors"][layer.weight] = errors
        event = Event(step="gptq", seconds=0.0, facts=told)
        return state.but(encodings=encodings, log=(*state.log, event))

    def layers(self, state: State) -> list[Layer]:
        """The layers whose weights are rounded."""
        if state.plan is None:
            raise InputError("gptq", "the network has no plan", fix="run the steps 'place' and 'calibrate' before it")
        found = []
        for region in find_regions(state.model):
            spec = None if region.weight is None else state.plan.qspec(region.weight.name or "")
            if spec is not None and spec.bits <= self.most_bits:
                found.append(layer_of(region))
        return found

    def round(
        self, state: State, layer: Layer, moments: list[Tensor], crossed: list[Tensor] | None = None
    ) -> tuple[Tensor, tuple[float, float]]:
        """Codes of a weight, and the error of its layer with the codes that it had, and now.

        Args:
            state: with the weight and its encoding.
            layer: which.
            moments: `E[x^ x^^T]` of each part of its columns.
            crossed: `E[x x^^T]`; None where both are the same.
        """
        tensor, encoding = state.tensor(layer.weight).float(), state.encoding(layer.weight)
        weight, rounding = layer.matrix(tensor), rounding_of(encoding, layer.groups)
        codes = encoding.codes_of(tensor)
        had = layer.matrix(codes), layer.matrix(encoding.dequantize(codes))
        parts, before, after = [], 0.0, 0.0
        for i, columns in enumerate(layer.parts):
            codes, errors = self._part(
                weight[..., columns], moments[i], None if crossed is None else crossed[i], rounding,
                (had[0][..., columns], had[1][..., columns]), f"weight {layer.weight!r}",
            )  # fmt: skip
            parts.append(codes)
            before, after = before + errors[0], after + errors[1]
        return layer.tensor(torch.cat(parts, dim=2)).contiguous(), (before, after)

    def _part(
        self, weight: Tensor, moments: Tensor, crossed: Tensor | None, rounding: Rounding,
        had: tuple[Tensor, Tensor], where: str,
    ) -> tuple[Tensor, tuple[float, float]]:  # fmt: skip
        stable = damped(moments, self.damping)
        aim = weight if crossed is None else shifted(weight, moments, crossed, stable)
        order = None
        if self.act_order:
            order = moments.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True)
            stable = stable.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None], 2)
            aim = aim.take_along_dim(order[:, None], 2)
        codes, values = round_columns(aim, feedback(stable, where), rounding)
        if order is not None:
            back = order.argsort(dim=-1)[:, None]
            aim, codes, values = (t.take_along_dim(back, 2) for t in (aim, codes, values))
        before, after = row_errors(had[1] - aim, moments), row_errors(values - aim, moments)
        better = after < before
        chosen = torch.where(better[..., None], codes, had[0])
        return chosen, (float(before.sum()), float(torch.where(better, after, before).sum()))

    def _float(
        self, state: State, layers: list[Layer], images: Batches, told: dict[str, Any]
    ) -> Iterator[tuple[Layer, list[Tensor], None]]:
        """Layers with the moments of what they read in the float network."""
        passes = in_passes(layers)
        told["passes"] = len(passes)
        for group in passes:
            sums = {layer.key: Moments(layer=layer) for layer in group}
            readers: dict[str, list[Moments]] = {}
            for found in sums.values():
                readers.setdefault(found.layer.site, []).append(found)
            self._add(state, group, images, readers)
            means = {}
            for i, layer in enumerate(group):
                if layer.key not in means:
                    means[layer.key] = sums.pop(layer.key).mean()
                yield layer, means[layer.key], None
                if all(later.key != layer.key for later in group[i + 1 :]):
                    del means[layer.key]

    def _add(self, state: State, group: list[Layer], images: Batches, readers: Mapping[str, list[Moments]]) -> None:
        draws = {id(found): self._draws(found.layer) for several in readers.values() for found in several}

        def consume(site: str, x: Tensor) -> None:
            for found in readers[site]:
                for rows in found.layer.rows(x, self.rows, draws[id(found)]):
                    found.add(rows)

        watch_inputs(state, group, images, consume)

    def _draws(self, layer: Layer) -> torch.Generator:
        """Of the rows of a layer: by what it reads, so that they are the same whatever other layers are rounded."""
        return torch.Generator().manual_seed(crc32(f"{self.seed} {layer.site}".encode()))

    def _quantized(
        self, state: State, layers: list[Layer], images: Batches, encodings: dict[str, Encoding]
    ) -> Iterator[tuple[Layer, list[Tensor], list[Tensor] | None]]:
        """Layers with the moments of what they read behind the quantized ones; `encodings` are those found so far."""
        for layer, pairs in quantized_prefix(state, layers, images, encodings):
            generator = self._draws(layer)
            moments, crossed = Moments(layer=layer), Moments(layer=layer)
            for x, quantized in pairs:
                start = generator.get_state()
                for rows, others in zip(
                    layer.rows(x, self.rows, generator),
                    layer.rows(quantized, self.rows, torch.Generator().set_state(start)), strict=True,
                ):  # fmt: skip
                    moments.add(others)
                    if self.correct_inputs:
                        crossed.add(rows, others)
            yield layer, moments.mean(), crossed.mean(symmetric=False) if self.correct_inputs else None


def shifted(weight: Tensor, moments: Tensor, crossed: Tensor, stable: Tensor) -> Tensor:
    """`W (C + lambda I) (H + lambda I)^-1 = W + W (C - H) (H + lambda I)^-1`, with zeros where W is zero.

    Args:
        weight: W, `[groups, rows, d]`.
        moments: H, `E[x^ x^^T]`, `[groups, d, d]`.
        crossed: C, `E[x x^^T]`.
        stable: `H + lambda I`, float64.

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> shifted(one, 2 * one, 3 * one, 2 * one.double()).item()
        1.5
    """
    change = torch.bmm(weight.double(), (crossed - moments).double())
    moved = torch.cholesky_solve(change.mT, torch.linalg.cholesky(stable)).mT
    return torch.where(weight == 0, weight, weight + moved.float())
