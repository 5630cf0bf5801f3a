"""Watch a float network's values while data passes: the pass that calibration makes over all images.

It runs in ONNX Runtime, which is measured to be faster than torch for this (`benchmarks/time_to_quantize.py`). Where
only extremes are wanted the runtime reduces each value to its smallest and largest element, so that memory does not
grow with the number of sites, and no value leaves the runtime; where a preceding ReLU bounds a value at zero, only its
largest element is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from bitwright.data.batches import Batch
from bitwright.errors import InputError, first_line
from bitwright.graph.overlay import with_overlay
from bitwright.graph.regions import activation_bounds

#: Models of this many bytes and more cannot be handed to the runtime as one message.
MESSAGE_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True)
class Watch:
    """One value to watch.

    Attributes:
        site: its name.
        extremes: only its smallest and largest element are wanted.
    """

    site: str
    extremes: bool


def observe(
    model: ir.Model,
    overlay: Mapping[str, Tensor],
    watches: Iterable[Watch],
    batches: Iterable[Batch],
    consume: Callable[[str, Tensor], None],
    *,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Run the float network over `batches`; hand each watched value (or its extremes, `[2]`) to `consume`.

    Args:
        model: normalised model.
        overlay: new values of initializers.
        watches: what to watch.
        batches: the data.
        consume: called as `consume(site, values)`, once a site and batch.
        progress: told the number of images of each batch.

    Returns:
        How many images were seen.

    Raises:
        InputError: a value is NaN or infinite; the site is named.
    """
    watches = list(watches)
    watched = with_overlay(model, overlay)
    outputs = [_watch(watched, w) for w in watches]
    session = float_session(watched)
    images = 0
    for batch in batches:
        results = run_session(session, None, {i.name: batch.inputs[i.name] for i in session.get_inputs()})
        found = iter(results)
        for watch, kinds in zip(watches, outputs, strict=True):
            parts = [next(found) for _ in kinds]
            values = _joined(watch, kinds, parts, batch)
            if values.numel() and not torch.isfinite(torch.stack(torch.aminmax(values))).all():  # one pass; NaN stays
                raise InputError(
                    f"site {watch.site!r}",
                    f"NaN or infinity among the float network's values in images {_names(batch)}",
                    "finite values", "check the weights before it and the preprocessing",
                )  # fmt: skip
            consume(watch.site, values)
        images += batch.valid
        if progress is not None:
            progress(batch.valid)
    return images


def _names(batch: Batch) -> str:
    return f"{batch.names[0]} .. {batch.names[-1]}" if len(batch.names) > 1 else str(batch.names[0])


def _joined(watch: Watch, kinds: list[str], parts: list[np.ndarray], batch: Batch) -> Tensor:
    if not watch.extremes:
        # Of each image there may be several rows: tokens, windows.
        images = len(next(iter(batch.inputs.values())))
        return torch.from_numpy(parts[0][: len(parts[0]) * batch.valid // images])
    extremes = dict(zip(kinds, (float(p) for p in parts), strict=True))
    return torch.tensor([extremes.get("ReduceMin", min(0.0, extremes["ReduceMax"])), extremes["ReduceMax"]])


def _watch(model: ir.Model, watch: Watch) -> list[str]:
    """Make the value, or its extremes, outputs of the graph; the graph's own outputs go first time round."""
    value = find_value(model, watch.site)
    if not model.meta.get("watched"):
        model.graph.outputs.clear()
        model.meta["watched"] = True
    if not watch.extremes:
        model.graph.outputs.append(value)
        return ["value"]
    kinds = ["ReduceMax"] if _not_negative(value) else ["ReduceMin", "ReduceMax"]
    for kind in kinds:
        node = ir.Node("", kind, [value], {"keepdims": ir.AttrInt64("keepdims", 0)})
        node.outputs[0].name = f"{watch.site}/{kind}"
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([])
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    return kinds


def find_value(model: ir.Model, name: str) -> ir.Value:
    """The graph input or node output called `name`."""
    for value in model.graph.inputs:
        if value.name == name:
            return value
    for node in model.graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise KeyError(name)


def _not_negative(value: ir.Value) -> bool:
    node = value.producer()
    bounds = activation_bounds(node) if node is not None else None
    return bounds is not None and bounds[0] >= 0


def float_session(model: ir.Model, threads: int = 0) -> ort.InferenceSession:
    """The model in ONNX Runtime on the CPU.

    Args:
        model: what to run.
        threads: threads within an op; 0 for one a core.

    Raises:
        InputError: the model is too large to be handed over as one message, or the runtime cannot load it.
    """
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size >= MESSAGE_LIMIT:
        raise InputError("model", f"has {size:,} bytes of weights", f"fewer than {MESSAGE_LIMIT:,}")
    proto: onnx.ModelProto = ir.to_proto(model)
    return session_of(proto.SerializeToString(), threads, planned_memory=False)


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str] | None, feeds: Mapping[str, np.ndarray], where: str = "model"
) -> list[np.ndarray]:
    """What the runtime gives, all outputs if `outputs` is None; `where` is what errors call the model.

    Raises:
        InputError: the runtime stops, as at a size that a node does not take.
    """
    try:
        found: list[np.ndarray] = session.run(outputs, dict(feeds))
    except Exception as error:  # the runtime's own exceptions share no base class
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise InputError(
            where, f"ONNX Runtime {ort.__version__} cannot run it: {first_line(error)}",
            f"a network that takes {shapes}", "if it was exported for one batch size, give --batch",
        ) from error  # fmt: skip
    return found


def session_of(
    model: bytes | str,
    threads: int = 0,
    optimised_path: str = "",
    precise: bool = False,
    planned_memory: bool = True,
    without: Sequence[str] = (),
) -> ort.InferenceSession:
    """A session with all optimisations on and its own log off.

    Args:
        model: serialized model, or the path of a file.
        threads: threads within an op; 0 for one a core.
        optimised_path: where the runtime writes the graph it really runs; "" for nowhere.
        precise: on processors without VNNI, use the slower kernels whose products do not saturate.
        planned_memory: hold one block for all values of a run. With many values and little time it is better not to:
            calibrating ResNet-50 takes 1.3 GB instead of 2.2 GB, and no longer (`benchmarks/time_to_quantize.py`).
        without: names of the runtime's optimisations to leave out.

    Raises:
        InputError: the runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = planned_memory
    options.log_severity_level = 4  # errors are raised, and told once
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if optimised_path:
        options.optimized_model_filepath = optimised_path
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)
    except Exception as error:  # the runtime's own exceptions share no base class
        where = "model" if isinstance(model, bytes) else str(model)
        raise InputError(
            where, f"ONNX Runtime {ort.__version__} cannot load it: {first_line(error)}", "a network that it runs",
            "mend or export it again",
        ) from error  # fmt: skip
