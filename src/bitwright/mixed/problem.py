"""What a search chooses from: groups of sites that move together, what each choice loses, and what it costs.

    minimise    loss(c) = rest + sum_g loss[g][c_g] + sum_(g,h) pair_gh[c_g][c_h] + sum_i due_i [some (g, c_g) in S_i]
    subject to  cost_k(c) <= limit_k    for every limited cost k, each of the same form as the loss

`c_g` is the index of the choice of group g. That losses add up is an assumption of the methods that measure them: what
is chosen has to be evaluated. Only the terms `pair` tell how the losses of two groups depend on each other. What is
due once, such as a table in the file that all weights of a width are unpacked with, is a term `due`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bitwright.cost.workload import FLOAT
from bitwright.errors import InputError
from bitwright.lookup import lookup

#: One choice index per group.
Choices = tuple[int, ...]
#: Per group, a number for each of its choices.
Values = tuple[tuple[float, ...], ...]
#: Of two groups g < h: `[choices of g][choices of h]`.
Pairs = Mapping[tuple[int, int], Values]
#: A sum is within a limit that it exceeds by this part of it: limits are sums and products of floats themselves.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Width:
    """Bits of the weights and activations of a group; None where it has none, or they do not move.

    A group whose weights have FLOAT bits runs in float.

    Raises:
        InputError: a width that is not 1 to 16, or FLOAT of weights.

    Example:
        >>> str(Width(4, 8)), str(Width(4, None))
        ('W4A8', 'W4')
    """

    weight: int | None
    activation: int | None

    def __post_init__(self) -> None:
        for bits in (self.weight, self.activation):
            if bits is not None and not 1 <= bits <= 16 and not (self.in_float and bits == self.weight):
                raise InputError("width", f"{bits} bits", "1 to 16 bits")

    @property
    def in_float(self) -> bool:
        """Whether the group runs in float."""
        return self.weight == FLOAT

    def __str__(self) -> str:
        if self.in_float:
            return "float"
        parts = [
            f"{letter}{bits}" for letter, bits in (("W", self.weight), ("A", self.activation)) if bits is not None
        ]
        return "".join(parts) or "float"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Sites that move together: one layer's weight and input, or layers whose widths are tied.

    Attributes:
        name: unique in its problem.
        choices: what it can have; where a walk begins, at the first.
        parameters: weights of its layers.

    Example:
        >>> Group(name="conv1", choices=(Width(8, 8), Width(4, 4))).choices[1].weight
        4
    """

    name: str
    choices: tuple[Width, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Due:
    """A number that is due once, if any of these choices is made.

    Attributes:
        cost: 0 or more.
        choices: pairs of a group and a choice of it.

    Example:
        >>> Due(3.0, frozenset({(0, 1), (1, 1)})).of((0, 1)), Due(3.0, frozenset({(0, 1)})).of((0, 1))
        (3.0, 0.0)
    """

    cost: float
    choices: frozenset[tuple[int, int]]

    def of(self, choices: Sequence[int]) -> float:
        """What these choices owe."""
        return self.cost if any(choices[g] == c for g, c in self.choices) else 0.0


@dataclass(frozen=True, kw_only=True)
class Additive:
    """A number of an assignment that is a sum over groups, over some pairs of groups, and over what is due once.

    Attributes:
        values: `[group][choice]`.
        rest: what does not depend on the choices.
        pairs: `(g, h)`, g < h, to `[choice of g][choice of h]`.
        once: what is due once, however many groups make it due.

    Example:
        >>> size = Additive(values=((8.0, 4.0), (80.0, 40.0)), rest=100.0)
        >>> size.of((1, 0)), size.of((1, 1))
        (184.0, 144.0)
        >>> Additive(values=((0.0, 1.0), (0.0, 1.0)), pairs={(0, 1): ((0.0, 0.0), (0.0, 0.5))}).of((1, 1))
        2.5
        >>> table = Due(3.0, frozenset({(0, 1), (1, 1)}))
        >>> [Additive(values=size.values, once=(table,)).of(choices) for choices in [(0, 0), (0, 1), (1, 1)]]
        [88.0, 51.0, 47.0]
    """

    values: Values
    rest: float = 0.0
    pairs: Pairs = field(default_factory=dict)
    once: tuple[Due, ...] = ()

    def of(self, choices: Sequence[int]) -> float:
        """The number of this assignment, rounded once."""
        terms = [row[c] for row, c in zip(self.values, choices, strict=True)]
        terms += [matrix[choices[g]][choices[h]] for (g, h), matrix in self.pairs.items()]
        return math.fsum([*terms, *(due.of(choices) for due in self.once), self.rest])

    def check(self, what: str, sizes: Sequence[int]) -> None:
        """Refuse a table that does not fit groups of so many choices, or that holds what is no finite number.

        A negative number that is due once is refused too: nothing that a file has once makes it smaller.

        Raises:
            InputError: names `what`, the group or pair, and what was expected.

        Example:
            >>> Additive(values=((1.0,),)).check("loss", [2])
            Traceback (most recent call last):
            bitwright.errors.InputError: loss: 1 values for group 0; expected 2, one a choice
        """
        if len(self.values) != len(sizes):
            raise InputError(what, f"values for {len(self.values)} groups", f"{len(sizes)}, one row a group")
        for g, (row, size) in enumerate(zip(self.values, sizes, strict=True)):
            if len(row) != size:
                raise InputError(what, f"{len(row)} values for group {g}", f"{size}, one a choice")
        for (g, h), matrix in self.pairs.items():
            if not 0 <= g < h < len(sizes):
                raise InputError(what, f"a pair of groups {g} and {h}", f"0 <= g < h < {len(sizes)}")
            if [len(row) for row in matrix] != [sizes[h]] * sizes[g]:
                raise InputError(what, f"a matrix of another shape for groups {g} and {h}", f"{sizes[g]} x {sizes[h]}")
        for due in self.once:
            for g, c in sorted(due.choices):
                if not (0 <= g < len(sizes) and 0 <= c < sizes[g]):
                    raise InputError(what, f"something due for choice {c} of group {g}", "choices that are there")
            if not 0 <= due.cost < math.inf:
                raise InputError(what, f"{due.cost:g} due once", "0 or more")
        matrices = [row for matrix in self.pairs.values() for row in matrix]
        if not all(math.isfinite(value) for row in [*self.values, *matrices, (self.rest,)] for value in row):
            raise InputError(what, "a value that is not finite", "numbers", "leave such choices out")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One choice per group, with its loss and every cost.

    Example:
        >>> Assignment(choices=(0, 1), loss=0.5, costs={"size": 12.0}).costs["size"]
        12.0
    """

    choices: Choices
    loss: float
    costs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Groups, what their choices lose and cost, and how much all together may cost.

    Attributes:
        groups: what moves.
        loss: what is to be small, as a sensitivity measured it.
        costs: by name.
        limits: the most that a cost may be; costs without one are only told.

    Raises:
        InputError: a table that does not fit the groups, groups of one name or without a choice, or a limit on a cost
            that is not there.

    Example:
        >>> groups = tuple(Group(name=name, choices=(Width(8, 8), Width(4, 4))) for name in ("a", "b"))
        >>> size = Additive(values=((8.0, 4.0), (80.0, 40.0)))
        >>> loss = Additive(values=((0.0, 1.0), (0.0, 2.0)))
        >>> problem = Problem(groups=groups, loss=loss, costs={"size": size}, limits={"size": 50.0})
        >>> problem.assignment((0, 1))
        Assignment(choices=(0, 1), loss=2.0, costs={'size': 48.0})
        >>> problem.fits((0, 1)), problem.fits((1, 0))
        (True, False)
    """

    groups: tuple[Group, ...]
    loss: Additive
    costs: Mapping[str, Additive]
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names) or not names:
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError("groups", f"{twice} twice" if twice else "none", "groups of different names")
        for group in self.groups:
            if not group.choices:
                raise InputError(f"group {group.name!r}", "no choice", "one or more")
        self.loss.check("loss", self.sizes)
        for name, cost in self.costs.items():
            cost.check(f"cost {name!r}", self.sizes)
        for name, limit in self.limits.items():
            lookup(self.costs, name, "cost")
            if math.isnan(limit):
                raise InputError(f"limit of {name!r}", "no number", "a number")

    @property
    def sizes(self) -> Choices:
        """How many choices each group has."""
        return tuple(len(group.choices) for group in self.groups)

    def assignment(self, choices: Sequence[int]) -> Assignment:
        """These choices with their loss and costs."""
        costs = {name: cost.of(choices) for name, cost in self.costs.items()}
        return Assignment(choices=tuple(map(int, choices)), loss=self.loss.of(choices), costs=costs)

    def fits(self, choices: Sequence[int]) -> bool:
        """Whether these choices are within all limits."""
        return all(within(self.costs[name].of(choices), limit) for name, limit in self.limits.items())

    def widths(self, assignment: Assignment) -> dict[str, Width]:
        """Group -> what it was given."""
        pairs = zip(self.groups, assignment.choices, strict=True)
        return {group.name: group.choices[choice] for group, choice in pairs}


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found.

    Attributes:
        best: the assignment of the least loss within the limits that it found.
        points: greedy: all steps; genetic: each time that something better was found; pareto: the front.
        bound: no assignment within the limits loses less; None where the solver does not know. A proven `best` has a
            loss of `bound`, up to 1e-10 of the largest value that mattered.
        notes: what the reader has to know, such as that time was up.
    """

    best: Assignment
    points: tuple[Assignment, ...] = ()
    bound: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether nothing within the limits loses less."""
        return self.bound is not None and self.best.loss <= self.bound


def within(value: float, limit: float) -> bool:
    """`value <= limit`, but for the rounding of the limit itself.

    Example:
        >>> within(0.3, 3 * 0.1), within(3 * 0.1, 0.3), within(0.31, 0.3)
        (True, True, False)
    """
    return value <= limit + ROUNDING * abs(limit)
