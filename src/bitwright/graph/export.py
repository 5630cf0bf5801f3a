"""An `nn.Module` as an `onnx_ir.Model`, through PyTorch's own exporter.

`optimize=False` keeps batch norm as it is in the module: the default folds it away, and the steps that need its
statistics would find none.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir

from bitwright.errors import InputError, UnsupportedError, first_line


def from_module(module: Any, example: Any, where: str = "") -> ir.Model:
    """Export `module` in eval mode; the first dimension of every input becomes the batch.

    Args:
        module: a `torch.nn.Module`. The training mode of each of its modules is put back afterwards.
        example: one batch: a tensor or array, or a tuple of them; `module.example_inputs` if it is None.
        where: what to call the module in errors.

    Raises:
        InputError: no module, or no example batch.
        UnsupportedError: the exporter cannot capture the module.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(
            where or "model", f"is a {type(module).__name__}",
            "a path, 'module:callable', an nn.Module or an onnx_ir.Model",
        )  # fmt: skip
    where = where or type(module).__name__
    batch = _example_batch(example if example is not None else getattr(module, "example_inputs", None), where)
    # torch.export treats sizes 0 and 1 as constants: a batch of one would freeze the batch dimension.
    batch = tuple(torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x for x in batch)
    dimension = torch.export.Dim("batch", min=1)
    names = list(inspect.signature(module.forward).parameters)[: len(batch)]
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with quiet():
            program = torch.onnx.export(
                module, batch, dynamo=True, optimize=False, verbose=False, input_names=names,
                dynamic_shapes=tuple({0: dimension} if x.ndim else None for x in batch),
            )  # fmt: skip
    except Exception as error:
        raise UnsupportedError(
            where, f"PyTorch's exporter failed: {first_line(error.__cause__ or error)}",
            f"a module that torch.export captures with inputs of shape {', '.join(str(list(x.shape)) for x in batch)}",
            "give another example batch, or export it to ONNX yourself and pass the file",
        ) from error  # fmt: skip
    finally:
        for each, mode in training.items():
            each.training = mode
    assert program is not None
    return program.model


def _example_batch(example: Any, where: str) -> tuple[Any, ...]:
    import torch

    if example is None:
        raise InputError(
            where, "an nn.Module without an example batch", "one batch of input",
            "pass example=..., return (module, example), or set module.example_inputs",
        )  # fmt: skip
    parts = tuple(example) if isinstance(example, tuple | list) else (example,)
    try:
        return tuple(torch.as_tensor(x) for x in parts)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"its example batch is a {type(example).__name__} ({first_line(error.__cause__ or error)})"
        raise InputError(where, found, "a tensor or a tuple of tensors") from error


def from_exported_program(program: Any, where: str) -> ir.Model:
    """Export a `torch.export.ExportedProgram` (the contents of a `.pt2` file).

    Raises:
        UnsupportedError: the exporter cannot write it as ONNX.
    """
    import torch

    try:
        with quiet():
            exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:
        raise UnsupportedError(
            where, f"PyTorch's exporter failed: {first_line(error.__cause__ or error)}",
            "a program that it can write as ONNX", "export it to ONNX yourself and pass the file",
        ) from error  # fmt: skip
    assert exported is not None
    return exported.model


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter logs its troubles, warns of its own deprecations and prints graphs; none is the user's doing."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
