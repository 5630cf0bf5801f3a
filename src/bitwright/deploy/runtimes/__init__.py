"""The runtimes that serve written files."""

from __future__ import annotations

from bitwright.lookup import Row

RUNTIMES: dict[str, Row] = {
    "onnxruntime": Row("bitwright.deploy.runtimes.onnxruntime:OnnxRuntime", "ONNX Runtime, CPU execution provider"),
    "openvino": Row("bitwright.deploy.runtimes.openvino:OpenVino", "OpenVINO, CPU (extra: openvino)"),
}
