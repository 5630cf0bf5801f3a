"""What every room's tests share: the same random numbers each run, and the roots of the project."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# The same examples every time: a check that fails now and then is not a check. Time limits belong to benchmarks.
settings.register_profile("bitwright", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bitwright")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Every test starts from the same global seeds; torch is seeded only where the test has imported it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _own_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's `GENERATOR` starts anew for every test: no draw depends on which tests ran before it."""
    found = getattr(request.module, "GENERATOR", None)
    if found is not None:
        monkeypatch.setattr(request.module, "GENERATOR", copy.deepcopy(found))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets(root: Path) -> Path:
    """The small files that tests and doc examples open."""
    return root / "tests" / "assets"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`exported("small_residual")`: the file of a reference network, which takes seconds to export.

    Each is made once for all processes that run tests.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if own.name.startswith("popen-") else own) / "exported"
    folder.mkdir(exist_ok=True)

    def found(name: str) -> Path:
        path = folder / f"{name}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                import onnx_ir as ir

                from bitwright.graph.export import from_module
                from bitwright.models import build, example

                part = path.with_suffix(".part")
                ir.save(from_module(build(name), example(name)), part)
                part.rename(path)
        return path

    return found


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed does not depend on the width of a terminal (worker processes are told one)."""
    monkeypatch.delenv("COLUMNS", raising=False)
