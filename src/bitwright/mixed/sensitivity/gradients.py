"""The float network of a library with a gradient at every weight that moves, and at every activation that does.

Nothing is rounded in it. A weight is a leaf of its own; an activation is seen where the simulation would quantize it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.data.batches import Batch
from bitwright.errors import InputError, UnsupportedError, first_line
from bitwright.mixed.library import Library, weight_site
from bitwright.mixed.problem import Group
from bitwright.mixed.sensitivity.measure import check_finite, scores_output
from bitwright.plan.spec import Derived, QSpec
from bitwright.ptq.diagnosis.switches import calibrated, without_stored
from bitwright.ptq.programs import simulated_program


class Leaf(nn.Module):
    """A weight to be differentiated by, in place of the constant."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The weight, whatever is given."""
        return self.weight


class Tap(nn.Module):
    """Passes an activation on, and remembers what passed: one tensor for each place that is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The same values, as a tensor that has a gradient."""
        passed = x.clone() if x.requires_grad else x.detach().clone().requires_grad_(True)
        self.seen.append(passed)
        return passed


class Differentiable:
    """A library's float network; its scores have gradients.

    Args:
        library: what moves.
        activations: whether activations that move are seen.

    Attributes:
        weights: `{site: leaf}` of all groups, in their order.
        taps: `{root: tap}` of all groups.

    Raises:
        InputError: the library's state is not calibrated, or several outputs.
        UnsupportedError: layers whose ranges are found at run time.
    """

    def __init__(self, library: Library, *, activations: bool = False) -> None:
        state, space = library.state, library.space
        self.output = scores_output(state.model)
        plan = calibrated(state)
        sites = [weight_site(p.region.weight) for group in space.groups for p in space.products[group.name]]
        leaves = {site: Leaf(state.tensor(site)) for site in dict.fromkeys(sites)}
        roots = [root for group in space.groups for root in space.roots[group.name]] if activations else []
        self.taps: Mapping[str, Tap] = {root: Tap() for root in roots}
        passing: dict[str, nn.Module] = {
            site: nn.Identity() for site, spec in plan.sites.items() if isinstance(spec, QSpec | Derived)
        }
        self.weights: Mapping[str, Tensor] = {site: leaf.weight for site, leaf in leaves.items()}
        self.program = simulated_program(without_stored(state, plan), quantizers={**passing, **leaves, **self.taps})

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scores of classes, `[images, classes]`; taps remember this run alone.

        Raises:
            InputError: outputs that are no scores of classes, that are not finite, or that no weight can move.
        """
        for tap in self.taps.values():
            tap.seen.clear()
        y: Tensor = self.program.module(*(inputs[name] for name in self.program.inputs))[self.output]
        if y.ndim != 2:
            raise InputError(
                "network", f"gives outputs of shape {list(y.shape)}", "scores of classes, [batch, classes]", "use sqnr"
            )
        check_finite(y)
        if not y.requires_grad:
            raise InputError("network", "no weight has a gradient", "outputs that depend on the weights", "use sqnr")
        return y


def cross_entropy(y: Tensor, labels: Tensor) -> Tensor:
    """`-log softmax(y)[label]`, the sum over images.

    Args:
        y: `[images, classes]`.
        labels: `[images]`, whole numbers.

    Raises:
        InputError: labels that are no classes of the scores.

    Example:
        >>> round(float(cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 1]))), 4)
        2.0794
    """
    if labels.shape != y.shape[:1] or int(labels.min()) < 0 or int(labels.max()) >= y.shape[1]:
        raise InputError(
            "labels", f"of shape {list(labels.shape)}, from {labels.min()} to {labels.max()}",
            f"{y.shape[0]} classes from 0 to {y.shape[1] - 1}",
        )  # fmt: skip
    return nn.functional.cross_entropy(y, labels.long(), reduction="sum")


def gradients(y: Tensor, by: Sequence[Tensor], *, again: bool = False, keep: bool = False) -> list[Tensor]:
    """`dy/dx` for every x of `by`; zeros where y does not depend on it.

    Args:
        y: one number.
        by: tensors with a gradient.
        again: whether what comes out is differentiated once more.
        keep: whether y is.

    Raises:
        UnsupportedError: an op of the network has no derivative, or no second one.

    Example:
        >>> x, z = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
        >>> gradients(x * x, [x, z])
        [tensor(6.), tensor(0.)]
    """
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in by]
    try:
        found = torch.autograd.grad(y, list(by), create_graph=again, retain_graph=again or keep, allow_unused=True)
    except RuntimeError as error:
        message = str(error)
        op = re.search(r"derivative for '?(\S+?)'? is not implemented", message)
        if op is None and "differentiate twice" not in message:
            raise
        name = op[1] if op else first_line(error)
        raise UnsupportedError(
            "gradients of the loss", f"an op of the network cannot be differentiated as often as needed ({name})",
            "ops with a derivative; hawq needs a second one", "use sqnr, which needs none",
        ) from error  # fmt: skip
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, by, strict=True)]


def moved(library: Library, group: Group) -> dict[str, list[Tensor]]:
    """`{site: Q_k(W) - W for each choice k}` of a group's weights."""
    found = {}
    for product in library.space.products[group.name]:
        site = weight_site(product.region.weight)
        weight = library.state.tensor(site)
        stored = [library.weights[site, w.weight or product.widths[0]] for w in group.choices]
        found[site] = [one.values(weight) - weight for one in stored]
    return found


def tensors(batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
    """A batch's inputs and labels."""
    labels = None if batch.labels is None else torch.from_numpy(np.asarray(batch.labels))
    return {name: torch.from_numpy(array) for name, array in batch.inputs.items()}, labels
