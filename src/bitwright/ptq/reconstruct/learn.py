"""Learn one unit: draw images, lower the loss, let the rounding settle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from bitwright.lookup import lookup
from bitwright.plan.encoding import Encoding
from bitwright.ptq.reconstruct.adam import Adam, Group
from bitwright.ptq.reconstruct.loss import LOSSES, Loss, WholeLoss
from bitwright.ptq.reconstruct.method import Method
from bitwright.ptq.reconstruct.work import Work

#: Iterations between two looks at whether the rounding has settled.
LOOK = 50


@dataclass(frozen=True, kw_only=True)
class Learned:
    """How it went.

    Attributes:
        iterations: that were made.
        first, last: loss, as a mean over the first and the last `LOOK` iterations; without the regulariser.
        undecided: share of the weights that were between two codes at the end.
        diverged: the loss was not finite; nothing of what was learned is of use.
    """

    iterations: int
    first: float
    last: float
    undecided: float
    diverged: bool = False


def learn(work: Work, chunk: int) -> Learned:
    """Lower the unit's loss by moving its quantizers, in place.

    Args:
        work: the unit.
        chunk: images that pass at once; gradients of several chunks are added up to a batch.
    """
    method = work.method
    loss_of = lookup(LOSSES, method.loss, "loss").load()(work)
    optimiser = _optimiser(work, method)
    falling = [(group, group.rate) for group in optimiser.groups if group.falls]
    losses: list[float] = []
    done = 0
    for i in range(method.iterations):
        for rounding in work.weights.values():
            rounding.beta, rounding.time = method.beta_at(i), i / method.iterations
        for step in work.steps.values():
            step.time = i / method.iterations
        if work.coin is not None:
            work.coin.keep = method.keep_at(i)
        total = loss_of.step() if isinstance(loss_of, WholeLoss) else _descend(work, loss_of, chunk)
        if not math.isfinite(total):
            return Learned(iterations=i, first=_mean(losses[:LOOK]), last=total, undecided=1.0, diverged=True)
        losses.append(total)
        for group, rate in falling:
            group.rate = rate * (1 + math.cos(math.pi * i / method.iterations)) / 2
        optimiser.step()
        done = i + 1
        if done % LOOK == 0 and method.beta_at(i) is not None and not work.steps_move and not work.biases:
            if all(rounding.settled() for rounding in work.weights.values()):
                break
    undecided = max((rounding.undecided() for rounding in work.weights.values()), default=0.0)
    return Learned(iterations=done, first=_mean(losses[:LOOK]), last=_mean(losses[-LOOK:]), undecided=undecided)


def _descend(work: Work, loss_of: Loss, chunk: int) -> float:
    """The loss of a drawn batch, whose gradients are left; it passes in chunks."""
    batch, total = work.method.batch, 0.0
    chunks = max(1, batch // chunk)
    for part in range(chunks):
        index = torch.randint(len(work.target), (min(chunk, batch),), generator=work.generator)
        if part:  # the regulariser, which enters by its gradient, counts once
            for rounding in work.weights.values():
                rounding.beta = None
        loss = loss_of(index) / chunks
        loss.backward()
        total += float(loss.detach())
    return total


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _optimiser(work: Work, method: Method) -> Adam:
    """Adam with a rate for each kind of parameter; that of activation steps falls along a cosine, others may too."""
    rates = {"weight": method.rate, "weight step": method.weight_step_rate, "weight zero": method.weight_step_rate,
             "step": method.step_rate, "bias": method.bias_rate}  # fmt: skip
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for rounding in work.weights.values():
        for kind, parameter in rounding.groups().items():
            kind = kind.partition(":")[0]
            groups.setdefault((kind, _rate(rates[kind], kind, rounding.encoding, method)), []).append(parameter)
    for step in work.steps.values():
        if step.step.requires_grad:
            groups.setdefault(("step", _rate(rates["step"], "step", step.encoding, method)), []).append(step.step)
    for bias in work.biases.values():
        groups.setdefault(("bias", rates["bias"]), []).append(bias.shift)
    fall = {"step", *(kind for kind in rates if method.falling and kind.startswith("weight"))}
    return Adam(groups=[Group(parameters=p, rate=r, falls=kind in fall) for (kind, r), p in groups.items()])


def _rate(rate: float, kind: str, encoding: Encoding, method: Method) -> float:
    if kind not in ("step", "weight step") or not method.range_rates:
        return rate
    return rate / (encoding.spec.grid.qmax - encoding.spec.grid.qmin)
