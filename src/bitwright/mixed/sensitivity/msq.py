"""MSQ: the layer that adds least to what the features tell goes one choice down, in the network as it is now.

    Acc_i  = accuracy of a classifier imprinted on the features of layer i of the quantized network
    Diff_i = |Acc_i - Acc_(i-1)|,  i = 2 .. N
    lower the group of the least Diff by one choice; measure again

Templates are made of the calibration images and tried on the validation images, both passed through the network with
the choices so far; `imprinting.py` has the formulas, `points.py` the layers and `greedy.lowered` the loop.

Choices made where the source is silent or contradicts itself:

- Acc counts images, so equal scores are frequent: the group with the most parameters goes first, then the first.
- The absolute value makes a layer that loses accuracy important; `signed` lowers it first.
- The first layer has no Diff and is never lowered; the last is fixed by the space, as the first.
- A group of several layers has the largest Diff among them.
- A feature is read as the next layer reads it: at the width of that layer's activation where activations move.
- Quantizing anew in every step is replaced by the library, which has every group calibrated at every width; the
  networks that are chosen are quantized by the whole recipe afterwards.
- The source augments calibration images before it imprints: `augment`. Half the images are mirrored, which digits are
  not made for.
- Images: 10 of each class to calibrate, and 2,000 and more of the training set to validate; Acc is no finer than one
  of them.

Source: MSQ, Post-training Mixed-accuracy Quantization Algorithm Based on Pyramid-pooled Weight Imprinting, section
3.3, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast, get_args

import numpy as np
import torch
from torch import Tensor

from bitwright.data.batches import Batch, Batches
from bitwright.errors import InputError, UnsupportedError
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.kept import Kept
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive, Choices
from bitwright.mixed.rerun import Rerun
from bitwright.mixed.sensitivity.imprinting import (
    Confidence,
    Fusion,
    Weighting,
    augmented,
    class_sums,
    confidences,
    fused,
    pyramid,
    similarities,
    templates,
)
from bitwright.mixed.sensitivity.measure import check_finite, scores_output
from bitwright.mixed.sensitivity.points import of_groups, points, tied
from bitwright.mixed.solvers.greedy import Step, lowered, steps_down
from bitwright.mixed.space import Space
from bitwright.pipeline import Progress, State
from bitwright.ptq.reconstruct.method import bytes_of

#: Decimals of a difference of accuracies; one image of a million is 1e-6.
DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """What imprinted classifiers know, shares of the validation images.

    Attributes:
        printed: of each layer, scales weighted as printed.
        confidence: of each layer, the most certain scale counting most.
        network: of the network's own answers.
    """

    printed: tuple[float, ...]
    confidence: tuple[float, ...]
    network: float


@dataclass(frozen=True, kw_only=True)
class Msq:
    """An order of lowering by imprinted classifiers (module docstring).

    Args:
        pools: sizes that maps are averaged to.
        tau: inverse temperature of the softmax whose entropy weights the scales; 1 as printed.
        weighting: `printed`: the least certain scale counts most; `confidence`: the most certain one.
        fusion: `each` scale is asked with its own feature; `literal`, with its upsampled one; `fused`, one classifier
            of all scales side by side, without weights.
        confidence: a calibration image counts by the float network's probability of its `true` class, or of the
            `predicted` one.
        signed: `Diff_i = Acc_i - Acc_(i-1)`.
        augment: calibration images are cut out anew and mirrored by chance, in each step in the same way.
        seed: of `augment`.
        memory: bytes, as `2GiB`, of activations that are kept so that a step begins where it differs from the one
            before; no bound if empty. It changes no result.

    Raises:
        InputError: a setting out of its range.

    Example:
        >>> Msq().differences((0.5, 0.75, 0.625)), Msq(signed=True).differences((0.5, 0.75, 0.625))
        ((0.25, 0.125), (0.25, -0.125))
    """

    pools: tuple[int, ...] = (1, 2, 4)
    tau: float = 10.0
    weighting: Weighting = "printed"
    fusion: Fusion = "each"
    confidence: Confidence = "true"
    signed: bool = False
    augment: bool = False
    seed: int = 0
    memory: str = field(default="2GiB", repr=False)  # what was measured with another bound is the same

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.pools or any(not isinstance(d, int) or d < 1 for d in self.pools):
            raise InputError("msq.pools", f"is {self.pools}", "one or more whole numbers from 1 on", "use 1, 2, 4")
        if not self.tau > 0:
            raise InputError("msq.tau", f"is {self.tau}", "a number above 0", "use 10")
        for name, known in (("weighting", Weighting), ("fusion", Fusion), ("confidence", Confidence)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"msq.{name}", f"is {getattr(self, name)!r}", " or ".join(get_args(known)))
        bytes_of(self.memory, "msq.memory")

    def ties(self, state: State) -> list[tuple[str, ...]]:
        """The last layer of a block and the convolution of its shortcut have the same bits."""
        return tied(state)

    def passes(self, space: Space) -> float:
        """One for the float network, one for each step down to the last choice of all groups."""
        return 1 + sum(steps_down(group.choices) for group in space.groups)

    def differences(self, accuracies: Sequence[float]) -> tuple[float, ...]:
        """What each layer from the second on adds, N - 1 numbers."""
        # Equal numbers of images must be equal scores: 0.5 - 0.3 and 0.3 - 0.1 are not, in floats.
        found = [round(after - before, DIGITS) for before, after in itertools.pairwise(accuracies)]
        return tuple(found if self.signed else map(abs, found))

    def trajectory(
        self, library: Library, calibration: Batches, validation: Batches, costs: Mapping[str, Additive],
        limits: Mapping[str, float], kept: Kept | None = None, images_done: Progress | None = None,
    ) -> Iterator[Step]:  # fmt: skip
        """Algorithm 1: all steps from the widest network down to the limits.

        Every step is kept with its scores and accuracies before it is given.

        Raises:
            InputError: labels that are missing or no classes of the network, a network that gives no scores of
                classes, a shortcut that moves alone; see `lowered`, too.
            UnsupportedError: a layer that gives neither maps nor vectors.
        """
        check_labels(calibration)
        check_labels(validation)
        found = points(library.state.model)
        indices, held = of_groups(found, library.space)
        classifiers = Classifiers(self, library, calibration, validation, images_done)
        record = kept or Kept(None)

        def scores(choices: Choices) -> list[float]:
            name = f"choices {' '.join(map(str, choices))}"
            known = record.get(name)
            if known is None:
                measured = classifiers.measure(choices)
                differences = (0.0, *self.differences(getattr(measured, self.weighting)))
                of = [max((differences[i] for i in indices[g.name]), default=0.0) for g in library.space.groups]
                known = {"choices": choices, "scores": of, **dataclasses.asdict(measured)}
                record.put(name, known)
            return cast(list[float], known["scores"])

        return lowered(library.space.groups, costs, limits, scores, fixed=held)


class Classifiers:
    """The imprinted classifiers of all layers, made anew for each assignment.

    Args:
        msq: settings.
        library: what networks are put together of.
        calibration: labelled; templates are made of it.
        validation: labelled; templates are tried on it.
        images_done: told the images of each batch that has passed.
    """

    def __init__(
        self, msq: Msq, library: Library, calibration: Batches, validation: Batches,
        images_done: Progress | None = None,
    ) -> None:  # fmt: skip
        self.msq, self.library = msq, library
        self.calibration, self.validation = calibration, validation
        self.images_done = images_done
        self.points = points(library.state.model)
        logits = library.state.model.graph.outputs[scores_output(library.state.model)]
        self._gives_probabilities = getattr(logits.producer(), "op_type", "") == "Softmax"
        self.board = LibraryBoard(library, outputs=[*(point.feature for point in self.points), logits.name or ""])
        memory = bytes_of(msq.memory, "msq.memory")
        self.rerun = Rerun(self.board, len(calibration) + len(validation), math.inf if memory is None else memory)
        self._confidences: list[Tensor] = []
        self._classes = 0
        self._right = np.zeros((2, len(self.points)))

    def measure(self, choices: Choices | None) -> Accuracies:
        """Accuracies with these choices, None for the float network: templates of the calibration images, answers to
        the validation images.

        Raises:
            InputError: labels that are no classes of the network, outputs that are no finite scores of classes.
            UnsupportedError: a layer that gives neither maps nor vectors.
        """
        in_float = [None] * len(self.library.space.groups)
        if not self._confidences:
            self.board.turn(in_float, rest=False)
            self._confidences = [self._confidence(batch, i) for i, batch in enumerate(self.calibration)]
        self.rerun.turn(in_float if choices is None else choices, rest=choices is not None)
        weights = self._imprinted()
        self._right[:, list(weights)] = 0
        own = 0
        for number, batch in enumerate(self.validation):
            features, logits = self._features(batch, ("validation", number))
            labels = _labels(batch)
            self._check(logits, labels, self.validation)
            for i, scales in features.items():
                s = [similarities(e, w) for e, w in zip(scales, weights[i], strict=True)]
                for row, weighting in enumerate(get_args(Weighting)):
                    self._right[row, i] += int((fused(s, self.msq.tau, weighting).argmax(1) == labels).sum())
            own += int((logits.argmax(1) == labels).sum())
            self._done(batch)
        shares = (self._right / len(self.validation)).tolist()
        return Accuracies(printed=tuple(shares[0]), confidence=tuple(shares[1]), network=own / len(self.validation))

    def _imprinted(self) -> dict[int, list[Tensor]]:
        """Templates `[classes, length]` of each scale by the number of the layer, of layers that are computed anew."""
        sums: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for number, batch in enumerate(self.calibration):
            features, _ = self._features(batch, ("calibration", number), number)
            pair = self._confidences[number], _labels(batch)
            for i, scales in features.items():
                new = [class_sums(e, *pair, self._classes) for e in scales]
                for (a, total), (b, more) in zip(sums[i], new, strict=True) if i in sums else ():
                    a += b
                    total += more
                sums.setdefault(i, new)
            self._done(batch)
        return {i: [templates(*pair) for pair in of_layer] for i, of_layer in sums.items()}

    def _confidence(self, batch: Batch, number: int) -> Tensor:
        inputs = self._inputs(batch, number)
        (*features, logits), _ = self.board.run(inputs)
        for point, x in zip(self.points, features, strict=True):
            if len(x) != len(next(iter(inputs.values()))):
                raise UnsupportedError(
                    "msq", f"layer {point.layer!r}, which gives several rows an image", "maps or one vector an image",
                    "another sensitivity",
                )  # fmt: skip
        logits, labels = logits[: batch.valid], _labels(batch)
        self._classes = logits.shape[1] if logits.ndim == 2 else 0
        self._check(logits, labels, self.calibration)
        self._done(batch)
        probabilities = logits if self._gives_probabilities else logits.softmax(1)
        return confidences(probabilities, labels, self.msq.confidence)

    def _features(
        self, batch: Batch, name: tuple[str, int], number: int | None = None
    ) -> tuple[dict[int, list[Tensor]], Tensor]:
        """Features of every scale by the number of the layer, of layers that are computed anew; and the outputs.

        Args:
            batch: images.
            name: by which they are known.
            number: of a batch that may be augmented.
        """
        *features, logits = self.rerun.run(name, self._inputs(batch, number))
        v, msq = batch.valid, self.msq
        found = {i: pyramid(x[:v], msq.pools, msq.fusion) for i, x in enumerate(features) if x is not None}
        assert logits is not None  # the last output is always computed
        return found, logits[:v]

    def _inputs(self, batch: Batch, number: int | None) -> dict[str, Tensor]:
        inputs = {key: torch.from_numpy(array) for key, array in batch.inputs.items()}
        if self.msq.augment and number is not None:
            inputs = {key: self._augmented(x, number) for key, x in inputs.items()}
        return inputs

    def _augmented(self, x: Tensor, number: int) -> Tensor:
        if x.ndim != 4:
            raise InputError("msq.augment", f"an input of {x.ndim} dimensions", "images [batch, channels, y, x]")
        seed = int(np.random.default_rng((self.msq.seed, number)).integers(2**31))
        return augmented(x, torch.Generator().manual_seed(seed))

    def _check(self, logits: Tensor, labels: Tensor, batches: Batches) -> None:
        if logits.ndim != 2:
            raise InputError(
                "network", f"gives outputs of shape {list(logits.shape)}", "scores of classes, [batch, classes]",
                "use sqnr",
            )  # fmt: skip
        check_finite(logits)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise InputError(
                batches.source.name, f"has labels from {int(labels.min())} to {int(labels.max())}",
                f"0 to {self._classes - 1}, the classes of the network",
            )  # fmt: skip

    def _done(self, batch: Batch) -> None:
        if self.images_done is not None:
            self.images_done(batch.valid)


def check_labels(batches: Batches) -> None:
    """Whether every image has a class.

    Raises:
        InputError: no labels, or labels that are not one whole number an image.
    """
    labels = batches.require_labels()
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            batches.source.name, f"has labels of type {labels.dtype} and shape {list(labels.shape)}",
            "the number of a class for every image",
        )  # fmt: skip


def _labels(batch: Batch) -> Tensor:
    labels: Any = batch.labels
    return torch.from_numpy(np.asarray(labels, dtype=np.int64))
