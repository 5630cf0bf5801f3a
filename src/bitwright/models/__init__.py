"""Reference networks, written from their papers, with seeded initial weights: for tests, training and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwright.lookup import Row, lookup

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.models.initialise import Network

MODELS = {
    "resnet18": Row("bitwright.models.resnet:resnet18", "ResNet-18 for ImageNet, torchvision's layout"),
    "resnet50": Row("bitwright.models.resnet:resnet50", "ResNet-50 v1.5 for ImageNet, torchvision's layout"),
    "resnet20": Row("bitwright.models.resnet:resnet20", "ResNet-20 for CIFAR, option A shortcuts"),
    "resnet56": Row("bitwright.models.resnet:resnet56", "ResNet-56 for CIFAR, option A shortcuts"),
    "resnet110": Row("bitwright.models.resnet:resnet110", "ResNet-110 for CIFAR, option A shortcuts"),
    "mobilenet_v2": Row("bitwright.models.mobilenetv2:mobilenet_v2", "MobileNetV2 1.0, torchvision's layout"),
    "digits_cnn": Row("bitwright.models.digits_cnn:digits_cnn", "the demo's network for digits of 8x8 pixels"),
    "small_residual": Row("bitwright.models.small:small_residual", "test network: additions, bottleneck"),
    "small_inverted_residual": Row(
        "bitwright.models.small:small_inverted_residual", "test network: depthwise convolutions, ReLU6"
    ),
    "small_inception": Row("bitwright.models.small:small_inception", "test network: concatenated branches, pooling"),
    "small_conv_transpose": Row(
        "bitwright.models.small:small_conv_transpose", "test network: transposed convolutions"
    ),
    "small_squeeze_excite": Row("bitwright.models.small:small_squeeze_excite", "test network: gates, hard swish"),
    "small_dense": Row("bitwright.models.small:small_dense", "test network: nested concatenations, batch norm first"),
    "small_shuffle": Row("bitwright.models.small:small_shuffle", "test network: channel shuffle, grouped convolution"),
    "small_unet": Row("bitwright.models.small:small_unet", "test network: skip connections, resize"),
    "small_vit": Row("bitwright.models.small_attention:small_vit", "test network: vision transformer of one block"),
    "small_bert": Row("bitwright.models.small_attention:small_bert", "test network: BERT of one block"),
}


def build(name: str, *, seed: int = 0) -> Network:
    """The network of this name, in eval mode, with the initial weights of this seed.

    Raises:
        InputError: there is no network of this name.

    Example:
        >>> build("resnet20").input_shape
        (3, 32, 32)
    """
    network: Network = lookup(MODELS, name, "model").load()(seed=seed)
    return network


def example(model: str | Network, batch: int = 2, seed: int = 0) -> Tensor:
    """A random input `[batch, *input_shape]`: normal float32, or int64 token numbers.

    Raises:
        InputError: there is no network of this name.

    Example:
        >>> example("digits_cnn", batch=3).shape
        torch.Size([3, 1, 8, 8])
    """
    import torch  # only here: the table of names costs no import

    network = build(model) if isinstance(model, str) else model
    draw = torch.Generator().manual_seed(seed)
    if network.vocabulary is not None:
        return torch.randint(network.vocabulary, (batch, *network.input_shape), generator=draw)
    return torch.randn(batch, *network.input_shape, generator=draw)
