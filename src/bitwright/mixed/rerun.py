"""The same batches through a board again and again, groups turned in between: each from the last cut before the turn.

A cut is a place in the program between two of its nodes. What nodes before it computed and nodes behind it read is
kept there for every batch: one map of a network without shortcuts, two inside a block. A walk that turns groups in any
order computes half of its passes so, with cuts enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from bitwright.mixed.board import LibraryBoard
from bitwright.ptq.diagnosis.switches import Values, depending

#: Cuts of a program at most: with sixteen, a turn computes a thirty-second of a pass too much on average.
MOST_CUTS = 16


class Rerun:
    """A board that keeps values of its batches at cuts.

    Args:
        board: its switches are turned by nobody else.
        images: how many pass altogether, of all batches.
        memory: bytes that kept values may take.
    """

    def __init__(self, board: LibraryBoard, images: int, memory: float) -> None:
        self.board, self.images, self.memory = board, images, memory
        self._nodes = list(board.program.module.graph.nodes)
        # The others are constants, and cost nothing.
        self._computed = depending(self._nodes[:-1], lambda node: node.op == "placeholder")
        place = {node: i for i, node in enumerate(self._nodes)}
        self._first = {
            group.name: min(place[node] for node in board.after(group.name) if node in self._computed)
            for group in board.library.space.groups
        }
        self._at: tuple[list[int | None], bool] | None = None
        self._cuts: dict[int, list[fx.Node]] | None = None
        self._kept: dict[Any, dict[int, Values]] = {}

    def turn(self, choices: Sequence[int | None], rest: bool = True) -> None:
        """As the board's; what is kept behind a group that changes is forgotten."""
        first: float = 0
        if self._at is not None and self._at[1] == rest:
            pairs = zip(self.board.library.space.groups, self._at[0], choices, strict=True)
            first = min((self._first[group.name] for group, old, new in pairs if old != new), default=math.inf)
        for cuts in self._kept.values():
            for cut in [cut for cut in cuts if cut > first]:
                del cuts[cut]
        self._at = list(choices), rest
        self.board.turn(choices, rest)

    def run(self, batch: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Outputs; None for those that were computed before the cut, and are what they were in the run before. The
        last is always computed.

        Args:
            batch: by what it is known.
            inputs: the same each time.
        """
        kept = self._kept.setdefault(batch, {})
        start = max(kept, default=0)
        known: dict[fx.Node, Any] = dict.fromkeys(node for node in self._nodes[:start] if node in self._computed)
        if start:
            known |= kept[start]
        outputs, values = self.board.run(inputs, known)
        if self._cuts is None:
            rows = len(next(iter(inputs.values())))
            cuts = self._placed({node: _bytes(values[node]) / rows for node in self._computed})
            self._cuts = {cut: self._live(cut) for cut in cuts}
        for cut, live in self._cuts.items():
            if cut > start:
                kept[cut] = {node: values[node] for node in live}
        return outputs

    def _live(self, cut: int) -> list[fx.Node]:
        """What nodes from the cut on read of those before it; the output, which gives what there is, reads nothing."""
        behind = {node for node in self._nodes[cut:] if node.op != "output"}
        return [node for node in self._nodes[:cut] if node in self._computed and not behind.isdisjoint(node.users)]

    def _placed(self, each: Mapping[fx.Node, float]) -> list[int]:
        """Cuts that fit and skip most nodes, over turns of each group alone; `each`: bytes of an image.

        Of few to many cuts, evenly over what is computed and each where least is kept, the cheapest that fit.
        """
        given: Any = self._nodes[-1].args[0]
        last = self._nodes.index(given[-1])
        places = [i for i in range(1, last + 1) if self._nodes[i] in self._computed]
        takes = {i: sum(each[node] for node in self._live(i)) * self.images for i in places}
        best: list[int] = []
        for count in range(1, min(MOST_CUTS, len(places)) + 1):
            spans = [places[len(places) * k // count : len(places) * (k + 1) // count] for k in range(count)]
            cuts, taken = [], 0.0
            for cut in sorted((min(span, key=lambda i: (takes[i], -i)) for span in spans), key=lambda i: takes[i]):
                taken += takes[cut]
                cuts += [cut] if taken <= self.memory else []
            best = max(best, sorted(cuts), key=self._skipped)
        return best

    def _skipped(self, cuts: Sequence[int]) -> int:
        """Nodes before the last cut that holds, of turns of each group alone."""
        return sum(max((cut for cut in cuts if cut <= first), default=0) for first in self._first.values())


def _bytes(value: Any) -> int:
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0
