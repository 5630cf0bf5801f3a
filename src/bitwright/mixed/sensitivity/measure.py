"""What every sensitivity is, and the walk of those that run the network once for each choice of each group.

That losses add up is an assumption. `pairs` measures by how much it fails for two groups, and the solver adds it:

    pair_gh[a][b] = loss(g at a and h at b) - loss(g at a) - loss(h at b)

of groups next to each other in execution order (`neighbours`), or of any two (`all`), whose passes grow with the
square of the number of groups. What they bought where every assignment was tried: docs/results/exhaustive.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from bitwright.data.batches import Batch, Batches
from bitwright.errors import InputError
from bitwright.graph.outputs import real_outputs
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive, Choices, Group
from bitwright.mixed.solvers.greedy import Step
from bitwright.mixed.space import Space
from bitwright.pipeline import Progress, State
from bitwright.ptq.diagnosis.switches import Values

#: Which two groups are turned together.
PAIRS = ("none", "neighbours", "all")
#: Of an output, that of the float network and the labels: a number for each image, `[images]`.
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

    Args:
        pairs: interactions that are measured, by passes with both groups turned: `none`, `neighbours` or `all`.

    Raises:
        InputError: other pairs.
    """

    pairs: str = "none"

    base: ClassVar[Literal["float", "widest"]]
    needs_labels: ClassVar[bool] = False
    weights_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.pairs not in PAIRS:
            raise InputError("pairs", f"is {self.pairs!r}", ", ".join(PAIRS[:-1]) + f" or {PAIRS[-1]}")

    def metric(self, y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
        """A number for each image, `[images]`."""
        raise NotImplementedError

    def added(self, loss: float, base: float) -> float:
        """The loss of a choice from its mean and that of the base, which is 0 for `float`."""
        return loss - base

    def passes(self, space: Space) -> float:
        """One for float, one for the base, one for each choice of each group, and with `pairs` one for each two
        choices of two groups; what does not change is not run.
        """
        groups = space.groups
        return 2 + sum(len(self._turned(group)) for group in groups) + len(list(self._both(groups)))

    def __call__(
        self, library: Library, batches: Batches, kept: Kept | None = None, images_done: Progress | None = None
    ) -> Additive:
        """The loss of every choice of every group.

        Raises:
            InputError: labels are needed and missing, outputs are not finite, or labels cannot tell of all of them.
        """
        if self.needs_labels:
            batches.require_labels()
            scores_output(library.state.model)
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
        pairs: dict[tuple[int, int], list[list[float]]] = {}
        for (g, a), (h, b) in self._both(groups):
            matrix = pairs.setdefault((g, h), [[0.0] * len(values[h]) for _ in values[g]])
            matrix[a][b] = self.added(next(left), base) - values[g][a] - values[h][b]
        return Additive(values=tuple(values), pairs={at: tuple(map(tuple, matrix)) for at, matrix in pairs.items()})

    def _turned(self, group: Group) -> range:
        """The choices that the base does not have."""
        return range(self.base == "widest", len(group.choices))

    def _after(self, groups: Sequence[Group], g: int) -> range:
        """The groups after g that are turned together with it."""
        ends = {"none": g + 1, "neighbours": min(g + 2, len(groups)), "all": len(groups)}
        return range(g + 1, ends[self.pairs])

    def _both(self, groups: Sequence[Group]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """`(g, choice of g), (h, choice of h)` that are turned together, in the order in which they are."""
        for g, group in enumerate(groups):
            for a in self._turned(group):
                for h in self._after(groups, g):
                    yield from (((g, a), (h, b)) for b in self._turned(groups[h]))

    def _batch(self, board: LibraryBoard, inputs: dict[str, Tensor], labels: Tensor | None, valid: int) -> list[float]:
        """Sums over a batch's images: of the base, then of each choice of each group, then of pairs of choices."""
        groups, widest = board.library.space.groups, self.base == "widest"
        real = real_outputs(board.library.state.model)

        def total(outputs: Sequence[Tensor]) -> float:
            return summed(self.metric, [outputs[i][:valid].double() for i in real], references, labels)

        board.turn([None] * len(groups), rest=False)
        outputs, values = board.run(inputs)
        references = [outputs[i][:valid].double() for i in real]
        for reference in references:
            check_finite(reference)
        rest: int | None = 0 if widest else None
        if widest:
            board.turn([0] * len(groups))
            outputs, values = board.run(inputs)
        found, both = [total(outputs) if widest else 0.0], []
        for g, group in enumerate(groups):
            known = board.unchanged(values, group.name)
            if widest:
                found.append(found[0])
            for choice in self._turned(group):
                board.turn_group(group.name, choice, weights_only=self.weights_only)
                outputs, turned = board.run(inputs, known)
                found.append(total(outputs))
                for h in self._after(groups, g):
                    both += [total(ys) for ys in self._also(board, inputs, turned, groups[h])]
                    board.turn_group(groups[h].name, rest)
            board.turn_group(group.name, rest)
        return [*found, *both]

    def _also(
        self, board: LibraryBoard, inputs: dict[str, Tensor], values: Values, group: Group
    ) -> Iterator[Sequence[Tensor]]:
        """Outputs with a second group at each of its choices, beside what is turned already."""
        known = board.unchanged(values, group.name)
        for choice in self._turned(group):
            board.turn_group(group.name, choice, weights_only=self.weights_only)
            yield board.run(inputs, known)[0]


class Whole:
    """The loss of whole networks of a library: the mean of a metric over images, each assignment one pass.

    Args:
        library: what networks are put together of.
        batches: images.
        metric: a number for each image.
        kept: what was measured before.
    """

    def __init__(self, library: Library, batches: Batches, metric: Metric, kept: Kept) -> None:
        self.batches, self.metric, self.kept = batches, metric, kept
        self.board = LibraryBoard(library)
        self.real = real_outputs(library.state.model)
        self.references: list[list[Tensor]] = []

    def __call__(self, choices: Choices) -> float:
        """The loss with these choices."""
        found = self.kept.once(f"network {' '.join(map(str, choices))}", lambda: self._sums(choices, ()))
        return float(found[0])

    def around(self, choices: Choices, moves: Sequence[tuple[int, int]]) -> list[float]:
        """The loss with each move alone, `(group, its choice)`; what a move does not reach is not run again."""
        name = f"around {' '.join(map(str, choices))}: {' '.join(f'{g}-{c}' for g, c in moves)}"
        return [float(loss) for loss in self.kept.once(name, lambda: self._sums(choices, moves))[1:]]

    def _sums(self, choices: Choices, moves: Sequence[tuple[int, int]]) -> list[float]:
        """Means over images, with these choices and with each move."""
        if not self.references:
            self.board.turn([None] * len(choices), rest=False)
            self.references = [self._run(batch)[0] for batch in self.batches]
        sums = np.zeros(1 + len(moves))
        groups = self.board.library.space.groups
        for batch, reference in zip(self.batches, self.references, strict=True):
            labels = None if batch.labels is None else torch.from_numpy(np.asarray(batch.labels))
            self.board.turn(choices)
            outputs, values = self._run(batch)
            sums[0] += summed(self.metric, outputs, reference, labels)
            for i, (g, choice) in enumerate(moves, 1):
                known = self.board.unchanged(values, groups[g].name)
                self.board.turn_group(groups[g].name, choice)
                sums[i] += summed(self.metric, self._run(batch, known)[0], reference, labels)
                self.board.turn_group(groups[g].name, choices[g])
        return (sums / len(self.batches)).tolist()

    def _run(self, batch: Batch, known: Values | None = None) -> tuple[list[Tensor], Values]:
        inputs = {key: torch.from_numpy(array) for key, array in batch.inputs.items()}
        outputs, values = self.board.run(inputs, known)
        return [outputs[i][: batch.valid].double() for i in self.real], values


def summed(metric: Metric, ys: Sequence[Tensor], references: Sequence[Tensor], labels: Tensor | None) -> float:
    """A metric over all outputs and images."""
    return sum(float(metric(y, reference, labels).sum()) for y, reference in zip(ys, references, strict=True))


def scores_output(model: ir.Model) -> int:
    """The output that labels tell of: the only one of real numbers.

    Raises:
        InputError: there are several.
    """
    first, *others = real_outputs(model)
    if others:
        raise InputError(
            "network",
            f"gives {1 + len(others)} outputs, and labels tell of one",
            "a network of one output",
            "use sqnr",
        )
    return first


def usual_method(model: ir.Model) -> str:
    """What measures a network if nothing is said: `kl` where all outputs are `[batch, classes]`, else `sqnr`."""
    shapes = [model.graph.outputs[i].shape for i in real_outputs(model)]
    return "kl" if all(shape is not None and len(shape) == 2 for shape in shapes) else "sqnr"


def check_finite(y: Tensor) -> None:
    """Refuse outputs that are no numbers.

    Raises:
        InputError: NaN or infinity.
    """
    if not torch.isfinite(y).all():
        raise InputError("network", "NaN or infinity among its outputs", "finite values", "check weights and data")


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


def by_divergence(y: Tensor, reference: Tensor, labels: Tensor | None) -> Tensor:
    """`divergence` as a metric, for measures that have none of their own; labels are not looked at."""
    return divergence(y, reference)
