"""The Python interface: quantize a network, and what one can do with the result."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from bitwright.data.batches import Batches
from bitwright.deploy.evaluate import Evaluation, evaluate
from bitwright.deploy.forms import FORMS
from bitwright.deploy.reader import read
from bitwright.deploy.simulate import runtime_of, subject
from bitwright.deploy.verify import Verification, verify
from bitwright.deploy.writer import to_onnx, write
from bitwright.errors import InputError, UnsupportedError
from bitwright.execute.program import Mode, build
from bitwright.graph.macs import node_macs
from bitwright.lookup import lookup
from bitwright.pipeline import State, Step, needs_data, run_chain
from bitwright.placement.place import integer_regions
from bitwright.placement.quantized import reads_quantized
from bitwright.plan.plan import Plan, read_plan
from bitwright.ptq.distill import Distill, Distilled
from bitwright.ranges.audit import Audit, audit
from bitwright.recipes.conditions import Case, holding
from bitwright.recipes.recipe import Recipe, checked_settings, load_recipe, make_steps, parse_settings, shared_settings
from bitwright.targets import TARGETS
from bitwright.targets.target import PlacementName, Target
from bitwright.verbs.preparing import data_for, float_network, resolve_target
from bitwright.verbs.terminal import Terminal

#: What stands in place of data for images made from batch norm.
DISTILLED = "distilled"
#: `{placement: target that it chooses where none is named}`.
PLACEMENTS = {"deployable": "auto", "paper": "paper"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """An integer network, with all that is known of it.

    Attributes:
        state: graph, plan, encodings and log.
        images_used: images that set its ranges.
        calibration: what these images are worth; None where they are not known, as of a file that was loaded.
    """

    state: State
    images_used: int = 0
    calibration: Audit | None = None

    @property
    def plan(self) -> Plan:
        """How every site is quantized."""
        assert self.state.plan is not None
        return self.state.plan

    @property
    def diverged(self) -> list[str]:
        """Units whose reconstruction diverged: they keep the rounding that they had before."""
        return [unit for event in self.state.log for unit in event.facts.get("diverged", ())]

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the ONNX file, whole or not at all; its size in bytes."""
        return write(self.state, Path(path))

    def model(self) -> ir.Model:
        """The integer network as it is written."""
        return to_onnx(self.state)

    def integer_mac_share(self) -> float:
        """Share of the multiply-accumulates that run in integers."""
        target = TARGETS[self.plan.target].load()
        regions = integer_regions(self.state.model, self.plan, target)
        total = sum(node_macs(node) for node in self.state.model.graph)
        integer = sum(r.macs for r in regions if reads_quantized(r, self.plan, target))
        return integer / total if total else 0.0

    @property
    def placement(self) -> PlacementName:
        """Where its quantizers stand: `deployable` or `paper`."""
        placement: PlacementName = TARGETS[self.plan.target].load().placement
        return placement

    def evaluate(self, data: Any, *, batch: int = 32, limit: int = 0) -> Evaluation:
        """Accuracy in the runtime, or simulated where none executes the file, beside the float network's."""
        reference = model_bytes(self.state.reference)
        served = subject(self.state, model_bytes(self.model()))
        return evaluate(served, self._batches(data, batch, limit), against=reference, runtime=runtime_of(self.state))

    def verify(
        self, data: Any, *, batch: int = 32, limit: int = 0, threads: int = 0, precise: bool = False
    ) -> Verification:
        """Compare simulation and runtime, code by code."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self.save(path)
            return verify(path, self._batches(data, batch, limit), threads=threads, precise=precise)

    def torch(self, mode: Mode = "simulated") -> torch.fx.GraphModule:
        """The network as an `nn.Module`: `simulated` (differentiable), `integer` (bit-exact) or `float`."""
        target = TARGETS[self.plan.target].load()
        if mode == "integer" and not FORMS[target.form].load().has_codes:
            raise UnsupportedError(
                "mode 'integer'", f"the arithmetic of {target.name} is not known", "simulated or float"
            )
        program = build(
            self.state.model, self.state.overlay, mode=mode, plan=self.plan, encodings=self.state.encodings,
            integer=list(integer_regions(self.state.model, self.plan, target)),
        )  # fmt: skip
        return program.module

    def _batches(self, data: Any, batch: int, limit: int) -> Batches:
        return data_for(self.state.model, data, Terminal(), batch=batch, limit=limit)


def model_bytes(model: ir.Model) -> bytes:
    """A model as one message."""
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def quantize(
    model: Any,
    data: Any,
    *,
    recipe: str = "fast",
    target: str = "auto",
    placement: str = "",
    set: Sequence[str] = (),
    ends: int | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    memory: str = "",
    resume: str = "",
    steps: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    example: Any = None,
    shapes: Sequence[str] = (),
    batch: int = 32,
    limit: int = 0,
    seed: int = 0,
) -> Quantized:
    """Quantize a trained network.

    Args:
        model: path of an ONNX or `.pt2` file, `"module:callable"`, an `nn.Module` (with `example`), or an
            `onnx_ir.Model`.
        data: calibration images: a folder, an `.npz`, a zip, `"module:callable"`, a dict of arrays, a data loader;
            `"distilled"` for images made from batch norm; None for a recipe that needs none.
        recipe: name of a recipe or path of a YAML file.
        target: row of `TARGETS`; `auto` for this machine.
        placement: `deployable`, or `paper`: quantizers where papers on low-bit quantization have them, simulated.
        set: widths, `"W=4,A=8"`, `"layer4.*:W=8"`, `"head.*:float"`.
        ends: bits of the network's ends, 8 if None; 0 for the same as elsewhere.
        plan: a plan or the path of its JSON file, taken instead of placing; `set` changes its widths.
        memory: bytes that steps which learn may take, `"4GiB"`; no bound if empty.
        resume: folder that keeps what is finished, so that a run that was killed goes on where it was.
        steps: settings of the recipe's steps, `["calibrate.activations=percentile"]` or `{step: {setting: value}}`;
            of distilled images, `["distill.iterations=200"]`.
        example: one batch, for an `nn.Module`.
        shapes: sizes that the file leaves open, `["image=Nx3x224x224"]`.
        batch: images a batch.
        limit: use so many images at most, balanced over classes; 0 for all.
        seed: of the choice of images, and of steps that draw.

    Raises:
        InputError: bad input; the message says where, what, and what to do.
        UnsupportedError: the target cannot do what is asked.

    Example:
        >>> import numpy as np, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
        >>> images = {"input": np.zeros((8, 1, 6, 6), np.float32)}
        >>> q = quantize(net, images, example=torch.zeros(2, 1, 6, 6))
        >>> q.plan.float_sites(), q.images_used
        ({}, 8)
    """
    terminal = Terminal(seed=seed)
    network = float_network(model, example=example, shapes=shapes)
    chosen = load_recipe(recipe)
    settings: dict[str, Mapping[str, Any]] = dict(steps if isinstance(steps, Mapping) else parse_settings(steps))
    batches: Batches | None = None
    if isinstance(data, str) and data == DISTILLED:
        batches = distilled_data(network, settings.pop("distill", {}), terminal, batch=batch, limit=limit)
    elif data is not None:
        batches = data_for(network, data, terminal, batch=batch, limit=limit)
    said = under(shared_settings(chosen, shared_of(terminal.seed, memory, resume)), settings)
    return run_recipe(
        network, batches, chosen, said, terminal, target=target, placement=placement, set=set, ends=ends, plan=plan
    )


def shared_of(seed: int, memory: str, resume: str) -> dict[str, Any]:
    """What is said of all steps at once, as their settings; what is not given is left out."""
    return {"seed": seed, **({"memory": memory} if memory else {}), **({"work": resume} if resume else {})}


def under(
    shared: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Settings of steps, laid over those of all steps.

    Example:
        >>> under({"adaround": {"seed": 1, "memory": "4GiB"}}, {"adaround": {"seed": 2}, "place": {}})
        {'adaround': {'seed': 2, 'memory': '4GiB'}, 'place': {}}
    """
    return {step: {**shared.get(step, {}), **settings.get(step, {})} for step in dict.fromkeys((*shared, *settings))}


