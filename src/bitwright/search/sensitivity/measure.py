"""What every sensitivity is, and the walk of those that run the network once for each choice of each group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import Progress, State
from bitwright.search.board import LibraryBoard
from bitwright.search.kept import Kept
from bitwright.search.library import Library
from bitwright.search.problem import Additive
from bitwright.search.solvers.greedy import Step
from bitwright.search.space import Space

#: Of outputs, those of the float network and the labels: a number for each image, `[images]`.
Metric = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Sensitivity(Protocol):
    """What every row of `SENSITIVITIES` is, but for those that order groups as they go (`Ordering`).

    Attributes:
        needs_labels: whether it cannot do without right answers.
    """

    needs_labels: ClassVar[bool]

    def passes(self, space: Space) -> float:
        """Passes of the whole network over the images, at most; a backward pass counts as two."""
        ...

    def __call__(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> Additive:
        """The loss of every choice of every group."""
        ...


@runtime_checkable
class Ordering(Protocol):
    """Rows of `SENSITIVITIES` that give no losses, but say in the network as it is now what to lower next.

    Their trajectory takes the place of a solver; `isinstance` tells them from a `Sensitivity`.

    Attributes:
        needs_labels: whether it cannot do without right answers.
    """

    needs_labels: ClassVar[bool]

    def ties(self, state: State) -> Sequence[Sequence[str]]:
        """Names of regions that the space has to make one group."""
        ...

    def passes(self, space: Space) -> float:
        """Passes of the whole network over the images of both sets, at most."""
        ...

    def trajectory(
        self, library: Library, calibration: Batches, validation: Batches, costs: Mapping[str, Additive],
        limits: Mapping[str, float], kept: Kept | None = None, images_done: Progress | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """All steps from the widest network down to the limits.

        Args:
            library: groups, each at every width.
            calibration: what templates are made of; with labels, where they are needed.
            validation: what they are tried on; no image of `calibration`.
            costs: told of each step; those with a limit end it.
            limits: cost -> the most that it may be.
            kept: what a run before found; it goes on there and ends the same.
            images_done: told the images of each batch that has passed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OneAtATime:
    """Sensitivities that turn one group at a time and look at the outputs.

    `base` is what the other groups are meanwhile: `float` (nothing else is quantized), or `widest` (all at their first
    choice; the loss of a choice is then what it adds).
    """

    base: ClassVar[Literal["float", "widest"]]
    needs_labels: ClassVar[bool] = False
    weights_only: ClassVar[bool] = False

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """A number for each image, `[images]`."""
        raise NotImplementedError

    def added(self, loss: float, base: float) -> float:
        """The loss of a choice from its mean and that of the base, which is 0 for `float`."""
        return loss - base

    def passes(self, space: Space) -> float:
        """One for float, one for the base, one for each choice of each group; what does not change is not run."""
        widest = self.base == "widest"
        return 2 + sum(len(group.choices) - widest for group in space.groups)

    def __call__(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> Additive:
        """The loss of every choice of every group.

        Raises:
            InputError: labels are needed and missing, or outputs are not finite.
        """
        if self.needs_labels:
            batches.require_labels()
        kept = kept or Kept(None)
        board = LibraryBoard(library)
        groups = library.space.groups
        sums = np.zeros(1 + sum(len(group.choices) for group in groups))
        for number, batch in enumerate(batches):
            name = f"batch {number}"
            found = kept.get(name)
            if found is None:
                inputs = {key: torch.from_numpy(array) for key, array in batch.inputs.items()}
                labels = None if batch.labels is None else torch.from_numpy(np.asarray(batch.labels))
                found = self._batch(board, inputs, labels, batch.valid)
                kept.put(name, found)
            sums += np.array(found)
            if images_done is not None:
                images_done(batch.valid)
        means = (sums / len(batches)).tolist()
        values, at = [], 1
        for group in groups:
            row = [self.added(value, means[0]) for value in means[at : at + len(group.choices)]]
            if self.base == "widest":
                row[0] = 0.0
            values.append(tuple(row))
            at += len(group.choices)
        return Additive(values=tuple(values))

    def _batch(self, board: LibraryBoard, inputs: dict[str, Tensor], labels: Tensor | None, valid: int) -> list[float]:
        """Sums over a batch's images: of the base, then of each choice of each group."""
        groups, widest = board.library.space.groups, self.base == "widest"

        def total(y: Tensor) -> float:
            return float(self.metric(y[:valid].double(), reference, None if labels is None else labels).sum())

        board.turn([None] * len(groups), rest=False)
        outputs, values = board.run(inputs)
        reference = outputs[0][:valid].double()
        if not torch.isfinite(reference).all():
            raise InputError("network", "NaN or infinity among its outputs", "finite values", "check weights and data")
        rest: int | None = 0 if widest else None
        if widest:
            board.turn([0] * len(groups))
            outputs, values = board.run(inputs)
        found = [total(outputs[0]) if widest else 0.0]
        for group in groups:
            known = board.unchanged(values, group.name)
            for choice in range(len(group.choices)):
                if choice == 0 and widest:
                    found.append(found[0])
                    continue
                board.turn_group(group.name, choice, weights_only=self.weights_only)
                found.append(total(board.run(inputs, known)[0][0]))
            board.turn_group(group.name, rest)
        return found


def divergence(y: Tensor, reference: Tensor) -> Tensor:
    """`KL = sum_c p_c log(p_c / q_c)`, p = softmax(reference), q = softmax(y), for each image, `[images]`.

    Raises:
        InputError: outputs that are no scores of classes.

    Example:
        >>> divergence(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor([0.])
    """
    if y.ndim != 2:
        raise InputError(
            "network", f"gives outputs of shape {list(y.shape)}", "scores of classes, [batch, classes]", "use sqnr"
        )
    p, q = reference.log_softmax(1), y.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)
