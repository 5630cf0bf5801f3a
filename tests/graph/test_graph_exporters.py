"""Every reference network through both of PyTorch's exporters: opened, normalised, and the same function."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from bitwright.graph.export import from_module
from bitwright.graph.macs import count_macs, count_parameters
from bitwright.graph.normalise import normalise
from bitwright.graph.regions import find_regions
from bitwright.models import MODELS, build, example
from bitwright.models.initialise import Network

LARGE = {"resnet18", "resnet50", "resnet56", "resnet110", "mobilenet_v2"}
SMALL = [name for name in MODELS if name not in LARGE]
#: torch.export takes seconds for each network: these have every pattern that it writes in its own way.
TELLING = {"small_shuffle", "small_vit"}
pytestmark = pytest.mark.xdist_group("graph_exporters")  # they share what was exported


def slow_unless(chosen: Iterable[str], names: Iterable[str]) -> list[Any]:
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


#: Ops of shape arithmetic. One chain may stay: a class token is repeated for each image of the batch.
SHAPE_OPS = {"Shape", "Size", "ConstantOfShape", "Range", "Where", "Equal", "CastLike", "Cast", "Unsqueeze", "Squeeze"}
#: GELU is one op for the one exporter, and five for the other.
ATTENTION = ("small_vit", "small_bert")
Check = Callable[..., ir.Model]


@cache
def network(name: str) -> Network:
    model = build(name)
    if model.input_shape[-1] == 224:
        model.input_shape = (3, 64, 64)  # quicker; only the pooling sees it
    return model


@cache
def exported(name: str) -> ir.Model:
    return from_module(network(name), example(network(name)))


@cache
def traced(name: str, opset: int = 17, folding: bool = True) -> onnx.ModelProto:
    """Through the older exporter, by TorchScript."""
    file: Any = io.BytesIO()  # the annotation of the exporter knows paths only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter deprecates itself
        torch.onnx.export(
            network(name), (example(network(name)),), file, dynamo=False, opset_version=opset, input_names=["image"],
            do_constant_folding=folding, output_names=["scores"], dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def batches(name: str, key: str | None) -> list[dict[str, np.ndarray]]:
    return [{key or "": example(network(name), batch=n).numpy()} for n in (1, 3)]


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check_clean(name: str, model: ir.Model) -> None:
    """No shape arithmetic where the batch is the only size that is open."""
    arithmetic = [op for op in ops(model) if op in SHAPE_OPS or op.startswith(("Sequence", "Split"))]
    assert arithmetic == (["Shape"] if name == "small_vit" else [])
    for node in model.graph:
        if node.op_type == "Reshape":
            assert node.inputs[1] is not None and node.inputs[1].is_initializer()
    assert count_parameters(model) <= sum(p.numel() for p in network(name).parameters())


@pytest.mark.parametrize("name", slow_unless(TELLING, MODELS))
def test_modules_are_opened(name: str, normalised: Check) -> None:
    model = normalised(exported(name), *batches(name, exported(name).graph.inputs[0].name))
    check_clean(name, model)
    assert count_parameters(model) == sum(p.numel() for p in network(name).parameters())
    with torch.no_grad():
        expected = network(name)(example(network(name))).numpy()
    assert model.graph.outputs[0].shape is not None
    assert [*model.graph.outputs[0].shape][1:] == [*expected.shape][1:]


@pytest.mark.parametrize("name", slow_unless({*SMALL, "mobilenet_v2"}, MODELS))
def test_files_of_the_older_exporter_are_opened(name: str, normalised: Check) -> None:
    model = normalised(traced(name), *batches(name, "image"))
    check_clean(name, model)


@pytest.mark.parametrize(("opset", "folding"), [(13, True), (15, False), (18, False)])
@pytest.mark.parametrize("name", ["digits_cnn", "small_shuffle", "small_unet", "small_vit", "small_bert"])
def test_operator_sets_of_the_older_exporter(name: str, opset: int, folding: bool, normalised: Check) -> None:
    model = normalised(traced(name, opset, folding), *batches(name, "image"))
    check_clean(name, model)


def named(model: ir.Model) -> dict[str, str]:
    return {region.name: region.kind for region in find_regions(model)}


@pytest.mark.parametrize("name", slow_unless(TELLING, [name for name in SMALL if name not in ATTENTION]))
def test_regions_have_the_same_names_whoever_exported(name: str) -> None:
    ours = named(normalise(exported(name)))
    for folding in (True, False):
        theirs = named(normalise(ir.from_proto(traced(name, 17, folding))))
        # A module that is called again is `pool#2` here, and `pool_1` in the older exporter's own names.
        again = {key for key in theirs if "#" not in key and key not in ours}
        assert all(key.rpartition("_")[0] in ours and key[-1].isdigit() for key in again)
        assert {key: kind for key, kind in theirs.items() if key not in again} == {
            key: kind for key, kind in ours.items() if not (key.endswith("#2") and key not in theirs)
        }


@pytest.mark.parametrize("name", slow_unless(TELLING, SMALL))
def test_regions_of_weights_are_named_after_their_modules(name: str) -> None:
    modules = dict(network(name).named_modules())
    for model in (normalise(exported(name)), normalise(ir.from_proto(traced(name)))):
        regions = find_regions(model)
        assert len({region.name for region in regions}) == len(regions)
        weighted = [region.name for region in regions if region.weight is not None]
        layers = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd)]
        assert sorted(weighted) == sorted(layers)


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        ("resnet18", 1_814_073_344, 11_689_512),
        ("mobilenet_v2", 300_774_272, 3_504_872),
        pytest.param("resnet50", 4_089_184_256, 25_557_032, marks=pytest.mark.slow),
        ("resnet20", 40_551_040, 269_722),
    ],
)
def test_macs_are_those_of_the_papers(name: str, macs: int, parameters: int) -> None:
    opened = ir.from_proto(traced(name, 18, False))
    if name != "resnet20":  # traced at 64 x 64, which is in no constant of these networks
        opened.graph.inputs[0].shape = ir.Shape(["N", 3, 224, 224])
    model = normalise(opened)
    assert count_macs(model) == macs
    assert count_parameters(model) == parameters
    assert sum(region.macs for region in find_regions(model)) == macs


def test_macs_follow_the_size_of_the_input() -> None:
    def macs(size: int) -> int:
        model = ir.from_proto(traced("resnet20", 18, False))
        model.graph.inputs[0].shape = ir.Shape(["N", 3, size, size])
        return count_macs(normalise(model))

    assert macs(64) - 640 == 4 * (macs(32) - 640)  # all but the linear layer


def test_a_normalised_network_is_normal(normalised: Check) -> None:
    for name in ("small_shuffle", "small_vit"):
        once = normalise(exported(name))
        twice = normalised(once, *batches(name, once.graph.inputs[0].name))
        assert ops(once) == ops(twice)
        assert [r.name for r in find_regions(once)] == [r.name for r in find_regions(twice)]


def test_the_opened_model_is_left_as_it_is() -> None:
    model = exported("small_shuffle")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    normalise(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_no_trace_of_the_exporters_machine_is_kept() -> None:
    for model in (normalise(exported("small_shuffle")), normalise(ir.from_proto(traced("small_shuffle")))):
        text = ir.to_proto(model).SerializeToString()
        assert b"stack_trace" not in text and b".py" not in text


class Mixed(torch.nn.Module):
    """Two inputs, of which one is a mask of whole numbers."""

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> Any:
        """Both outputs."""
        return image * mask.unsqueeze(1), image.mean((2, 3))


def test_modules_of_several_inputs(normalised: Check) -> None:
    image, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 8, 8))
    model = normalised(from_module(Mixed(), (image, mask)), {"image": image.numpy(), "mask": mask.numpy()})
    assert [v.name for v in model.graph.inputs] == ["image", "mask"]
    assert ops(model).count("GlobalAveragePool") == 1


def test_a_batch_of_one_as_example_does_not_fix_the_batch(normalised: Check) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 6)).astype(np.float32)
    model = normalised(from_module(network, torch.zeros(1, 3, 6, 6)), {"input": x})
    assert str(model.graph.inputs[0].shape) == "[batch,3,6,6]"


def test_training_modes_are_put_back() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.5))
    network.train()
    network[1].eval()  # frozen statistics
    from_module(network, torch.zeros(2, 1, 4, 4))
    assert [m.training for m in network.modules()] == [True, True, False, True]
