"""Residual networks: ResNet-18 and ResNet-50 for ImageNet, ResNet-20, -56 and -110 for CIFAR.

Parameter names and layout are torchvision's (ImageNet) and those of the public CIFAR checkpoints, so that their state
dicts fit.

ResNet-50 is "v1.5": the 3x3 convolution of a bottleneck has the stride, in the paper the first 1x1 has it.
CIFAR networks have shortcuts of option A: every second pixel, new channels zero, no parameters.

Source: K. He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.models.initialise import Network, initialised, seeded


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width at stride 1; without bias, since batch norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Downsample(nn.Module):
    """Option A: every second pixel, and zeros for the new channels, half of them on either side.

    `[n, c, h, w] -> [n, outputs, h/2, w/2]`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        before = (outputs - inputs) // 2
        self.channels = (before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        """The shortcut's value."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *self.channels))


class BasicBlock(nn.Module):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`, two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3 (with the stride), 1x1 to four times as many; each with batch norm."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(Network):
    """The ImageNet form: 7x7 convolution, max pooling, four stages, global average pooling, linear.

    `[n, 3, 224, 224] -> [n, classes]`.
    """

    input_shape = (3, 224, 224)

    def __init__(self, block: Block, depths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for stage, depth in enumerate(depths):
            layer, inputs = _stage(block, inputs, 64 << stage, depth, stride=1 if stage == 0 else 2)
            self.add_module(f"layer{stage + 1}", layer)
        self.stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def _stage(block: Block, inputs: int, width: int, depth: int, stride: int) -> tuple[nn.Sequential, int]:
    """`depth` blocks of which the first changes size, and how many channels come out."""
    outputs = width * block.expansion
    blocks = []
    for number in range(depth):
        step = stride if number == 0 else 1
        downsample = None
        if step != 1 or inputs != outputs:
            downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, step, bias=False), nn.BatchNorm2d(outputs))
        blocks.append(block(inputs, width, step, downsample))
        inputs = outputs
    return nn.Sequential(*blocks), outputs


class CifarResNet(Network):
    """The CIFAR form of section 4.2: 3x3 convolution, three stages of 16, 32, 64 channels, `6 * blocks + 2` layers.

    `[n, 3, 32, 32] -> [n, classes]`.
    """

    input_shape = (3, 32, 32)

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._layer(16, 16, blocks)
        self.layer2 = self._layer(16, 32, blocks)
        self.layer3 = self._layer(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _layer(inputs: int, width: int, blocks: int) -> nn.Sequential:
        downsample = None if inputs == width else Downsample(inputs, width)
        first = BasicBlock(inputs, width, 1 if downsample is None else 2, downsample)
        return nn.Sequential(first, *(BasicBlock(width, width, 1, None) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


def resnet18(*, classes: int = 1000, seed: int = 0) -> ResNet:
    """ResNet-18, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(ResNet(BasicBlock, (2, 2, 2, 2), classes))


def resnet50(*, classes: int = 1000, seed: int = 0) -> ResNet:
    """ResNet-50 v1.5, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(ResNet(Bottleneck, (3, 4, 6, 3), classes))


def resnet20(*, classes: int = 10, seed: int = 0) -> CifarResNet:
    """ResNet-20 for CIFAR, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(CifarResNet(3, classes))


def resnet56(*, classes: int = 10, seed: int = 0) -> CifarResNet:
    """ResNet-56 for CIFAR, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(CifarResNet(9, classes))


def resnet110(*, classes: int = 10, seed: int = 0) -> CifarResNet:
    """ResNet-110 for CIFAR, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(CifarResNet(18, classes))
