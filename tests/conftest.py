"""What every room's tests share: the same random numbers each run, and the roots of the project."""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).parents[1]
#: Networks and images of `real_data`.
SHARED = ROOT.parent / "shared" / "data"
#: Names the folder of exported networks.
EXPORTED = "BITWRIGHT_EXPORTED"

# The same examples every time: a check that fails now and then is not a check. Time limits belong to benchmarks.
settings.register_profile("bitwright", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("bitwright")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what their module has made run in one process: in two it would be made twice.

    Those that need the data beside the project are skipped where there are none.
    """
    for item in items:
        if item.get_closest_marker("real_data") and not SHARED.exists():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/data"))
        made = getattr(item, "_fixtureinfo", None)
        scopes = {} if made is None else {found[-1].scope for found in made.name2fixturedefs.values()}
        if "module" in scopes and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


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


@pytest.fixture(autouse=True)
def _signatures_read_once() -> None:
    """PyTorch's exporter parses the sources of all its ops anew for each export, which is half a second."""
    if "onnxscript.values" in sys.modules:
        traced = sys.modules["onnxscript.values"].TracedOnnxFunction
        if not hasattr(traced.function_ir.fget, "cache_info"):
            traced.function_ir = property(cache(traced.function_ir.fget))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets(root: Path) -> Path:
    """The small files that tests and doc examples open."""
    return root / "tests" / "assets"


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exported networks are: one folder for all processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    given = os.environ.get(EXPORTED)  # by a test that runs tests
    folder = Path(given) if given else (own.parent if own.name.startswith("popen-") else own) / "exported"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def exported(exported_folder: Path) -> Callable[[str], Path]:
    """`exported("small_residual")`: the file of a reference network, which takes seconds to export."""

    def found(name: str) -> Path:
        path = exported_folder / f"{name}.onnx"
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
