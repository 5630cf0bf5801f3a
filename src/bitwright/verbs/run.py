"""`bitwright run`: the classes that one or two files see in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Group, RenderableType

from bitwright.data.images import SUFFIXES
from bitwright.deploy.reader import is_written, read_model
from bitwright.deploy.runtimes import RUNTIMES
from bitwright.deploy.runtimes.runtime import Runtime
from bitwright.deploy.simulate import Simulation, subject
from bitwright.errors import InputError
from bitwright.verbs.preparing import check_same_inputs, data_for, served_network
from bitwright.verbs.quantize import ImageFlags, ShapeFlag, preprocess_flags
from bitwright.verbs.serving import HELP, resolve_runtime
from bitwright.verbs.tables import columns, file_labels, percent
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.verb import Outcome, argument, option

#: How many classes are shown of each image.
TOP = 5
SOFTMAX, OWN = "softmax of the scores", "given by the network"


@dataclass(frozen=True, kw_only=True)
class Run(ShapeFlag, ImageFlags):
    """Show the five classes that score highest in each image, by one file or by two side by side.

    Preprocessing is that of preprocess.yaml in the image's folder or in one of the two folders above it, and of the
    flags. Classes are called by number unless --labels names them.
    """

    model: str = argument("an ONNX file, float or written by quantize")
    images: tuple[str, ...] = argument("image files")
    labels: str = option("", "a text file with the names of the classes, one a line")
    against: str = option("", "a file to show beside it, usually the float network")
    runtime: str = option("", HELP)
    threads: int = option(0, "threads within an op; 0: one a core")

    def run(self, terminal: Terminal) -> Outcome:
        """Run."""
        paths = [self.model, self.against] if self.against else [self.model]
        networks = [served_network(path, shapes=self.shape) for path in paths]
        if self.against:
            check_same_inputs(networks[0], networks[1], self.against)
        for image in self.images:
            _check_image(image)
        names_of = [
            resolve_runtime(self.runtime, network, path, terminal, threads=self.threads)
            for network, path in zip(networks, paths, strict=True)
        ]
        runtimes = [_runner(*args, self.threads) for args in zip(networks, paths, names_of, strict=True)]
        simulated = [path for path, r in zip(paths, runtimes, strict=True) if isinstance(r, Simulation)]
        for path in simulated:
            terminal.note(f"note: {path} is simulated: no runtime here executes it")
        means = [OWN if gives_probabilities(network) else SOFTMAX for network in networks]
        names: list[str] | None = None
        found, sources = [], {}
        for image in self.images:
            feeds, sources[image] = self._read(networks[0], image, terminal)
            scores = [_scores(runtime, feeds, path) for runtime, path in zip(runtimes, paths, strict=True)]
            if self.labels and names is None:
                names = read_names(self.labels, len(scores[0]), self.model)
            if len(scores[-1]) != len(scores[0]):
                raise InputError(
                    self.against, f"tells {len(scores[-1])} classes", f"{len(scores[0])}, as {self.model}"
                )
            found.append([top_classes(s, names, given=m == OWN) for s, m in zip(scores, means, strict=True)])
        _note_sources(sources, terminal)
        json = {
            "model": self.model,
            "against": self.against or None,
            "simulated": simulated,
            "runtimes": dict(zip(paths, names_of, strict=True)),
            "probabilities": dict(zip(paths, means, strict=True)),
            "images": [
                {
                    "image": image, "preprocess": sources[image], "top": tops[0],
                    "against": tops[1] if self.against else None,
                    "same_top1": tops[0][0]["class"] == tops[1][0]["class"] if self.against else None,
                }
                for image, tops in zip(self.images, found, strict=True)
            ],
        }  # fmt: skip
        return Outcome(json=json, text=_text(json, means))

    def _read(self, network: ir.Model, image: str, terminal: Terminal) -> tuple[dict[str, np.ndarray], str]:
        """The network's input for one image, and where its preprocessing came from."""
        quiet = Terminal(seed=terminal.seed)  # what is said of every image is said once, for all
        batches = data_for(network, image, quiet, batch=1, preprocess=preprocess_flags(self))
        return next(iter(batches)).inputs, batches.preprocess_source


def _runner(network: ir.Model, path: str, runtime: str, threads: int) -> Runtime | Simulation:
    """The file in a runtime, or its simulation where none here executes it."""
    served = subject(read_model(network, path), path) if is_written(network) else path
    if isinstance(served, Simulation):
        return served
    loaded: Runtime = RUNTIMES[runtime].load()(served, threads)
    return loaded


