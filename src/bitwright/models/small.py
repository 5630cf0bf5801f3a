"""Small convolutional networks, one for each pattern that quantization must get right; for tests, never trained.

Their numbers are random in every place (see `randomised`): a default of 0 or 1 would hide mistakes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.models.initialise import Network, randomised, seeded
from bitwright.models.mobilenetv2 import InvertedResidual, conv_bn_relu6
from bitwright.models.resnet import BasicBlock, Bottleneck, conv3x3


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, `max(x, 0)`."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Classifier(Network):
    """Some body `[n, 3, 16, 16] -> [n, channels, h, w]`, global average pooling, linear: `[n, 10]`."""

    input_shape = (3, 16, 16)

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.fc(self.avgpool(self.body(x)).flatten(1))


def small_residual(*, seed: int = 0) -> Network:
    """A residual block without and a bottleneck with a convolution in its shortcut (He et al., 2015)."""
    with seeded(seed):
        shortcut = nn.Sequential(nn.Conv2d(8, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32))
        body = nn.Sequential(conv_bn_relu(3, 8), BasicBlock(8, 8, 1, None), Bottleneck(8, 8, 2, shortcut))
        return randomised(Classifier(body, 32))


def small_inverted_residual(*, seed: int = 0) -> Network:
    """Inverted residual blocks with depthwise convolutions and ReLU6, with and without an addition."""
    with seeded(seed):
        body = nn.Sequential(
            conv_bn_relu6(3, 8, 3, stride=2), InvertedResidual(8, 8, 1, 4), InvertedResidual(8, 12, 2, 4)
        )
        return randomised(Classifier(body, 12))


class Inception(nn.Module):
    """Four branches, of 1x1, 3x3, factorised 5x5 and pooled 1x1, concatenated (Szegedy et al., 2014)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branch1 = conv_bn_relu(inputs, width, 1)
        self.branch2 = nn.Sequential(conv_bn_relu(inputs, width, 1), conv_bn_relu(width, width))
        self.branch3 = nn.Sequential(
            conv_bn_relu(inputs, width, 1), conv_bn_relu(width, width), conv_bn_relu(width, width)
        )
        self.branch4 = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), conv_bn_relu(inputs, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w] -> [n, 4 * width, h, w]`."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


def small_inception(*, seed: int = 0) -> Network:
    """Branches of different ranges that are concatenated, with max and average pooling."""
    with seeded(seed):
        body = nn.Sequential(conv_bn_relu(3, 8), Inception(8, 6), nn.MaxPool2d(2), Inception(24, 6))
        return randomised(Classifier(body, 24))


class ConvTransposeNet(Network):
    """Encoder and decoder with transposed convolutions; `[n, 3, 16, 16] -> [n, 2, 16, 16]`, one map for each class."""

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv_bn_relu(3, 8, stride=2), conv_bn_relu(8, 16, stride=2))
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.up2 = nn.ConvTranspose2d(8, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The score maps."""
        return self.up2(self.relu(self.bn(self.up1(self.encode(x)))))


def small_conv_transpose(*, seed: int = 0) -> Network:
    """Transposed convolutions, with batch norm and with a bias, with and without output padding."""
    with seeded(seed):
        return randomised(ConvTransposeNet())


class SqueezeExcite(nn.Module):
    """`x * hardsigmoid(conv2(relu(conv1(mean(x)))))`, one factor for each channel (Hu et al., 2017)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(width, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """`[n, c, h, w]`, rescaled."""
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


class GatedBlock(nn.Module):
    """MobileNetV3's block: expand, depthwise 5x5, squeeze and excite, project, `+ x` (Howard et al., 2019)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.Hardswish()
        self.gate = SqueezeExcite(width, width // 4)
        self.project = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.act(self.bn1(self.expand(x)))
        y = self.gate(self.act(self.bn2(self.depthwise(y))))
        return x + self.bn3(self.project(y))


def small_squeeze_excite(*, seed: int = 0) -> Network:
    """Squeeze and excite with hard sigmoid gates, and hard swish."""
    with seeded(seed):
        stem = nn.Sequential(conv3x3(3, 8, stride=2), nn.BatchNorm2d(8), nn.Hardswish())
        return randomised(Classifier(nn.Sequential(stem, GatedBlock(8, 16), GatedBlock(8, 24)), 8))


class DenseBlock(nn.Module):
    """Each layer reads all outputs before it: batch norm, ReLU, convolution, concatenate (Huang et al., 2016)."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv3x3(n, growth))
            for n in range(inputs, inputs + layers * growth, growth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[n, inputs, h, w] -> [n, inputs + layers * growth, h, w]`."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def small_dense(*, seed: int = 0) -> Network:
    """Nested concatenations, batch norm before the convolution, so that it cannot be folded backwards."""
    with seeded(seed):
        between = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2))
        last = nn.Sequential(nn.BatchNorm2d(18), nn.ReLU())
        body = nn.Sequential(conv3x3(3, 8), DenseBlock(8, 4, 3), between, DenseBlock(10, 4, 2), last)
        return randomised(Classifier(body, 18))


class ShuffleUnit(nn.Module):
    """Half of the channels pass through, half are convolved, then both are shuffled (Ma et al., 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_bn_relu(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_bn_relu(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[n, c, h, w]`, channel `2 i + k` from channel `i` of half `k`."""
        kept, changed = x.chunk(2, dim=1)
        y = torch.cat([kept, self.branch(changed)], dim=1)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def small_shuffle(*, seed: int = 0) -> Network:
    """Split, concatenate and shuffle channels; a grouped convolution."""
    with seeded(seed):
        body = nn.Sequential(
            conv_bn_relu(3, 16, stride=2), ShuffleUnit(16), ShuffleUnit(16), conv_bn_relu(16, 16, groups=4)
        )
        return randomised(Classifier(body, 16))


class UNet(Network):
    """Two levels down and up, with skip connections (Ronneberger et al., 2015); `[n, 3, 16, 16] -> [n, 2, 16, 16]`.

    One way up is a transposed convolution, the other nearest-neighbour resizing and a convolution.
    """

    input_shape = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_bn_relu(3, 8)
        self.down2 = conv_bn_relu(8, 12)
        self.bottom = conv_bn_relu(12, 16)
        self.pool = nn.MaxPool2d(2)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.join2 = conv_bn_relu(24, 12)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv_bn_relu(12, 8))
        self.join1 = conv_bn_relu(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The score maps."""
        a = self.down1(x)
        b = self.down2(self.pool(a))
        y = self.up2(self.bottom(self.pool(b)))
        y = self.up1(self.join2(torch.cat([b, y], dim=1)))
        return self.head(self.join1(torch.cat([a, y], dim=1)))


def small_unet(*, seed: int = 0) -> Network:
    """Skip connections over pooling, a transposed convolution, and a resize."""
    with seeded(seed):
        return randomised(UNet())
