"""The peer of the speed benchmarks: ONNX Runtime's own `quantize_static`, QDQ, per channel, uint8 x int8, min-max."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime.quantization as peer
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(peer.CalibrationDataReader):  # type: ignore[misc]
    """Batches of an array, one after another."""

    def __init__(self, name: str, images: np.ndarray, batch: int) -> None:
        self.name, self.images, self.batch, self.at = name, images, batch, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None at the end."""
        if self.at >= len(self.images):
            return None
        self.at += self.batch
        return {self.name: self.images[self.at - self.batch : self.at]}


def random_images(count: int) -> np.ndarray:
    """Images as after normalisation, `[count, 3, 224, 224]`."""
    return np.random.default_rng(0).standard_normal((count, 3, 224, 224), dtype=np.float32)


def export(name: str, path: Path) -> None:
    """Write a reference network with random weights as a float file, the way PyTorch writes it by default.

    That folds batch norm away, which suits the peer: it leaves unfolded layers in float.
    """
    import torch  # only here: the peer's own memory is measured without it

    from bitwright.models import build, example

    network, batch = build(name), torch.export.Dim("batch")
    program = torch.onnx.export(
        network, (example(name),), dynamo=True, input_names=["x"], dynamic_shapes=({0: batch},), verbose=False
    )
    assert program is not None
    program.save(str(path))


def quantize_static(
    source: Path, target: Path, images: np.ndarray, *, batch: int = 8, reduce_range: bool = False
) -> float:
    """The peer's quantizer, at its best for x86: pre-processed, per channel, uint8 activations, int8 weights.

    Returns:
        Seconds of the pre-processing.
    """
    prepared = target.with_suffix(".prepared.onnx")
    start = time.perf_counter()
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    seconds = time.perf_counter() - start
    peer.quantize_static(
        str(prepared), str(target), Reader("x", images, batch), quant_format=peer.QuantFormat.QDQ, per_channel=True,
        activation_type=peer.QuantType.QUInt8, weight_type=peer.QuantType.QInt8, reduce_range=reduce_range,
        calibrate_method=peer.CalibrationMethod.MinMax,
    )  # fmt: skip
    prepared.unlink()
    return seconds
