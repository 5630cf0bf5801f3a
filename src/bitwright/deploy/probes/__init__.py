"""How each runtime is watched while it serves a file: a row for each row of `RUNTIMES`."""

from __future__ import annotations

from bitwright.lookup import Row

PROBES: dict[str, Row] = {
    "onnxruntime": Row("bitwright.deploy.probes.onnxruntime:OnnxRuntimeProbe", "reads every tensor of codes out"),
    "openvino": Row(
        "bitwright.deploy.probes.openvino:OpenVinoProbe", "reads codes out; what sums read comes in by its own door"
    ),
}
