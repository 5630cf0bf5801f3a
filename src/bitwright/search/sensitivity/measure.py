"""What every sensitivity is, and the walk of those that run the network once for each choice of each group.

That losses add up is an assumption. Between groups next to each other in execution order, where the noise of one is
what the other reads, `pairs=neighbours` measures by how much it fails:

    pair_gh[a][b] = loss(g at a and h at b) - loss(g at a) - loss(h at b),   h = g + 1
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.pipeline import Progress
from bitwright.ptq.diagnosis.switches import Values
from bitwright.search.board import LibraryBoard
from bitwright.search.kept import Kept
from bitwright.search.library import Library
from bitwright.search.problem import Additive, Group
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


@dataclass(frozen=True, kw_only=True)
class OneAtATime:
    """Sensitivities that turn one group at a time and look at the outputs.

    `base` is what the other groups are meanwhile: `float` (nothing else is quantized), or `widest` (all at their first
    choice; the loss of a choice is then what it adds).

    Args:
        pairs: `none`, or `neighbours`: interactions of each group with the next one, by passes with both turned.

    Raises:
        InputError: other pairs.
    """

    pairs: str = "none"

    base: ClassVar[Literal["float", "widest"]]
    needs_labels: ClassVar[bool] = False
    weights_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.pairs not in ("none", "neighbours"):
            raise InputError("pairs", f"is {self.pairs!r}", "none or neighbours")

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """A number for each image, `[images]`."""
        raise NotImplementedError

    def added(self, loss: float, base: float) -> float:
        """The loss of a choice from its mean and that of the base, which is 0 for `float`."""
        return loss - base

    def passes(self, space: Space) -> float:
        """One for float, one for the base, one for each choice of each group, and with `pairs` one for each two
        choices of neighbours; what does not change is not run.
        """
        turned = [len(self._turned(len(group.choices))) for group in space.groups]
        both = [g * h for g, h in itertools.pairwise(turned)] if self.pairs == "neighbours" else []
        return 2 + sum(turned) + sum(both)

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
        sums = np.zeros(1)
        for number, batch in enumerate(batches):
            name = f"batch {number}"
            found = kept.get(name)
            if found is None:
                inputs = {key: torch.from_numpy(array) for key, array in batch.inputs.items()}
                labels = None if batch.labels is None else torch.from_numpy(np.asarray(batch.labels))
                found = self._batch(board, inputs, labels, batch.valid)
                kept.put(name, found)
            sums = sums + np.array(found)
            if images_done is not None:
                images_done(batch.valid)
        base, *means = (sums / len(batches)).tolist()
        left = iter(means)
        values = []
        for group in groups:
            row = [self.added(next(left), base) for _ in group.choices]
            if self.base == "widest":
                row[0] = 0.0
            values.append(tuple(row))
        pairs = {}
        for g, (first, second) in enumerate(itertools.pairwise(values)) if self.pairs == "neighbours" else ():
            both = {(a, b): self.added(next(left), base) for a, b in self._both(len(first), len(second))}
            pairs[g, g + 1] = tuple(
                tuple(both[a, b] - x - y if (a, b) in both else 0.0 for b, y in enumerate(second))
                for a, x in enumerate(first)
            )
        return Additive(values=tuple(values), pairs=pairs)

    def _turned(self, choices: int) -> range:
        """Of so many choices, those that the base does not have."""
        return range(self.base == "widest", choices)

    def _both(self, first: int, second: int) -> Iterator[tuple[int, int]]:
        """Choices of two groups that are turned together, in the order in which they are."""
        return itertools.product(self._turned(first), self._turned(second))

    def _batch(self, board: LibraryBoard, inputs: dict[str, Tensor], labels: Tensor | None, valid: int) -> list[float]:
        """Sums over a batch's images: of the base, then of each choice of each group, then of pairs of choices."""
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
        found, both = [total(outputs[0]) if widest else 0.0], []
        for group, after in itertools.zip_longest(groups, groups[1:] if self.pairs == "neighbours" else ()):
            known = board.unchanged(values, group.name)
            for choice in range(len(group.choices)):
                if choice not in self._turned(len(group.choices)):
                    found.append(found[0])
                    continue
                board.turn_group(group.name, choice, weights_only=self.weights_only)
                outputs, turned = board.run(inputs, known)
                found.append(total(outputs[0]))
                if after is not None:
                    both += [total(y) for y in self._also(board, inputs, turned, after)]
                    board.turn_group(after.name, rest)
            board.turn_group(group.name, rest)
        return [*found, *both]

    def _also(self, board: LibraryBoard, inputs: dict[str, Tensor], values: Values, group: Group) -> Iterator[Tensor]:
        """Outputs with a second group at each of its choices, beside what is turned already."""
        known = board.unchanged(values, group.name)
        for choice in self._turned(len(group.choices)):
            board.turn_group(group.name, choice, weights_only=self.weights_only)
            yield board.run(inputs, known)[0][0]


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
