"""Every way in: files, archives, callables, modules, models in memory; and what each refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from bitwright.errors import GoalError, InputError, UnsupportedError
from bitwright.graph.export import from_module
from bitwright.graph.normalise import normalise
from bitwright.graph.open import call_named, open_model
from bitwright.graph.weights import check_data

Make = Callable[..., onnx.ModelProto]
Normal = Callable[..., np.ndarray]
Check = Callable[..., ir.Model]


class Net(torch.nn.Sequential):
    """One convolution, which brings its own example."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 4, 3))
        self.example_inputs = torch.zeros(2, 3, 8, 8)


def served(network: torch.nn.Module, model: ir.Model, normalised: Check) -> None:
    """The opened model computes what the module computes."""
    x = torch.randn(3, 3, 8, 8)
    name = model.graph.inputs[0].name or ""
    found = normalised(model, {name: x.numpy()})
    assert str(found.graph.inputs[0].shape) == "[batch,3,8,8]"
    weight = next(iter(network.state_dict().values()))
    assert any(
        np.array_equal(v.const_value.numpy(), weight) for v in found.graph.initializers.values() if v.const_value
    )


def test_modules(normalised: Check) -> None:
    network = Net()
    served(network, open_model(network), normalised)
    served(network[0], open_model(network[0], example=np.zeros((2, 3, 8, 8), np.float32)), normalised)


def test_programs_in_archives(tmp_path: Path, normalised: Check) -> None:
    network = Net().eval()
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    served(network, open_model(tmp_path / "net.pt2"), normalised)


def test_callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalised: Check) -> None:
    """The folder that one stands in is searched."""
    (tmp_path / "nets_for_test.py").write_text(
        "import torch\nnet = torch.nn.Conv2d(3, 4, 3)\n"
        "def alone():\n    return net\n"
        "def pair():\n    return net, torch.zeros(2, 3, 8, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    import sys

    model = open_model("nets_for_test:pair")
    served(sys.modules["nets_for_test"].net, model, normalised)
    served(sys.modules["nets_for_test"].net, open_model("nets_for_test:alone", torch.zeros(2, 3, 8, 8)), normalised)


def test_constants_that_are_listed_as_inputs(make: Make, normal: Normal, tmp_path: Path, normalised: Check) -> None:
    """Files of IR version 3: the network has one input, and data need not bring its weights."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    proto = make(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 6, 6]}, {"w": normal(4, 3, 3, 3)}, opset=8, ir_version=3,
                 listed=True)  # fmt: skip
    (tmp_path / "old.onnx").write_bytes(proto.SerializeToString())
    model = open_model(tmp_path / "old.onnx")
    assert [v.name for v in model.graph.inputs] == ["x"]
    onnx.checker.check_model(ir.to_proto(model))
    normalised(model, {"x": normal(2, 3, 8, 8)})


def test_a_model_in_any_file_name(make: Make, tmp_path: Path) -> None:
    """The content says what it is, not the name: onnx itself would read `.json` as text."""
    proto = make([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]})
    for name in ("net.json", "net.textproto", "net", "a:b"):
        (tmp_path / name).write_bytes(proto.SerializeToString())
        assert len(open_model(tmp_path / name).graph) == 1


@pytest.mark.parametrize("source", [3, object(), None, ["net.onnx"]])
def test_what_is_no_network(source: Any) -> None:
    with pytest.raises(
        InputError, match=r"model: is a .*; expected a path, 'module:callable', an nn.Module or an onnx_ir"
    ):
        open_model(source)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such file; expected an ONNX file"):
        open_model(tmp_path / "gone")
    with pytest.raises(InputError, match=r"is a folder; expected an ONNX file; name the \.onnx file inside it"):
        open_model(tmp_path)
    with pytest.raises(InputError, match="/dev/null: is not a regular file; expected an ONNX file"):
        open_model("/dev/null")


@pytest.mark.parametrize(
    ("forward", "example", "found"),
    [
        (lambda x: x if x.sum() > 0 else -x, torch.zeros(2, 3), r"exporter failed: .*data-dependent.*shape \[2, 3\]"),
        (lambda x: x @ torch.zeros(4, 4), torch.zeros(2, 3), r"exporter failed: .*shape"),
    ],
)
def test_modules_that_cannot_be_exported(
    forward: Any, example: torch.Tensor, found: str, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            """As the test says."""
            return forward(x)

    module = Odd().train()
    with pytest.raises(UnsupportedError, match=rf"Odd: PyTorch's {found}.*give another example batch, or export it"):
        from_module(module, example)
    assert module.training, "the mode is put back after a failure too"
    assert capfd.readouterr() == ("", ""), "what the exporter prints and logs is not for the user"


def test_examples_that_are_none() -> None:
    with pytest.raises(
        InputError, match=r"Conv2d: an nn\.Module without an example batch; expected one batch of input; pass"
    ):
        open_model(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(
        InputError, match=r"net: its example batch is a str .*; expected a tensor or a tuple of tensors"
    ):
        from_module(torch.nn.Conv2d(1, 1, 1), "image", where="net")


def test_errors_of_our_own_pass_through_callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "goal_for_test.py").write_text(
        "from bitwright.errors import GoalError\ndef net():\n    raise GoalError('net', 'was not trained')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    with pytest.raises(GoalError, match="net: was not trained"):
        call_named("goal_for_test:net", kind="model")


def test_data_that_do_not_fit_the_shape(make: Make, normal: Normal) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    proto = make(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 4, 6, 6]}, {"w": normal(4, 3, 3, 3)})
    check_data(Path("net.onnx"), proto)
    proto.graph.initializer[0].dims[0] = 5
    with pytest.raises(
        InputError, match=r"net\.onnx: weight 'w': has 432 bytes of data; expected 540 for its shape 5x3x3x3"
    ):
        check_data(Path("net.onnx"), proto)


def test_a_network_of_the_assets(assets: Path, normalised: Check) -> None:
    model = open_model(str(assets / "digits.onnx"))
    x = np.load(assets / "digits.npz")["image"][:3]
    assert len(normalise(model).graph) < len(model.graph) / 2
    normalised(model, {"image": x})
