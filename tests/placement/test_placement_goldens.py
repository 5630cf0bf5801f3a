"""Plans of whole networks, as text that is reviewed: one site a line.

A difference shows as a diff. Where it is wanted, write the files anew and look at what changed:
`BITWRIGHT_RENEW_GOLDEN=1 pytest tests/placement/test_placement_goldens.py`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from bitwright.placement.place import place
from bitwright.targets import TARGETS

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
RENEW = "BITWRIGHT_RENEW_GOLDEN"
SHARED = Path(__file__).parents[2].parent / "shared"
RESNET20 = SHARED / "data" / "models" / "resnet20_cifar10.onnx"
PLACED = ["onnxruntime-x64", "onnxruntime-x64-avx2"]
#: Exported once each: torch.export takes seconds, and what it gave is kept by the process that asked for it.
EXPORTED = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))
    for name in ("small_residual", "small_inverted_residual", "small_inception")
]
Fold = Callable[[str | Path], ir.Model]


def compare(name: str, text: str) -> None:
    """Hold a plan against its file; write the file where that is asked for."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get(RENEW):
        path.write_text(text)
    if not path.exists():
        pytest.fail(f"{path} is missing; write it with {RENEW}=1")
    expected = path.read_text()
    if text != expected:
        diff = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), str(path), "placed now", lineterm="", n=1
        )
        pytest.fail(
            f"the plan of {name} has changed; where that is wanted, write it anew with {RENEW}=1 and review the "
            "difference:\n" + "\n".join(diff), pytrace=False,
        )  # fmt: skip


@pytest.mark.parametrize("target", PLACED)
@pytest.mark.parametrize("name", EXPORTED)
def test_plans_of_exported_networks(name: str, target: str, folded: Fold) -> None:
    compare(f"{name}.{target}", place(folded(name), TARGETS[target].load()).plan.dumps())


@pytest.mark.parametrize("target", PLACED)
def test_plan_of_the_digits_network(target: str, folded: Fold, assets: Path) -> None:
    compare(f"digits.{target}", place(folded(assets / "digits.onnx"), TARGETS[target].load()).plan.dumps())


@pytest.mark.real_data
@pytest.mark.parametrize("target", PLACED)
def test_plan_of_resnet20(target: str, folded: Fold) -> None:
    compare(f"resnet20.{target}", place(folded(RESNET20), TARGETS[target].load()).plan.dumps())


# The check, checked.


def test_a_changed_plan_is_shown_as_a_diff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RENEW, raising=False)
    text = (GOLDEN / "digits.onnxruntime-x64.json").read_text()
    changed = text.replace('"image": {"kind": "quantized", "bits": 8}', '"image": {"kind": "quantized", "bits": 7}')
    with pytest.raises(pytest.fail.Exception, match=f'(?s){RENEW}=1.*\n\\+    "image": .*"bits": 7'):
        compare("digits.onnxruntime-x64", changed)
    with pytest.raises(pytest.fail.Exception, match=f"nothing.json is missing; write it with {RENEW}=1"):
        compare("nothing", text)
