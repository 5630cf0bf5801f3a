"""The command line in this process, and the files that its commands are tried on."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import bitwright as bw
from bitwright.cli import main
from bitwright.models.digits_cnn import train_digits


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout; a command that fails before its result prints none."""
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("verify", path, ...)` runs a command in this process."""

    def run(*arguments: object) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        return Ran(code=code, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture(scope="session")
def float_file(assets: Path) -> Path:
    """The trained digits network."""
    return assets / "digits.onnx"


@pytest.fixture(scope="session")
def test_images(assets: Path) -> Path:
    """360 labelled digits."""
    return assets / "digits.npz"


@pytest.fixture(scope="session")
def int8_file(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network in integers, for this machine."""
    path = tmp_path_factory.mktemp("int8") / "digits.int8.onnx"
    bw.quantize(assets / "digits.onnx", assets / "digits_calib.npz").save(path)
    return path


@pytest.fixture(scope="session")
def scores(float_file: Path, int8_file: Path, test_images: Path) -> dict[str, np.ndarray]:
    """Logits of all test images straight from the runtime, `[360, 10]`, of both files; and the labels."""
    data = np.load(test_images)
    found = {"labels": data["labels"]}
    for name, path in (("float", float_file), ("int8", int8_file)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (found[name],) = session.run(None, {"image": data["image"]})
    return found


@pytest.fixture(scope="session")
def demo(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """What `bitwright demo --json --quiet` printed, and its folder; the training is cut short."""
    from bitwright.verbs import demo as module

    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_digits", lambda *a, **k: train_digits(*a, **{**k, "epochs": 2}))
        patch.setattr(module, "ROUNDS", 1)
        return cli("demo", "--output", folder, "--json", "--quiet"), folder


@pytest.fixture
def image_file(tmp_path: Path, test_images: Path) -> Callable[..., Path]:
    """`image_file(index, name)`: a test digit as a grey PNG of 8x8 pixels."""

    def write(index: int, name: str = "digit.png") -> Path:
        pixels = np.load(test_images)["image"][index, 0]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[str, str], Path]:
    """`onnx_file(body, signature)`: a small network from ONNX's own textual form."""

    def write(body: str, signature: str, name: str = "small.onnx") -> Path:
        text = f'<ir_version: 10, opset_import: ["" : 21]> small {signature} {{ {body} }}'
        path = tmp_path / name
        onnx.save(onnx.parser.parse_model(text), str(path))
        return path

    return write