def run_recipe(
    network: ir.Model, batches: Batches | None, recipe: Recipe, settings: Mapping[str, Mapping[str, Any]],
    terminal: Terminal, *, target: str, set: Sequence[str], ends: int | None,
    plan: Plan | str | os.PathLike[str] | None = None, placement: str = "",
) -> Quantized:  # fmt: skip
    """Run a recipe on an opened network; `set` comes after the recipe's own widths.

    Raises:
        InputError: a plan beside a recipe that sets widths, images that are missing, and what `placing_of` refuses.
    """
    steps = steps_of(
        network, batches, recipe, settings, terminal, target=target, set=set, ends=ends, plan=plan, placement=placement
    )
    check_data(recipe, steps, batches is not None)
    with terminal.progress("calibrate", 0 if batches is None else len(batches)) as advance:
        state = run_chain(steps, State(model=network, reference=network), batches, images_done=advance)
    used = batches if needs_data(steps) else None
    return Quantized(
        state=state, images_used=0 if used is None else len(used),
        calibration=None if used is None else calibration_audit(state, used),
    )  # fmt: skip


def check_data(recipe: Recipe, steps: Sequence[Step], given: bool) -> None:
    """Refuse a recipe that needs images where none are given.

    Raises:
        InputError: none are given, and a step cannot do without.
    """
    wanting = [type(step).__name__ for step in needs_data(steps)]
    if wanting and not given:
        raise InputError(
            "--data", "is missing", "images to set the ranges from: a folder, .npz, .zip",
            f"recipe {recipe.name} needs some ({', '.join(wanting)}); --recipe datafree needs none, and --data "
            f"{DISTILLED} makes some from batch norm",
        )  # fmt: skip


