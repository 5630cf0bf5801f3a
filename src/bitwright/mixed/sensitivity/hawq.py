"""HAWQ: the curvature of the loss at a layer's weights, times how far rounding moves them.

    statistic      Omega_g(k) = sum over regions r of the group
    trace          max(Tr(H_r), 0) / n_r * ||Q_k(W_r) - W_r||^2      versions 2 and 3
    eigenvalue     lambda_r * ||Q_k(W_r) - W_r||^2                   version 1, where it orders layers for training

`H_r` is the Hessian of the mean cross-entropy of the labels by the n_r weights of region r, at the float weights, all
else held: one block of the whole Hessian. `lambda_r` is its eigenvalue of largest magnitude. The norm is squared, a
sum over weights. Version 1 gives more bits to layers of a large `S_r = lambda_r / n_r`, version 2 to those of a large
`Tr(H_r) / n_r`: see `Hawq.curvatures`.

The trace is Hutchinson's: the mean of v^T H v over vectors v of +1 and -1. With `together` one v goes over all weights
at once, and each layer takes its own part of v * Hv; what other layers add to it is zero on average, but where their
curvature is far larger, a layer drowns in it, and `together=False`, one layer at a time, is worth its many passes.
Where all that comes after a weight is piecewise linear, its block has no negative eigenvalue; below zero an estimate
is chance, or a layer that is in no minimum, and counts as 0. The eigenvalue is power iteration's, one layer at a time.

Where a region's weight and activation have one width (version 3), what the weight loses stands for both. Where
activations have widths of their own, each root a that moves adds (version 2, section 3.4)

    max(mean_i Tr(H_ia), 0) / n_a * mean_i ||Q_k(a_i) - a_i||^2

`H_ia` being the Hessian of the loss of image i by the n_a elements of its activation. That of a batch's loss has no
entries between images, so one vector goes over all of them. Eigenvalues of activations are not measured.

Sources: Dong et al., HAWQ, ICCV 2019; HAWQ-V2, NeurIPS 2020, section 3; Yao et al., HAWQ-V3, ICML 2021, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batch, Batches
from bitwright.errors import InputError
from bitwright.execute.program import FakeQuantize
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive
from bitwright.mixed.sensitivity.gradients import Differentiable, cross_entropy, gradients, moved, tensors
from bitwright.mixed.space import Space
from bitwright.pipeline import Progress

#: Draws that a standard error is taken from, at least.
LEAST = 30
#: `tolerance` where none is given: standard error of a trace, and change of an eigenvalue, over the value.
TOLERANCES = {"trace": 0.05, "eigenvalue": 1e-3}
#: Passes of one product of the Hessian with a vector: forward, back, and back through both, each of whose products of
#: three (one forward, two back) is differentiated by two factors.
PRODUCT = 1 + 2 + 6

#: `[v_1, v_2 ...]` to `[(Hv)_1, (Hv)_2 ...]`.
Hvp = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def rademacher(like: Sequence[Tensor], seed: int, draw: int) -> list[Tensor]:
    """Vectors of +1 and -1, the same ones for the same seed and draw.

    Example:
        >>> (v,) = rademacher([torch.zeros(8)], seed=0, draw=3)
        >>> v.square().sum()
        tensor(8.)
    """
    random = np.random.default_rng([seed, draw])
    return [torch.from_numpy(2.0 * random.integers(0, 2, tuple(x.shape)) - 1.0).to(x.dtype) for x in like]


def trace(
    hvp: Hvp, like: Sequence[Tensor], *, samples: int = 100, tolerance: float = 0.05, seed: int = 0,
    kept: Kept | None = None, drawn: Callable[[int], None] | None = None, name: str = "draw",
) -> list[float]:  # fmt: skip
    """Hutchinson's estimate `mean_v v_i^T (Hv)_i` of the trace of each block on the diagonal.

    It stops after `LEAST` draws or more, as soon as the standard error of every block is at most `tolerance` times its
    mean; else after `samples` draws.

    Args:
        hvp: product with the whole matrix.
        like: one tensor for each block.
        samples: most draws.
        tolerance: relative standard error that is enough.
        seed: of the draws.
        kept: draws that were made before are taken from here.
        drawn: told the number of draws made so far.
        name: that draws are kept by, with their number.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> (found,) = trace(lambda v: [a @ v[0]], [torch.zeros(2)], samples=400)
        >>> abs(found - 5) < 0.5
        True
    """

    def one(draw: int) -> list[float]:
        v = rademacher(like, seed, draw)
        return [float((a * b).double().sum()) for a, b in zip(v, hvp(v), strict=True)]

    return _mean(one, samples=samples, tolerance=tolerance, kept=kept or Kept(None), drawn=drawn, name=name)


def _mean(
    one: Callable[[int], list[float]], *, samples: int, tolerance: float, kept: Kept,
    drawn: Callable[[int], None] | None, name: str,
) -> list[float]:  # fmt: skip
    """The mean over draws of numbers, until the standard error of each is small enough (`trace`)."""
    mean = squares = np.zeros(())
    for draw in range(samples):
        found = kept.once(f"{name} {draw}", partial(one, draw))
        n, away = draw + 1, np.array(found) - mean
        mean = mean + away / n
        squares = squares + away * (np.array(found) - mean)
        if drawn is not None:
            drawn(n)
        if n >= LEAST and (np.sqrt(squares / (n - 1) / n) <= tolerance * np.abs(mean)).all():
            break
    return [float(value) for value in mean]


def top_eigenvalue(hvp: Hvp, like: Tensor, *, steps: int = 100, tolerance: float = 1e-3, seed: int = 0) -> float:
    """The eigenvalue of largest magnitude, by power iteration: `v <- Hv / ||Hv||`, `lambda = v^T H v`.

    It stops when lambda changes by at most `tolerance` of itself; else after `steps` products.

    Args:
        hvp: product with the matrix; is given and gives one tensor.
        like: a tensor of the vectors' shape.
        steps: most products.
        tolerance: relative change that is small enough.
        seed: of the vector that it starts from.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> round(top_eigenvalue(lambda v: [a @ v[0]], torch.zeros(2), tolerance=1e-6), 3)
        3.618
    """
    v = torch.from_numpy(np.random.default_rng([seed]).normal(size=tuple(like.shape))).to(like.dtype)
    value = math.nan
    for _ in range(steps):
        v = v / v.norm()
        (product,) = hvp([v])
        before, value = value, float((v * product).double().sum())
        if float(product.norm()) == 0.0:
            return 0.0
        if abs(value - before) <= tolerance * abs(value):
            break
        v = product
    return value


def omega(curvature: float, moved: float) -> float:
    """`curvature * ||Q(W) - W||^2`: what a layer loses.

    Args:
        curvature: `max(Tr(H), 0) / n` (versions 2 and 3), or lambda (version 1).
        moved: the squared norm, a sum over all weights.

    Example:
        >>> omega(0.5, 5.0)
        2.5
    """
    return curvature * moved


@dataclass(frozen=True, kw_only=True)
class Hawq:
    """Curvature times squared noise of the weights.

    Args:
        statistic: `trace` or `eigenvalue`.
        samples: most draws for the trace, at least 30; most steps of power iteration for each layer.
        tolerance: where to stop before; None for a standard error of 5% of every layer's trace, and for an eigenvalue
            that changes by 0.1%.
        seed: of draws, and of the vector that power iteration starts from.
        together: whether a draw of the trace goes over all layers at once.

    Raises:
        InputError: another statistic, fewer than 30 samples of the trace or one step, a tolerance that is not
            positive, a negative seed.

    Example:
        >>> Hawq(samples=10)
        Traceback (most recent call last):
        bitwright.errors.InputError: hawq.samples: is 10; expected 30 or more
    """

    statistic: str = "trace"
    samples: int = 100
    tolerance: float | None = None
    seed: int = 0
    together: bool = True

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.statistic not in TOLERANCES:
            raise InputError("hawq.statistic", f"is {self.statistic!r}", " or ".join(TOLERANCES))
        least = LEAST if self.statistic == "trace" else 1
        if self.samples < least:
            raise InputError("hawq.samples", f"is {self.samples}", f"{least} or more")
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError("hawq.tolerance", f"is {self.tolerance}", "a positive number")
        if self.seed < 0:
            raise InputError("hawq.seed", f"is {self.seed}", "0 or more")

    def passes(self, space: Space) -> float:
        """Nine for each draw or step, and each layer if one at a time: forward, back, and back through both.

        Activations with widths of their own have draws of their own, and one more pass for their noise.
        """
        layers = sum(len(products) for products in space.products.values())
        weights = PRODUCT * self.samples * (1 if self.statistic == "trace" and self.together else layers)
        return weights + (PRODUCT * self.samples + 1 if _apart(space) else 0)

    def __call__(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> Additive:
        """The loss of every choice of every group.

        Raises:
            InputError: no labels, no scores of classes, or eigenvalues where activations have widths of their own.
            UnsupportedError: an op without a second derivative.
        """
        kept, told = kept or Kept(None), _Told(len(batches), images_done)
        apart = _apart(library.space)
        if apart and self.statistic != "trace":
            raise InputError(
                f"hawq.statistic {self.statistic}", f"group {apart!r} has activation widths of their own, of which no "
                "eigenvalues are measured", "statistic=trace, widths of weights alone, or of both tied",
            )  # fmt: skip
        share = 0.5 if apart else 1.0
        found = self._curvatures(library, batches, kept, lambda part: told(share * part))
        read = self._of_activations(library, batches, kept, lambda part: told((1 + part) / 2)) if apart else {}
        values = []
        for group in library.space.groups:
            parts = []
            for site, noise in moved(library, group).items():
                each = max(found[site], 0.0) if self.statistic == "trace" else found[site] * noise[0].numel()
                parts.append([omega(each, float(one.double().square().sum())) for one in noise])
            parts += [
                [read[root][width.activation or 0] for width in group.choices]
                for root in library.space.roots[group.name] if apart
            ]  # fmt: skip
            values.append(tuple(math.fsum(part[k] for part in parts) for k in range(len(group.choices))))
        told(1.0)
        return Additive(values=tuple(values))

    def curvatures(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> dict[str, float]:
        """`{site of a weight: Tr(H) / n, or lambda / n}`: the more, the more bits a layer should have.

        Raises:
            InputError: no labels, or no scores of classes.
            UnsupportedError: an op without a second derivative.
        """
        told = _Told(len(batches), images_done)
        found = self._curvatures(library, batches, kept or Kept(None), told)
        told(1.0)
        return found

    def _curvatures(
        self, library: Library, batches: Batches, kept: Kept, told: Callable[[float], None]
    ) -> dict[str, float]:
        batches.require_labels()
        network, limit = Differentiable(library), self._limit
        sites, weights = list(network.weights), list(network.weights.values())
        parts = [sites] if self.statistic == "trace" and self.together else [[site] for site in sites]
        values: list[float] = []
        for i, part in enumerate(parts):
            own = [network.weights[site] for site in part]

            def hvp(v: Sequence[Tensor], own: Sequence[Tensor] = own) -> list[Tensor]:
                return _product(network, batches, own, v)

            if self.statistic == "trace":
                values += trace(
                    hvp, own, samples=self.samples, tolerance=limit, seed=self.seed, kept=kept,
                    drawn=lambda n, i=i: told((i + n / self.samples) / len(parts)),  # type: ignore[misc]
                    name="draw" if self.together else f"{part[0]}, draw",
                )  # fmt: skip
            else:
                largest = partial(
                    top_eigenvalue, hvp, own[0], steps=self.samples, tolerance=limit, seed=self.seed
                )  # fmt: skip
                values.append(kept.once(f"eigenvalue of {part[0]}", largest))
            told((i + 1) / len(parts))
        return {site: value / w.numel() for site, value, w in zip(sites, values, weights, strict=True)}

    @property
    def _limit(self) -> float:
        return TOLERANCES[self.statistic] if self.tolerance is None else self.tolerance

    def _of_activations(
        self, library: Library, batches: Batches, kept: Kept, told: Callable[[float], None]
    ) -> dict[str, dict[int, float]]:
        """`{root: {bits: max(Tr, 0) / n ||Q(a) - a||^2}}`, means over images."""
        network, count = Differentiable(library, activations=True), -(-len(batches) // batches.batch_size)
        roots = list(network.taps)
        widths = {
            root: sorted({bits for site, bits in library.activations if site == root}, reverse=True) for root in roots
        }

        def one(draw: int) -> list[float]:
            sums = dict.fromkeys(roots, 0.0)
            for number, batch in enumerate(batches):
                loss = _loss(network, batch)
                places = [(root, x) for root in roots for x in network.taps[root].seen]
                values = [x for _, x in places]
                v = rademacher(values, self.seed, draw * count + number)
                for (root, _), a, b in zip(places, v, _along(loss, values, v), strict=True):
                    sums[root] += float((a * b).double().sum())
            return [sums[root] / len(batches) for root in roots]

        traces = _mean(
            one, samples=self.samples, tolerance=self._limit, kept=kept, name="draw of activations",
            drawn=lambda n: told(n / self.samples),
        )  # fmt: skip
        sizes, noise = dict.fromkeys(roots, 0), {root: dict.fromkeys(widths[root], 0.0) for root in roots}
        for batch in batches:
            images = len(next(iter(batch.inputs.values())))
            network.scores(tensors(batch)[0])
            for root in roots:
                # Of each image there may be several rows: tokens, windows.
                seen = [x.detach()[: len(x) * batch.valid // images] for x in network.taps[root].seen]
                sizes[root] += sum(x.numel() for x in seen)
                for bits in widths[root]:
                    quantizer = FakeQuantize(library.activations[root, bits])
                    noise[root][bits] += sum(float((quantizer(x) - x).double().square().sum()) for x in seen)
        return {
            root: {
                bits: omega(max(found, 0.0) * len(batches) / sizes[root], noise[root][bits] / len(batches))
                for bits in widths[root]
            }
            for root, found in zip(roots, traces, strict=True)
        }


def _product(
    network: Differentiable, batches: Batches, weights: Sequence[Tensor], v: Sequence[Tensor]
) -> list[Tensor]:
    """`Hv` of the mean loss over all images."""
    sums, images = [torch.zeros_like(w) for w in weights], 0
    for batch in batches:
        for total, part in zip(sums, _along(_loss(network, batch), weights, v), strict=True):
            total += part
        images += batch.valid
    return [total / images for total in sums]


def _loss(network: Differentiable, batch: Batch) -> Tensor:
    """The sum over a batch's images."""
    inputs, labels = tensors(batch)
    assert labels is not None  # they were asked for
    return cross_entropy(network.scores(inputs)[: batch.valid], labels)


def _along(loss: Tensor, by: Sequence[Tensor], v: Sequence[Tensor]) -> list[Tensor]:
    """`Hv`, H being the Hessian of the loss by these tensors."""
    slopes = gradients(loss, by, again=True)
    return gradients(torch.stack([(g * one).sum() for g, one in zip(slopes, v, strict=True)]).sum(), by)


def _apart(space: Space) -> str | None:
    """The first group whose weight can have one width with several of the activation."""
    for group in space.groups:
        pairs: Mapping[int | None, set[int | None]] = {
            width.weight: {other.activation for other in group.choices if other.weight == width.weight}
            for width in group.choices
            if not width.in_float
        }
        if any(len(widths) > 1 for widths in pairs.values()):
            return group.name
    return None


class _Told:
    """Tells progress in images of one walk, however many walks there are."""

    def __init__(self, images: int, images_done: Progress | None) -> None:
        self.images, self.images_done, self.so_far = images, images_done, 0

    def __call__(self, share: float) -> None:
        now = int(share * self.images)
        if self.images_done is not None and now > self.so_far:
            self.images_done(now - self.so_far)
        self.so_far = max(self.so_far, now)
