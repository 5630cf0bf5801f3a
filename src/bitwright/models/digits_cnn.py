"""A network for the 8x8 digits that has what quantization meets in larger ones, and trains in seconds.

Batch norm, ReLU, a residual addition followed by ReLU, an inverted residual block with a depthwise convolution and
ReLU6, global average pooling, linear: 32 thousand parameters.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.models.initialise import Network, initialised, seeded
from bitwright.models.mobilenetv2 import InvertedResidual
from bitwright.models.resnet import BasicBlock, conv3x3

Labelled = tuple[np.ndarray, np.ndarray]  # images [n, 1, 8, 8] float32, labels [n] int64


class DigitsCNN(Network):
    """`[n, 1, 8, 8] -> [n, classes]`, eight layers with weights."""

    input_shape = (1, 8, 8)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv3x3(1, 24), nn.BatchNorm2d(24), nn.ReLU())
        self.residual = BasicBlock(24, 24, 1, None)
        self.down = nn.Sequential(conv3x3(24, 48, stride=2), nn.BatchNorm2d(48), nn.ReLU())
        self.inverted = InvertedResidual(48, 48, 1, expansion=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.inverted(self.down(self.residual(self.stem(x))))
        return self.fc(self.avgpool(x).flatten(1))


def digits_cnn(*, classes: int = 10, seed: int = 0) -> DigitsCNN:
    """The untrained network, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(DigitsCNN(classes))


def train_digits(
    model: nn.Module, train: Labelled, test: Labelled, *, seed: int = 0, epochs: int = 10, batch_size: int = 64
) -> float:
    """Train `model` in place, leave it in eval mode, and return its accuracy on `test` (a fraction).

    Cross entropy, Adam with the one-cycle schedule up to a learning rate of 0.01, images in an order that `seed`
    draws. The same seed on the same machine with as many threads gives the same weights.

    Source: L. Smith, N. Topin, "Super-Convergence", 2017, https://arxiv.org/abs/1708.07120.
    """
    images, labels = (torch.from_numpy(array) for array in train)
    draw = torch.Generator().manual_seed(seed)
    steps = len(images) // batch_size  # the rest of an epoch is left out: batch norm dislikes tiny batches
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=draw)
        for rows in order[: steps * batch_size].split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = model(torch.from_numpy(test[0])).argmax(dim=1)
    return float((predicted == torch.from_numpy(test[1])).double().mean())
