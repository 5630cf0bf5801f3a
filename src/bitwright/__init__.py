"""bitwright turns a trained network into a small, fast integer network, and proves what that cost.

The names below are the public interface. They are loaded when used: `import bitwright` imports no heavy package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright.errors import BitwrightError as BitwrightError
    from bitwright.errors import GoalError as GoalError
    from bitwright.errors import InputError as InputError
    from bitwright.errors import UnsupportedError as UnsupportedError
    from bitwright.verbs.open_search import pareto as pareto
    from bitwright.verbs.open_search import search as search
    from bitwright.verbs.quantized import Quantized as Quantized
    from bitwright.verbs.quantized import load as load
    from bitwright.verbs.quantized import quantize as quantize

__version__ = "0.1.0"

_HOMES = {
    "BitwrightError": "bitwright.errors",
    "GoalError": "bitwright.errors",
    "InputError": "bitwright.errors",
    "Quantized": "bitwright.verbs.quantized",
    "UnsupportedError": "bitwright.errors",
    "load": "bitwright.verbs.quantized",
    "pareto": "bitwright.verbs.open_search",
    "quantize": "bitwright.verbs.quantized",
    "search": "bitwright.verbs.open_search",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
