"""The reference networks: size, shape, seeds, and that the numbers of trained networks fit them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.models import MODELS, build, example
from bitwright.models.initialise import Network

SMALL = [name for name in MODELS if name.startswith("small_")]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_are_those_of_the_papers() -> None:
    assert parameters(build("resnet18")) == 11_689_512
    assert parameters(build("resnet50")) == 25_557_032
    assert parameters(build("mobilenet_v2")) == 3_504_872


@pytest.mark.parametrize(("name", "layers", "weights"), [("resnet20", 20, 268_336), ("resnet56", 56, 848_944)])
def test_cifar_networks_have_their_weights(name: str, layers: int, weights: int) -> None:
    modules = [m for m in build(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(modules) == layers  # shortcuts have none
    assert sum(m.weight.numel() for m in modules) == weights


def test_resnet110_has_110_layers() -> None:
    model = build("resnet110")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == 110


@pytest.mark.parametrize("name", MODELS)
def test_each_network_runs_in_eval_mode(name: str) -> None:
    model = build(name)
    assert not any(module.training for module in model.modules())
    if model.input_shape[-1] == 224:
        model.input_shape = (3, 64, 64)  # quicker; only the pooling sees it
    with torch.no_grad():
        y = model(example(model))
    assert y.shape[0] == 2 and y.isfinite().all()
    assert 0.1 < y.std() < 20  # the signal neither vanished nor exploded
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("name", ["resnet20", "digits_cnn", *SMALL])
def test_weights_follow_the_seed_and_leave_torchs_random_numbers_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build(name, seed=1), build(name, seed=1), build(name, seed=2)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)]
    assert all(same)
    weights = [(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.ndim > 1]
    assert not any(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_have_no_default_numbers(name: str) -> None:
    """Nothing is 0 or 1 everywhere, so that a forgotten bias, gamma or mean changes the output."""
    model = build(name)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        assert value.std() > 0.01, key
    assert parameters(model) < 10_000
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_var is not None and norm.running_var.min() > 0.4
    if norms:
        gammas = torch.cat([norm.weight for norm in norms])
        assert 0 < (gammas < 0).float().mean() < 0.25


def test_example_follows_shape_type_and_seed() -> None:
    x = example("resnet20", batch=3, seed=1)
    assert x.shape == (3, 3, 32, 32) and x.dtype == torch.float32
    assert torch.equal(x, example(build("resnet20"), batch=3, seed=1))
    assert not torch.equal(x, example("resnet20", batch=3, seed=2))
    tokens = example("small_bert", batch=50)
    assert tokens.dtype == torch.int64 and tokens.shape == (50, 12)
    assert (int(tokens.min()), int(tokens.max())) == (0, 39)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(InputError, match=r"model 'resnet51': there is no model .*; did you mean 'resnet"):
        build("resnet51")


def test_the_number_of_classes_is_free() -> None:
    from bitwright.models.mobilenetv2 import mobilenet_v2
    from bitwright.models.resnet import resnet18, resnet110

    for model, width in ((resnet18(classes=7), 512), (resnet110(classes=7), 64), (mobilenet_v2(classes=7), 1280)):
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        assert last.weight.shape == (7, width)


# Structure, against what the papers say.


def strides(model: nn.Module, kernel: int) -> list[str]:
    """Names of the convolutions with this kernel and stride 2."""
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return [name for name, m in convs if m.kernel_size == (kernel, kernel) and m.stride == (2, 2)]


def test_resnet50_is_version_one_and_a_half() -> None:
    model = build("resnet50")
    assert strides(model, 3) == [f"layer{stage}.0.conv2" for stage in (2, 3, 4)]
    assert strides(model, 1) == [f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)]


def test_torchvisions_names() -> None:
    keys = build("resnet50").state_dict().keys()
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.bn3.bias", "fc.bias"} <= keys
    keys = build("mobilenet_v2").state_dict().keys()
    expected = {"features.0.0.weight", "features.1.conv.1.weight", "features.17.conv.3.bias", "classifier.1.weight"}
    assert expected <= keys


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    from bitwright.models.resnet import Downsample

    x = torch.arange(2 * 16 * 4 * 4.0).reshape(2, 16, 4, 4)
    y = Downsample(16, 32)(x)
    assert y.shape == (2, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert (y[:, :8] == 0).all() and (y[:, 24:] == 0).all()


def test_inverted_residuals_add_only_where_shapes_allow_it() -> None:
    from bitwright.models.mobilenetv2 import InvertedResidual

    model = build("mobilenet_v2")
    residual = [m.residual for m in model.modules() if isinstance(m, InvertedResidual)]
    assert len(residual) == 17 and sum(residual) == 10


def test_channel_shuffle_interleaves_the_halves() -> None:
    from bitwright.models.small import ShuffleUnit

    unit = ShuffleUnit(8).eval()
    x = torch.rand(1, 8, 2, 2)
    with torch.no_grad():
        y = unit(x)
        assert torch.equal(y[:, 0::2], x[:, :4])
        assert torch.equal(y[:, 1::2], unit.branch(x[:, 4:]))


def test_attention_is_the_formula() -> None:
    from bitwright.models.small_attention import Attention

    layer = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    with torch.no_grad():
        q, k, v = (f(x).reshape(2, 5, 3, 4).transpose(1, 2) for f in (layer.query, layer.key, layer.value))
        expected = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
        torch.testing.assert_close(layer(x), layer.out(expected), rtol=0, atol=1e-6)


def test_a_network_says_what_it_reads() -> None:
    assert all(isinstance(build(name), Network) for name in SMALL)
