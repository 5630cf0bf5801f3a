"""Adam: the numbers of `torch.optim`, at rates that change; and nothing of the compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from bitwright.ptq.reconstruct.adam import Adam, Group
from bitwright.ptq.reconstruct.pieces import PIECE


def test_the_numbers_are_those_of_torch() -> None:
    shapes = [(3, 4), (PIECE + 5,), ()]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    groups = [Group(parameters=ours[:2], rate=1e-2), Group(parameters=ours[2:], rate=3e-3)]
    mine = Adam(groups=groups)
    torchs = torch.optim.Adam([{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-3}])
    for _ in range(20):
        for group, other in zip(groups, torchs.param_groups, strict=True):
            group.rate = other["lr"] = other["lr"] * 0.9
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        mine.step()
        torchs.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
        assert p.grad is None


def test_a_parameter_without_a_gradient_stays() -> None:
    still, moved = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moved.grad = torch.ones(2)
    Adam(groups=[Group(parameters=[still, moved], rate=0.5)]).step()
    assert still.tolist() == [1.0, 1.0] and max(moved.tolist()) < 0.6


def test_learning_does_not_import_the_compiler() -> None:
    code = "import sys; import bitwright.ptq.reconstruct.learn; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
