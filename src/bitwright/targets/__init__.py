"""Hardware as data: what each target runs in integers, at which widths, and how it rounds."""

from __future__ import annotations

from bitwright.lookup import Row

TARGETS: dict[str, Row] = {
    "onnxruntime-x64": Row(
        "bitwright.targets.onnxruntime_x64:ONNXRUNTIME_X64",
        "ONNX Runtime on x86-64 with VNNI or AMX: uint8 activations x int8 weights, QDQ files",
    ),
    "onnxruntime-x64-avx2": Row(
        "bitwright.targets.onnxruntime_x64:ONNXRUNTIME_X64_AVX2",
        "the same on processors without VNNI, whose products saturate in pairs: weights of at most 7 bits",
    ),
    "openvino-cpu": Row(
        "bitwright.targets.openvino_cpu:OPENVINO_CPU",
        "OpenVINO on x86-64 with VNNI or AMX: uint8 activations x int8 weights, QDQ files",
    ),
    "openvino-cpu-avx2": Row(
        "bitwright.targets.openvino_cpu:OPENVINO_CPU_AVX2",
        "the same on processors without VNNI, whose products saturate in pairs: weights of at most 7 bits",
    ),
    "tensorrt": Row(
        "bitwright.targets.tensorrt:TENSORRT",
        "NVIDIA TensorRT, explicit quantization: int8 with zero point 0, QDQ files; simulated, not run",
    ),
    "anybits": Row(
        "bitwright.targets.anybits:ANYBITS",
        "research: 1 to 16 bits of weights and activations, QONNX files; simulated, not run",
    ),
    "paper": Row(
        "bitwright.targets.paper:PAPER",
        "the placement of papers on low-bit quantization: only what layers read; QONNX files; simulated, not run",
    ),
}