def distilled_data(
    network: ir.Model, settings: Mapping[str, Any], terminal: Terminal, *, batch: int, limit: int
) -> Batches:
    """Images made from the network's batch norm; `limit` is how many, 0 for as many as `settings` say."""
    chosen = {"seed": terminal.seed, **settings, **({"images": limit} if limit else {})}
    return data_for(network, distilled(network, chosen, terminal).arrays, terminal, batch=batch)


def distilled(network: ir.Model, settings: Mapping[str, Any], terminal: Terminal) -> Distilled:
    """The same as arrays."""
    distill = Distill(**checked_settings(Distill, settings, "distill"))
    with terminal.progress("distill images", distill.images) as advance:
        found = distill(network, advance)
    terminal.note(
        f"distilled {distill.images} images: the mismatch of batch-norm statistics fell from {found.losses[0]:.4g} to "
        f"{found.losses[-1]:.4g}"
    )
    return found


def steps_of(
    network: ir.Model, batches: Batches | None, recipe: Recipe, settings: Mapping[str, Mapping[str, Any]],
    terminal: Terminal, *, target: str, set: Sequence[str], ends: int | None,
    plan: Plan | str | os.PathLike[str] | None = None, placement: str = "",
) -> list[Step]:  # fmt: skip
    """The steps of a recipe whose conditions hold for a network and its data, with settings laid over them."""
    placed = dict(recipe.steps).get("place", {})
    own = placed.get("set", ())
    if own and plan is not None:
        raise InputError(
            "--plan", f"says every width, and recipe {recipe.name} sets {', '.join(map(str, own))}", "one of them",
            "take another recipe, such as fast",
        )  # fmt: skip
    widths = (*own, *set) if isinstance(own, list | tuple) else set
    placing = placing_of(target, widths, ends, plan, terminal, placement)
    settings = {**settings, "place": {**placing, **settings.get("place", {})}}
    case = Case(network=network, data=batches is not None, placing={**placed, **settings["place"]})
    return make_steps(recipe, settings, holding(case))


