"""`import bitwright` and `bitwright --help` stay cheap: neither torch nor a runtime is imported for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("matplotlib", "onnxruntime", "onnxscript", "openvino", "ray", "torch")


def heavy_imports(module: str, search: Path) -> list[str]:
    """The heavy packages that `import module` brings along, in a fresh interpreter that also looks in `search`."""
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(search)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["bitwright", "bitwright.cli"])
def test_importing_is_lean(module: str, root: Path) -> None:
    assert heavy_imports(module, root / "src") == []


# The check, checked.


def test_a_heavy_import_is_found(tmp_path: Path) -> None:
    for name in ("torch", "onnxscript"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "fat.py").write_text("import onnxscript\nimport deep\n")
    (tmp_path / "deep.py").write_text("import torch\n")
    assert heavy_imports("fat", tmp_path) == ["onnxscript", "torch"]


def test_a_module_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No module named 'absent'"):
        heavy_imports("absent", tmp_path)
