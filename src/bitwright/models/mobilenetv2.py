"""MobileNetV2 with width 1.0; parameter names and layout are torchvision's, so that its state dict fits.

Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018,
https://arxiv.org/abs/1801.04381.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitwright.models.initialise import Network, initialised, seeded

# Table 2 of the paper: expansion, output channels, how many blocks, stride of the first.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, `min(max(x, 0), 6)`."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, 3x3 depthwise, 1x1 without activation; `+ x` where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([conv_bn_relu6(inputs, width, 1)] if expansion != 1 else []),
            conv_bn_relu6(width, width, 3, stride, groups=width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Network):
    """`[n, 3, 224, 224] -> [n, classes]`."""

    input_shape = (3, 224, 224)

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn_relu6(3, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, blocks, stride in BLOCKS:
            for number in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if number == 0 else 1, expansion))
                inputs = outputs
        layers.append(conv_bn_relu6(inputs, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def mobilenet_v2(*, classes: int = 1000, seed: int = 0) -> MobileNetV2:
    """MobileNetV2 1.0, in eval mode, with seeded initial weights."""
    with seeded(seed):
        return initialised(MobileNetV2(classes))