def _check_image(image: str) -> None:
    path = Path(image)
    if not path.is_file():
        fix = "name its files, or use `bitwright evaluate` for all of them" if path.is_dir() else "check the path"
        raise InputError(image, "is a folder" if path.is_dir() else "no such file", "an image", fix)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(image, f"is a file ending in {path.suffix or 'nothing'!r}", f"one of {', '.join(SUFFIXES)}")


def gives_probabilities(network: ir.Model) -> bool:
    """Whether the network itself ends in a softmax."""
    node = network.graph.outputs[0].producer()
    return node is not None and node.op_type == "Softmax"


def _scores(runtime: Runtime | Simulation, feeds: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Scores of the first image, `[classes]`; a network with a fixed batch has the same image in all of it."""
    scores = runtime.run(feeds)[runtime.outputs[0]]
    if scores.ndim != 2:
        raise InputError(
            where, f"its output has shape {list(scores.shape)}", "[batch, classes]", "run shows classes only"
        )
    if not np.isfinite(scores[0]).all():
        raise InputError(where, "its output has NaN or infinity", "finite values")
    first: np.ndarray = scores[0]
    return first


def softmax(scores: np.ndarray) -> np.ndarray:
    """`exp(s_i) / sum_j exp(s_j)`, in float64.

    Example:
        >>> softmax(np.array([1000.0, 1000.0])).tolist()
        [0.5, 0.5]
    """
    raised = np.exp(scores.astype(np.float64) - scores.max())
    return raised / raised.sum()


def top_classes(scores: np.ndarray, names: Sequence[str] | None, *, given: bool) -> list[dict[str, Any]]:
    """The classes of the highest scores `[classes]`, best first; among equals the one that comes first.

    Args:
        scores: what the network says.
        names: of the classes; None for numbers.
        given: the scores are probabilities already.

    Example:
        >>> [entry["class"] for entry in top_classes(np.array([0.0, 2.0, 2.0]), None, given=False)]
        [1, 2, 0]
    """
    order = np.argsort(-scores, kind="stable")[:TOP]
    probabilities = scores if given else softmax(scores)
    return [
        {
            "class": int(i), "name": None if names is None else names[i], "score": float(scores[i]),
            "probability": float(probabilities[i]),
        }
        for i in order
    ]  # fmt: skip


def read_names(path: str, classes: int, model: str) -> list[str]:
    """The names of the classes, one a line, in the order of the network's outputs.

    Raises:
        InputError: no text file, an empty line between names, or as many names as there are classes.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(path, f"cannot be read: {reason}", "a text file with one name a line") from error
    names = [line.strip() for line in lines]
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1}", "is empty", "the name of a class")
    if len(names) != classes:
        raise InputError(path, f"has {len(names)} names", f"{classes}, one for each class of {model}")
    return names


def _note_sources(sources: Mapping[str, str], terminal: Terminal) -> None:
    """Say once where each preprocessing came from."""
    for source in dict.fromkeys(sources.values()):
        of_these = [image for image, origin in sources.items() if origin == source]
        what = of_these[0] if len(of_these) == 1 else f"{len(of_these)} images"
        if source == "default":
            terminal.note(f"note: no preprocess.yaml for {what}: pixels are divided by 255 and nothing else")
        else:
            terminal.note(f"preprocessing of {what}: {source}")


def _text(json: Mapping[str, Any], means: Sequence[str]) -> RenderableType:
    both = json["against"] is not None
    files = [json["model"], json["against"]] if both else [json["model"]]
    heads = [part for label in file_labels(files) for part in (label, ">score", ">probability")]
    parts: list[RenderableType] = []
    for entry in json["images"]:
        tops = [entry["top"], entry["against"]] if both else [entry["top"]]
        rows = [[text for best in line for text in _cells(best)] for line in zip(*tops, strict=True)]
        parts.extend((entry["image"], columns(heads, rows), ""))
    if both:
        same = sum(entry["same_top1"] for entry in json["images"])
        parts.append(f"same top-1 in {same} of {len(json['images'])} images")
    notes = dict.fromkeys(means)
    if len(notes) == 1:
        parts.append(f"probability: {means[0]}")
    else:
        parts.extend(f"probability of {path}: {mean}" for path, mean in zip(files, means, strict=True))
    return Group(*parts)


def _cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    name = f"class {entry['class']}" if entry["name"] is None else f"{entry['class']} {entry['name']}"
    return name, f"{entry['score']:.3f}", percent(entry["probability"])
