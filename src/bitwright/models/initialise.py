"""Seeded initial weights, and the base class of our networks.

Source: K. He et al., "Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn


class Network(nn.Module):
    """A network that says what it reads.

    Attributes:
        input_shape: the shape of one input, without the batch axis.
        vocabulary: None for float inputs; else inputs are int64 token numbers below it.
    """

    input_shape: tuple[int, ...]
    vocabulary: int | None = None


N = TypeVar("N", bound=Network)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers follow `seed` inside, and are as they were afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def initialised(network: N) -> N:
    """The network with He's weights, as ResNet's authors train it, in eval mode.

    Convolutions `w ~ N(0, 2 / fan_out)`, linear layers `w ~ N(0, 1 / fan_in)`, biases 0, gamma 1, beta 0. Batch norm's
    statistics are those of one batch of random inputs, so that signals neither vanish nor explode in eval mode
    (with mean 0 and variance 1, each residual addition doubles the variance: 2^54 in ResNet-110).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels / module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    _measure_batchnorm(network)
    return network.eval()


def _measure_batchnorm(network: Network) -> None:
    """Batch norm's mean and variance from 8 random images, of at most 64x64 pixels to be quick."""
    channels, *size = network.input_shape
    images = torch.randn(8, channels, *(min(side, 64) for side in size))
    batchnorms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in batchnorms]
    for module in batchnorms:
        module.momentum = 1.0  # the batch replaces what was there
    with torch.no_grad():
        network.train()(images)
    for module, momentum in zip(batchnorms, momenta, strict=True):
        module.momentum = momentum
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.zero_()


def randomised(network: N) -> N:
    """The network with random numbers wherever a trained one has some, in eval mode; nothing is 0 or 1 by default.

    Weights `N(0, 2 / fan_in)`, biases `N(0, 0.1^2)`, batch norm: gamma in 0.5 to 1.5 and each seventh negative, beta
    and mean `N(0, 0.3^2)`, variance in 0.5 to 1.5. Negative gammas are rare, but trained networks have them.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            # transposed: the weight is [in, out, h, w], and with stride = kernel each output sees one tap
            transposed = isinstance(module, nn.ConvTranspose2d)
            fan_in = module.weight.shape[0] if transposed else module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            with torch.no_grad():
                module.weight[3::7] *= -1
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval()
