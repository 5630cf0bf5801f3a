"""Read a written file back: plan, graph and the codes that are really in it.

Scales, zero points and codes come from the file's own initializers, never from the metadata: what is verified is what
the runtime is given.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from bitwright.deploy.forms import FORMS, Form
from bitwright.deploy.names import codes_name, scale_name, zero_point_name
from bitwright.deploy.packing import PACKINGS
from bitwright.deploy.writer import METADATA_KEY, METADATA_VERSION, integer_qdq
from bitwright.errors import InputError
from bitwright.graph.open import open_model
from bitwright.graph.overlay import set_initializer
from bitwright.pipeline import State
from bitwright.plan.encoding import Encoding
from bitwright.plan.plan import Plan, plan_from_json
from bitwright.plan.spec import Derived, QSpec
from bitwright.targets import TARGETS


def is_written(model: ir.Model) -> bool:
    """Whether a model carries bitwright's metadata."""
    return METADATA_KEY in model.metadata_props


def read(path: str | Path) -> State:
    """The state behind a file that `write` wrote.

    Raises:
        InputError: no such file, not written by bitwright, or written by a newer version.
    """
    return read_model(open_model(path), str(path))


def read_model(served: ir.Model, where: str) -> State:
    """The state behind an opened model that `to_onnx` made."""
    content = _content(served, where)
    plan = plan_from_json(content["plan"], f"{where}: plan")
    proto = onnx.ModelProto.FromString(base64.b64decode(content["skeleton"]))
    model = ir.from_proto(proto)
    stored = {n: v.const_value.numpy() for n, v in served.graph.initializers.items() if v.const_value is not None}
    form: Form = FORMS[TARGETS[plan.target].load().form].load()
    encodings = form.encodings(plan, set(model.graph.initializers), stored, where)
    quantized = {site: e.dequantize(e.codes) for site, e in encodings.items() if e.codes is not None}
    for name in model.graph.initializers:
        if name in quantized:
            set_initializer(model, name, quantized[name])
        elif codes_name(name) in stored:  # a constant among the operands of a kernel, at its own or a shared encoding
            codes = torch.from_numpy(stored[codes_name(name)].astype(np.int32))
            set_initializer(model, name, encodings[plan.resolve(name)[0]].dequantize(codes))
        elif name in stored and name not in encodings:
            set_initializer(model, name, torch.from_numpy(stored[name].copy()))
    return State(
        model=model, reference=model, plan=plan, encodings=encodings,
        facts=frozenset({"folded", "plan", "encodings"}),
    )  # fmt: skip


def _content(served: ir.Model, where: str) -> dict[str, Any]:
    if not is_written(served):
        raise InputError(where, "was not written by bitwright", "a file of `bitwright quantize`")
    try:
        entry = json.loads(served.metadata_props[METADATA_KEY])
        version = int(entry["version"])
        if version > METADATA_VERSION:
            raise InputError(where, f"has metadata of version {version}", f"at most {METADATA_VERSION}", "upgrade")
        content: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(entry["content"])))
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise InputError(
            where, f"its bitwright metadata is damaged ({type(error).__name__})", "an unchanged file",
            "quantize the network again",
        ) from error  # fmt: skip
    return content


def _encodings(plan: Plan, constants: set[str], stored: Mapping[str, np.ndarray], where: str) -> dict[str, Encoding]:
    target = TARGETS[plan.target].load()
    found: dict[str, Encoding] = {}
    for site, spec in plan.sites.items():
        if not isinstance(spec, QSpec):
            continue
        if scale_name(site) not in stored:
            raise InputError(f"{where}: site {site!r}", "its scale is missing from the file", "an unchanged file")
        scale = torch.from_numpy(stored[scale_name(site)].copy())
        if site not in constants or codes_name(site) in stored:
            zero = torch.from_numpy(stored[zero_point_name(site)].astype(np.int32))
            found[site] = Encoding(spec=spec, scale=scale, zero_point=zero)
            continue
        try:
            packing = PACKINGS[target.weight_packing[spec.format][spec.bits]]
            codes, zero, levels = packing.read(stored, site, spec)
        except KeyError as error:
            raise InputError(
                f"{where}: weight {site!r}", f"{error} is missing from the file", "an unchanged file"
            ) from error
        zero_point = zero.expand(scale.numel()).reshape(scale.shape).contiguous()
        found[site] = Encoding(spec=spec, scale=scale, zero_point=zero_point, codes=codes, levels=levels)
    for site, spec in plan.sites.items():
        if isinstance(spec, Derived):
            codes = torch.from_numpy(stored[site].astype(np.int32))
            scale = torch.from_numpy(stored[scale_name(site)].copy())
            wide = QSpec(bits=16, signed=True, symmetric=True, axis=0 if scale.ndim else None)
            found[site] = Encoding(
                spec=wide, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int32), codes=codes
            )
    return found


#: The form of targets that run regions on codes.
QDQ = Form(write=integer_qdq, encodings=_encodings, packings=tuple(PACKINGS), has_codes=True)
