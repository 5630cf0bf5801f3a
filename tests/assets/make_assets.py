"""Writes the digits network and its data beside this file: `python tests/assets/make_assets.py`.

digits.onnx: trained DigitsCNN, as torch.onnx.export gives it when it folds nothing: batch norm kept, dynamic batch.
digits.npz: the 360 test images and their labels. digits_calib.npz: 256 training images and their labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from bitwright.data.digits import digits_split
from bitwright.models import example
from bitwright.models.digits_cnn import DigitsCNN, digits_cnn, train_digits

HERE = Path(__file__).parent
CALIBRATION_IMAGES = 256
MAX_MODEL_BYTES = 400_000


def export(model: DigitsCNN, path: Path) -> None:
    """Write the network as one ONNX file, batch norm kept, and check that it is so."""
    torch.onnx.export(
        model,
        (example(model),),
        path,
        dynamo=True,
        optimize=False,  # the default folds batch norm away
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=18,
        external_data=False,
        verbose=False,
    )
    proto = onnx.load(path)
    for node in proto.graph.node:  # stack traces name the folders of the machine that wrote the file
        kept_props = [prop for prop in node.metadata_props if "stack_trace" not in prop.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept_props)
    onnx.checker.check_model(proto, full_check=True)
    kept = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    expected = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    if kept != expected:
        raise RuntimeError(f"{kept} of {expected} batch norms were kept")
    onnx.save(proto, path)
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes")


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that ONNX Runtime classifies as labelled."""
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"image": images})
    return float((logits.argmax(axis=1) == labels).mean())


def main() -> None:
    """Train, export, write the data, and say what came out."""
    torch.set_num_threads(1)  # the order of sums, and so the weights, depends on the number of threads
    train, test = digits_split()
    model = digits_cnn()
    in_torch = train_digits(model, train, test)
    export(model, HERE / "digits.onnx")
    chosen = np.arange(CALIBRATION_IMAGES) * len(train[0]) // CALIBRATION_IMAGES  # evenly over the writers
    np.savez_compressed(HERE / "digits.npz", image=test[0], labels=test[1])
    np.savez_compressed(HERE / "digits_calib.npz", image=train[0][chosen], labels=train[1][chosen])
    print(f"accuracy: {in_torch:.4f} in torch, {accuracy(HERE / 'digits.onnx', *test):.4f} in ONNX Runtime")
    for path in sorted(HERE.glob("digits*")):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
