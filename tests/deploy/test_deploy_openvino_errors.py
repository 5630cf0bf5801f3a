"""OpenVINO that is not there, and files that it cannot run: told in one line."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.deploy.runtimes.openvino import OpenVino
from bitwright.errors import BitwrightError, InputError

ASSETS = Path(__file__).parents[1] / "assets"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **settings: Any) -> Any:
        if name.partition(".")[0] == "openvino":
            raise ImportError(name)
        return real(name, *args, **settings)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(BitwrightError, match=r'is not installed; .*pip install "bitwright\[openvino\]"'):
        OpenVino(ASSETS / "digits.onnx")


def test_a_file_that_it_cannot_load_or_run_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"broken.onnx: OpenVINO .* cannot load it") as told:
        OpenVino(tmp_path / "broken.onnx")
    assert "\n" not in str(told.value)
    loaded = OpenVino(ASSETS / "digits.onnx")
    with pytest.raises(InputError, match=r"cannot run it: .*a network that takes image \[1, 1, 5, 5\]"):
        loaded.run({"image": np.zeros((1, 1, 5, 5), np.float32)[:, :, :, :]})
