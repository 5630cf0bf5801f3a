"""Whether HAQ's reinforcement learning is worth a solver: its agent beside milp, chance and the optimum.

The digits network of eight layers, all 3^8 assignments of 8, 4 and 2 bits known (`exhaustive.py`), its labelled images
halved. An agent (DDPG) walks the layers, each action is a width, and the assignment, lowered until it is
within the bound, is measured in the network on one half; the best episode is its result. Beside it: `milp` with the
losses of `kl`, the same with tries of whole networks near it, and as many assignments by chance. Accuracies are of the
other half. Rows go to docs/results/haq_trial.jsonl and are not measured again; docs/results/haq_trial.md is written
from them.

Source: Wang et al., HAQ: Hardware-Aware Automated Quantization with Mixed Precision, CVPR 2019; settings as in its
published code (github.com/mit-han-lab/haq).
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from exhaustive import BITS, TRIES, WIDTHS, batches_of, check, digits, directly, divergences, opened, widths
from record import ROOT, Record, parser, write_page
from torch import Tensor, nn

from bitwright.data.batches import Batches
from bitwright.mixed.board import LibraryBoard
from bitwright.mixed.library import Library
from bitwright.mixed.problem import Additive, Choices, Problem
from bitwright.mixed.refine import refine
from bitwright.mixed.sensitivity.kl import Kl
from bitwright.mixed.solvers.milp import Milp
from bitwright.mixed.space import Space
from bitwright.verbs.open_search import open_search
from bitwright.verbs.terminal import Terminal

EPISODES, WARM_UP = 600, 20
HIDDEN, BATCH, MEMORY = 300, 64, 128  # MEMORY: episodes that are remembered
ACTOR_RATE, CRITIC_RATE, TAU, GAMMA = 1e-4, 1e-3, 0.01, 1.0
NOISE, NOISE_DECAY, BASELINE = 0.5, 0.99, 0.5
#: Seeds of an agent, and of chance.
SEEDS = (0, 1, 2)
MILP, TRIED = "milp, kl", f"milp, kl, {TRIES} tries"
AGENTS = ("agent, accuracy", "agent, divergence", "agent, log of divergence")
CHANCE = ("chance, what fits", "chance, lowered to fit")
METHODS = (MILP, TRIED, *CHANCE, *AGENTS)
COLUMNS = ["seed", "bits", "method", "draw", "ratio", "measured", "until milp", "accuracy", "best accuracy"]
MARK = "<!-- written by benchmarks/haq_trial.py from haq_trial.jsonl -->"


class Agent:
    """DDPG: an actor gives the action of a state, a critic the return of both; each with a copy that follows slowly.

    Args:
        states: numbers of a state.
        steps: actions of an episode.
        seed: of weights, noise and memory.
    """

    def __init__(self, states: int, steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        self.actor, self.critic = nn.Sequential(*layers(states), nn.Sigmoid()), nn.Sequential(*layers(states + 1))
        self.slow_actor, self.slow_critic = deepcopy(self.actor), deepcopy(self.critic)
        self.actor_steps = torch.optim.Adam(self.actor.parameters(), ACTOR_RATE, fused=True)
        self.critic_steps = torch.optim.Adam(self.critic.parameters(), CRITIC_RATE, fused=True)
        self.memory = torch.zeros(MEMORY * steps, 2 * states + 3)
        self.splits = (states, 1, 1, states, 1)
        self.remembered = 0
        self.baseline: float | None = None

    def action(self, state: Tensor, episode: int) -> float:
        """Of the actor, with normal noise that is drawn again outside 0 to 1; by chance while it warms up."""
        if episode < WARM_UP:
            return float(self.random.random())
        with torch.no_grad():
            mean = float(self.actor(state))
        deviation = NOISE * NOISE_DECAY ** (episode - WARM_UP)
        while not 0 <= (drawn := self.random.normal(mean, deviation)) <= 1:
            pass
        return float(drawn)

    def remember(self, state: Tensor, action: float, reward: float, after: Tensor, last: bool) -> None:
        """One step of an episode."""
        row = torch.cat([state, torch.tensor([action, reward]), after, torch.tensor([float(not last)])])
        self.memory[self.remembered % len(self.memory)] = row
        self.remembered += 1

    def learn(self) -> None:
        """One update of both networks; rewards are counted from their moving average."""
        known = min(self.remembered, len(self.memory))
        picked = self.memory[self.random.choice(known, min(BATCH, known), replace=False)]
        state, action, reward, after, goes_on = picked.split(self.splits, 1)
        mean = float(reward.mean())
        self.baseline = mean if self.baseline is None else self.baseline + BASELINE * (mean - self.baseline)
        with torch.no_grad():
            later = self.slow_critic(torch.cat([after, self.slow_actor(after)], 1))
            target = reward - self.baseline + GAMMA * goes_on * later
        self.critic_steps.zero_grad()
        nn.functional.mse_loss(self.critic(torch.cat([state, action], 1)), target).backward()
        self.critic_steps.step()
        self.critic.requires_grad_(False)
        self.actor_steps.zero_grad()
        (-self.critic(torch.cat([state, self.actor(state)], 1)).mean()).backward()
        self.actor_steps.step()
        self.critic.requires_grad_(True)
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data.lerp_(new.data, TAU)


def layers(inputs: int) -> list[nn.Module]:
    """Two hidden layers and one output."""
    return [nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)]


def described(space: Space) -> Tensor:
    """`[layer, 10]`: what HAQ tells of a layer, each from 0 to 1 over the layers; the last is the action before it."""
    rows = []
    for i, group in enumerate(space.groups):
        region = space.products[group.name][0].region
        assert region.weight is not None and region.weight.shape is not None and region.inputs[0].shape is not None
        attributes = region.op.attributes
        out, inputs, *_ = region.weight.shape.numpy()
        kernel, stride = (attributes.get_ints(name, [1])[0] for name in ("kernel_shape", "strides"))
        pixels = math.prod(map(int, region.inputs[0].shape[2:]))
        depthwise, of_weight = float(region.kind == "DepthwiseConv"), 1.0
        inputs *= attributes.get_int("group", 1)
        rows.append([depthwise, inputs, out, stride, kernel, group.parameters, pixels, i, of_weight])
    table = torch.tensor(rows)
    low, high = table.amin(0), table.amax(0)
    scaled = (table - low) / torch.where(high > low, high - low, torch.ones_like(low))
    return torch.cat([scaled, torch.ones(len(rows), 1)], 1)


def lowered(problem: Problem, choices: Choices) -> Choices:
    """An assignment brought within the limits: a choice down at a time, from the last layer to the first, around."""
    made = list(choices)
    while not problem.fits(tuple(made)):
        for g in reversed(range(len(made))):
            made[g] = min(made[g] + 1, problem.sizes[g] - 1)
            if problem.fits(tuple(made)):
                break
    return tuple(made)


def chosen_at(action: float, size: int) -> int:
    """The choice of an action: 0 is the narrowest, which is the last one; each has the same part of 0 to 1."""
    return size - 1 - min(int(size * action), size - 1)


def episodes(problem: Problem, table: Tensor, reward: Callable[[Choices], float], seed: int) -> Iterator[Choices]:
    """The assignment of each episode of an agent that learns."""
    agent, steps = Agent(table.shape[1], len(table), seed), len(table)
    for episode in range(EPISODES):
        states, actions, drawn = table.clone(), [], []
        for g, size in enumerate(problem.sizes):
            actions.append(agent.action(states[g], episode))
            drawn.append(chosen_at(actions[-1], size))
            if g + 1 < steps:
                states[g + 1, -1] = 1 - drawn[-1] / (size - 1)
        choices = lowered(problem, tuple(drawn))
        yield choices
        earned = reward(choices)
        for g in range(steps):
            agent.remember(states[g], actions[g], earned, states[min(g + 1, steps - 1)], g + 1 == steps)
            if episode >= WARM_UP:
                agent.learn()


def by_chance(problem: Problem, lower: bool, seed: int) -> Iterator[Choices]:
    """As many assignments as an agent has episodes, each layer by chance: drawn until it fits, or lowered."""
    random = np.random.default_rng(seed)
    for _ in range(EPISODES):
        drawn = tuple(int(random.integers(size)) for size in problem.sizes)
        while not lower and not problem.fits(drawn):
            drawn = tuple(int(random.integers(size)) for size in problem.sizes)
        yield lowered(problem, drawn)


@dataclass(kw_only=True)
class Bench:
    """A library, and what is known of its assignments on one half of the images."""

    library: Library
    half: Batches
    other: Batches
    found: dict[Choices, float]
    right: dict[Choices, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board, self.batches = LibraryBoard(self.library), list(batches_of(self.half))
        self.in_float = directly(self.library, self.half, None)[1]
        space = self.library.space
        values = (tuple(float(g.parameters * (width.weight or 0)) for width in g.choices) for g in space.groups)
        self.bits = Additive(values=tuple(values))
        self.sensitivity = Kl()
        self.loss = self.sensitivity(self.library, self.half)
        self.table = described(space)

    def problem(self, bits: int) -> Problem:
        """Losses of `kl`, and a bound on the mean bits of a weight."""
        space = self.library.space
        limits = {"bits": float(bits * space.parameters)}
        return Problem(groups=space.groups, loss=self.loss, costs={"bits": self.bits}, limits=limits)

    def accuracy(self, choices: Choices) -> float:
        """On the half that is measured, once for each assignment."""
        if choices not in self.right:
            self.board.turn(choices)
            hits = 0
            for inputs, labels in self.batches:
                hits += int((self.board.run(inputs)[0][0].argmax(1).numpy() == labels).sum())
            self.right[choices] = hits / len(self.half)
        return self.right[choices]

    def reward(self, method: str) -> Callable[[Choices], float]:
        """What an episode earns: a tenth of the points of accuracy against float, or less for divergence."""
        if method == AGENTS[0]:
            return lambda choices: 0.1 * 100 * (self.accuracy(choices) - self.in_float)
        if method == AGENTS[2]:
            return lambda choices: -math.log(self.found[choices])
        return lambda choices: -self.found[choices]


def searched(bench: Bench, problem: Problem, method: str, draw: int, good: float) -> tuple[Choices, dict[str, Any]]:
    """The best of an agent's or of chance's assignments, and after how many different ones it was as good as `good`.

    `early` is its divergence after as many as milp and its tries have passes.
    """
    reward = bench.reward(method)
    if method in AGENTS:
        drawn = episodes(problem, bench.table, reward, draw)
    else:
        drawn = by_chance(problem, method == CHANCE[1], draw)
    passes = bench.sensitivity.passes(bench.library.space) + TRIES
    seen: set[Choices] = set()
    best, until, early = next(drawn), None, math.inf
    for choices in (best, *drawn):
        seen.add(choices)
        best = max(best, choices, key=reward)
        if until is None and bench.found[best] <= good:
            until = len(seen)
        if len(seen) <= passes:
            early = bench.found[best]
    return best, {"measured": len(seen), "until milp": until, "early": early}


def by_losses(bench: Bench, problem: Problem, method: str) -> tuple[Choices, dict[str, Any]]:
    """What milp finds, with tries or without."""
    start, passes = Milp()(problem).best, bench.sensitivity.passes(bench.library.space)
    if method == MILP:
        return start.choices, {"measured": passes, "until milp": passes}
    chosen = refine(problem, start, bench.found.__getitem__, TRIES)[0].choices
    return chosen, {"measured": passes + TRIES, "until milp": passes}


def measure(seed: int, flags: Any, record: Record) -> None:
    """All rows of one way to halve the images that are missing."""
    of_draws = [(draw, method) for draw in SEEDS for method in METHODS if draw == 0 or method in AGENTS + CHANCE]
    missing = [
        key for draw, method in of_draws for bits in BITS
        if not record.known(**(key := {"seed": seed, "bits": bits, "method": method, "draw": draw}))
    ]  # fmt: skip
    if not missing:
        return
    network, calibration, labelled = digits(flags)
    with tempfile.TemporaryDirectory() as folder:
        searching = open_search(
            network, opened(network, calibration), terminal=Terminal(seed=seed), output=folder, method="kl",
            weights=WIDTHS, free_ends=True, target="onnxruntime-x64",
        )  # fmt: skip
        searching.stock()
    half, other = opened(network, labelled).halved(seed)
    found = divergences(searching.library, half)
    check(searching.library, half, found, seed)
    bench = Bench(library=searching.library, half=half, other=other, found=found)
    for key in missing:
        bits, method, draw = key["bits"], key["method"], key["draw"]
        problem = bench.problem(bits)
        fitting = {choices: lost for choices, lost in found.items() if problem.fits(choices)}
        best, good = min(fitting, key=fitting.__getitem__), found[by_losses(bench, problem, MILP)[0]]
        start = time.perf_counter()
        if method in (MILP, TRIED):
            chosen, cost = by_losses(bench, problem, method)
        else:
            chosen, cost = searched(bench, problem, method, draw, good)
        record.add(key | cost | {
            "choices": widths(searching.library, chosen), "best": widths(searching.library, best),
            "kl": found[chosen], "best kl": found[best], "milp kl": good, "ratio": found[chosen] / found[best],
            "rank": 1 + sum(lost < found[chosen] for lost in fitting.values()), "fitting": len(fitting),
            "measured accuracy": bench.accuracy(chosen), "accuracy": directly(searching.library, other, chosen)[1],
            "best accuracy": directly(searching.library, other, best)[1],
        })  # fmt: skip
        print(f"{time.perf_counter() - start:.0f} s", record.rows[-1], flush=True)


def main() -> None:
    """Measure what is missing, and write the page."""
    made = parser(__doc__ or "")
    made.add_argument("--seed", type=int, nargs="+", default=[0], help="ways to halve the images")
    made.add_argument("--page", action="store_true", help="only write docs/results/haq_trial.md from the rows")
    flags = made.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    record = Record(flags.output or ROOT / "docs/results/haq_trial.jsonl")
    for seed in flags.seed if not flags.page else ():
        measure(seed, flags, record)
    write_page(ROOT / "docs/results/haq_trial.md", MARK, "HAQ's agent beside milp, measured", tables(record.rows))
    record.show(COLUMNS)


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table of all methods over all cases, and one for each way to halve the images."""
    lines = [
        "", "| method | runs | measured | over the optimum: median | at worst | better than milp | as good | worse "
        "| until as good | early: median | accuracy, at worst |", "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if own:
            lines.append(summary(method, own))
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed]
        cases = {row["bits"]: row for row in mine}
        lines += ["", f"## Halved by seed {seed}", "", "| mean bits | optimum | its divergence | assignments within |",
                  "|---|---|---|---|"]  # fmt: skip
        lines += [f"| {bits} | {r['best']} | {r['best kl']:.4g} | {r['fitting']:,} |" for bits, r in cases.items()]
        lines += ["", "| method | " + " | ".join(f"{bits} bits" for bits in BITS) + " |", "|---|" + "---|" * len(BITS)]
        for method in METHODS:
            own = [row for row in mine if row["method"] == method]
            cells = [
                ", ".join(f"{r['ratio']:.3f} ({r['measured']})" for r in own if r["bits"] == bits) for bits in BITS
            ]  # fmt: skip
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def summary(method: str, own: list[dict[str, Any]]) -> str:
    """One method over all cases."""
    ratios = [row["ratio"] for row in own]
    signs = [int(np.sign(row["kl"] - row["milp kl"])) for row in own]
    until = [row["until milp"] for row in own if row["until milp"] is not None]
    early = [row["early"] / row["best kl"] for row in own if "early" in row]
    points = 100 * min(row["accuracy"] - row["best accuracy"] for row in own)
    cells = [
        method, len(own), round(statistics.median(row["measured"] for row in own)), f"{statistics.median(ratios):.3f}",
        f"{max(ratios):.3f}", signs.count(-1), signs.count(0), signs.count(1),
        f"{round(statistics.median(until))} ({len(until)} of {len(own)})" if until else "never",
        f"{statistics.median(early):.3f}" if early else "", f"{points:+.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
