"""An `nn.Module` as an `onnx_ir.Model`, through PyTorch's own exporter.

`optimize=False` keeps batch norm as it is in the module: the default folds it away, and the steps that need its
statistics would find none.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import contextmanager
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError


def from_module(module: Any, example: Any, where: str = "") -> ir.Model:
    """Export `module` in eval mode; the first dimension of every input becomes the batch.

    Args:
        module: a `torch.nn.Module`. Its training mode is put back afterwards.
        example: one batch: a tensor, or a tuple of tensors.
        where: what to call the module in errors.

    Raises:
        InputError: no module, or no example batch.
        UnsupportedError: the exporter cannot capture the module.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(
            "model", f"is a {type(module).__name__}", "a path, 'module:callable', an nn.Module or an onnx_ir.Model"
        )
    where = where or type(module).__name__
    example = example if example is not None else getattr(module, "example_inputs", None)
    if example is None:
        raise InputError(where, "an nn.Module without an example batch", "one batch of input", "pass example=...")
    batch = tuple(example) if isinstance(example, tuple | list) else (example,)
    # torch.export treats sizes 0 and 1 as constants: a batch of one would freeze the batch dimension.
    batch = tuple(torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x for x in batch)
    dimension = torch.export.Dim("batch", min=1)
    names = list(inspect.signature(module.forward).parameters)[: len(batch)]
    was_training = module.training
    module.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module, batch, dynamo=True, optimize=False, verbose=False, input_names=names,
                dynamic_shapes=tuple({0: dimension} if x.ndim else None for x in batch),
            )  # fmt: skip
    except Exception as error:
        raise UnsupportedError(
            where, f"PyTorch's exporter failed: {_first_line(error)}", "a module that torch.export can capture",
            "export it to ONNX yourself and pass the file",
        ) from error  # fmt: skip
    finally:
        module.train(was_training)
    return program.model


def from_exported_program(program: Any, where: str) -> ir.Model:
    """Export a `torch.export.ExportedProgram` (the contents of a `.pt2` file)."""
    import torch

    try:
        with _quiet():
            return torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).model
    except Exception as error:
        raise UnsupportedError(where, f"PyTorch's exporter failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs missing optional packages and warns of its own deprecations; neither is the user's doing."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
