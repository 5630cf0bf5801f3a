"""Solvers of a search: each is called with a `Problem` and gives a `Solution`."""

from __future__ import annotations

from bitwright.lookup import Row

SOLVERS: dict[str, Row] = {
    "greedy": Row(
        "bitwright.mixed.solvers.greedy:Greedy", "the step that loses least for what it saves, again and again"
    ),
    "milp": Row("bitwright.mixed.solvers.milp:Milp", "the least loss within all budgets, proven"),
    "genetic": Row("bitwright.mixed.solvers.genetic:Genetic", "crossover and mutation of the best assignments so far"),
    "pareto": Row("bitwright.mixed.solvers.pareto:Pareto", "a front of assignments over one or two costs"),
}