def calibration_audit(state: State, batches: Batches) -> Audit:
    """What the images that set a state's ranges are worth, by the extremes that calibration saw."""
    extremes: Mapping[str, torch.Tensor] = next(
        (event.facts["extremes"] for event in reversed(state.log) if "extremes" in event.facts), {}
    )
    shape = state.model.graph.outputs[0].shape
    labelled = are_classes(batches.labels, state.model)
    classes = shape[1] if labelled and shape is not None and isinstance(shape[1], int) else None
    return audit(extremes, len(batches), labels=batches.labels if labelled else None, classes=classes)


def are_classes(labels: np.ndarray | None, network: ir.Model) -> bool:
    """Whether labels can be classes of a network's first output: one of its scores for each image."""
    shape = network.graph.outputs[0].shape
    if labels is None or shape is None or len(shape) != 2:
        return False
    batch, classes = (network.graph.inputs[0].shape or [0])[0], shape[1]
    # A batch of any size has a name in both, or none in one of them.
    named = [d.value for d in (shape[0], batch) if isinstance(d, ir.SymbolicDim)]
    if shape[0] != batch and not (len(named) == 2 and None in named):
        return False
    fits = labels.ndim == 1 and labels.dtype.kind in "iu" and isinstance(classes, int)
    return fits and 0 <= labels.min() and bool(labels.max() < classes)


def placing_of(
    target: str, set: Sequence[str], ends: int | None, plan: Plan | str | os.PathLike[str] | None, terminal: Terminal,
    placement: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Settings of the step `place` that say this.

    Raises:
        InputError: ends that are no width, a plan that cannot be read, or one beside ends or another target, a
            placement that there is not, or one that is not the target's or the plan's.
    """
    lookup(PLACEMENTS, placement or "deployable", "placement")
    if ends is not None and not 0 <= ends <= 16:
        raise InputError("--ends", f"is {ends}", "1 to 16 bits, or 0 for the same width as elsewhere")
    if plan is None:
        resolved = resolve_target(PLACEMENTS[placement] if placement and target == "auto" else target, terminal)
        _check_placement(placement, resolved, "--target")
        return {"target": resolved.name, "set": tuple(set), **({} if ends is None else {"ends": ends})}
    if ends is not None:
        raise InputError("--ends", f"is {ends}, but --plan says every width", "one of them", "name sites with --set")
    where = "plan" if isinstance(plan, Plan) else os.fspath(plan)
    given = plan if isinstance(plan, Plan) else read_plan(where)
    if target not in ("auto", given.target):
        raise InputError("--target", f"is {target!r}", f"{given.target!r}, which {where} was made for")
    resolved = resolve_target(given.target, terminal)
    _check_placement(placement, resolved, f"target of {where}")
    return {"target": resolved.name, "set": tuple(set), "plan": plan if isinstance(plan, Plan) else where}


def _check_placement(placement: str, target: Target, where: str) -> None:
    """Whether a target's plans are of the placement that was asked for, if any was."""
    if placement and placement != target.placement:
        names = ", ".join(name for name, row in TARGETS.items() if row.load().placement == placement)
        raise InputError(
            f"--placement {placement}", f"beside the {where.removeprefix('--')} {target.name!r}, whose plans are "
            f"{target.placement}", f"one of {names}" if "," in names else f"the target {names!r}",
            f"leave {where if where.startswith('--') else '--plan'} out, or --placement",
        )  # fmt: skip


def load(path: str | os.PathLike[str]) -> Quantized:
    """The integer network in a file that bitwright wrote.

    Raises:
        InputError: the file was not written by bitwright.
    """
    return Quantized(state=read(Path(path)))
