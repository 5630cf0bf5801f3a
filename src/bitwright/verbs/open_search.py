"""From what a user gives to a search, checked and opened before anything runs; and the search in Python."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bitwright.cost import COSTS
from bitwright.data.batches import Batches
from bitwright.errors import InputError
from bitwright.lookup import lookup
from bitwright.mixed.jobs.cluster import RayCluster
from bitwright.mixed.jobs.executor import Executor
from bitwright.mixed.jobs.here import Here
from bitwright.mixed.jobs.processes import Processes
from bitwright.mixed.sensitivity import SENSITIVITIES, is_order
from bitwright.mixed.sensitivity.measure import usual_method
from bitwright.mixed.solvers import SOLVERS
from bitwright.recipes.recipe import checked_settings, load_recipe, parse_settings
from bitwright.verbs.aim import Aim, parse_budgets
from bitwright.verbs.fronts import Front, found_front
from bitwright.verbs.preparing import data_for, digest_of, float_network
from bitwright.verbs.quantized import DISTILLED, distilled, model_bytes, placing_of
from bitwright.verbs.searching import Images, Searching
from bitwright.verbs.stocking import Placing, Widths
from bitwright.verbs.terminal import Terminal
from bitwright.verbs.trial import check_labels, check_settings

#: Whole networks that a search within a budget tries.
TRIED = 32
#: A cheap method whose network is written beside that of another one; and what asks for none.
ALSO, NONE = "adaquant", "none"
#: Where a search in Python goes if nothing else is said.
FOLDER = "bitwright.search"


def search(model: Any, data: Any, *, output: str | os.PathLike[str] = FOLDER, seed: int = 0, **asked: Any) -> Front:
    """Find the widths of all layers: within budgets, within a drop of accuracy, or a whole front of them.

    Every point is an ONNX file of its own in `output`, measured in its runtime and verified.

    Args:
        model: as `quantize` has it.
        data: calibration images, as `quantize` has them, `"distilled"` too; a path, where points are made by other
            processes.
        output: the folder of points and of what is kept: the same search goes on there.
        seed: of everything random.
        asked: of `open_search`: `method`, `budget`, `max_drop`, `weights`, `activations`, `tied`, `recipe`, ...

    Raises:
        InputError: bad input, or bounds that no choice of widths meets; says the least that can be reached.
        UnsupportedError: a width that the target lacks.

    Example:
        >>> import numpy as np, tempfile, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3),
        ...                           torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> images = {"input": np.random.default_rng(0).normal(size=(8, 1, 6, 6)).astype(np.float32)}
        >>> front = search(net, images, example=torch.zeros(2, 1, 6, 6), output=tempfile.mkdtemp(),
        ...                budget="weights=1/7", weights=(4, 2), free_ends=True)
        >>> front.met, front.best.costs["weights"] <= front.limits["weights"], front.best.found["mismatches"]
        (True, True, 0)
    """
    return found_front(open_search(model, data, terminal=Terminal(seed=seed), output=output, **asked))


def pareto(model: Any, data: Any, *, output: str | os.PathLike[str] = FOLDER, seed: int = 0, **asked: Any) -> Front:
    """A front of networks over a cost: `search` without bounds.

    Args:
        model, data, output, seed: as `search` has them.
        asked: of `open_search`: `over`, `points`, `method`, `weights`, `uniform`, ...

    Raises:
        InputError: a bound, or what `search` refuses.

    Example:
        >>> import inspect
        >>> "over" in inspect.signature(open_search).parameters
        True
    """
    for bound in ("budget", "max_drop"):
        if asked.get(bound):
            raise InputError(bound, f"is {asked[bound]!r}, and a front has no bounds", "no bound", "use search")
    return search(model, data, output=output, seed=seed, **asked)


def open_search(
    model: Any, data: Any, *, terminal: Terminal, output: str | os.PathLike[str], method: str = "",
    measure: Mapping[str, Any] | None = None, budget: str | Sequence[str] = (), costs: Sequence[str] = (),
    max_drop: float = 0.0, confidence: float = 0.95, over: str | Sequence[str] = "size", points: int = 8,
    uniform: bool = False, solver: str = "", also: str = "", refine: int | None = None, polish: int = 0,
    weights: Sequence[int] = (), activations: Sequence[int] = (), tied: bool = False, free_ends: bool = False,
    val_data: Any = None, val_limit: int = 0, eval_data: Any = None, inside: str = "closed-form", recipe: str = "",
    steps: Sequence[str] | Mapping[str, Mapping[str, Any]] = (), target: str = "auto", set: Sequence[str] = (),
    ends: int | None = None, verify_images: int = 64, processes: int = 1, ray: str = "", example: Any = None,
    shapes: Sequence[str] = (), batch: int = 32, limit: int = 0, skip_bad: bool = False,
    preprocess: Mapping[str, Any] | None = None,
) -> Searching:  # fmt: skip
    """Check and open what a search is given.

    Args:
        model, data: as `quantize` has them.
        terminal: where to speak; its seed is that of everything random.
        output: the folder of points and of what is kept.
        method: row of `SENSITIVITIES`; `kl` where the network gives scores of classes and `sqnr` elsewhere, if empty.
        measure: its settings.
        budget: bounds, `"size=1/8"`.
        costs: settings of costs, `"bops.accumulation=true"`.
        max_drop: percentage points of accuracy that may be lost; 0 for any.
        confidence: at which that and a latency relative to the float file have to hold; 0 for what was measured.
        over: cost that a front is spread over, or two of them.
        points: of a front.
        uniform: write the networks of one width for all groups, too.
        solver: row of `SOLVERS`; `milp` with budgets and `pareto` without if empty.
        also: other methods with losses, with commas between, whose best networks within a budget are written, too; of
            all that is written the best is taken. "adaquant" where there is a budget, if empty; "none" for none.
        refine: networks near what a solver found that are tried whole, one pass each; if None, `TRIED` where there is
            a budget and the method has losses, else none.
        polish: networks near the best that was written that are quantized by the recipe of points and measured as they
            are served, one after the other; needs a budget.
        weights, activations, tied, free_ends: what moves (`Widths`).
        val_data: `"distilled"` or images that the method measures on; those of `data`, or half of them, if None.
        val_limit: use so many of them at most, balanced over classes, but to polish; 0 for all.
        eval_data: labelled images to measure points on; `data` if None.
        inside: recipe that calibrates every width.
        recipe: recipe of points; `inside` if empty.
        steps: settings of the recipes' steps.
        target, set, ends: as `quantize` has them; widths of what does not move.
        verify_images: images that each point is verified on.
        processes: that make points.
        ray: address of a cluster that makes points.
        example, shapes, batch, limit, skip_bad, preprocess: as `quantize` has them.

    Raises:
        InputError: bad input.
    """
    settings: dict[str, Mapping[str, Any]] = dict(steps if isinstance(steps, Mapping) else parse_settings(steps))
    distilling = dict(settings.pop("distill", {}))
    check_settings(settings, [load_recipe(inside), load_recipe(recipe or inside)])
    judged = method or Aim.method  # if nothing is said, the outputs of the network decide once it is open
    aim = _aim(
        Aim(
            method=judged,
            measure=dict(measure or {}),
            solver=solver,
            also=_also(also, judged, budget),
            refine=tries_of(refine, judged, budget),
            polish=polish,
            budgets=parse_budgets([budget] if isinstance(budget, str) else budget),
            costing=_costing(costs),
            over=(over,) if isinstance(over, str) else tuple(over),
            points=points,
            uniform=uniform,
            max_drop=max_drop / 100 or None,
            confidence=confidence,
        )
    )
    if verify_images < 0:
        raise InputError("--verify-images", f"is {verify_images}", "0 or more")
    executor = _executor(processes, ray)
    if data is None or (isinstance(data, str) and not data):
        raise InputError("--data", "is missing", "images to set the ranges from: a folder, .npz, .zip")
    if not isinstance(executor, Here) and not all(isinstance(d, str | os.PathLike) for d in (data, eval_data or data)):
        raise InputError("data", "are objects of this process", "paths, which other processes can open")
    placed = placing_of(target, set, ends, None, terminal)
    placing = Placing(
        target=placed["target"], set=tuple(set), bits_of_ends=ends, recipe=inside,
        settings=_of_recipe(inside, settings),
    )  # fmt: skip
    network = float_network(model, example=example, shapes=shapes)
    if not method:
        aim = dataclasses.replace(aim, method=usual_method(network))
    opened = {
        "batch": batch, "limit": limit, "skip_bad": skip_bad, "preprocess": dict(preprocess or {}),
    }  # fmt: skip
    if val_limit and not val_data:
        raise InputError("--val-limit", f"is {val_limit}, and there are no --val-data", "both, or --limit")
    if any(isinstance(source, str) and source == DISTILLED for source in (data, val_data)):
        made = str(_distilled(network, distilling, _folder(output), terminal))
        data, val_data = (made if isinstance(d, str) and d == DISTILLED else d for d in (data, val_data))
    elif distilling:
        raise InputError("--step distill", "is given, and no images are distilled", "--data or --val-data distilled")
    images = _images(network, data, (val_data, val_limit), eval_data, aim, opened, terminal)
    return Searching(
        network=network, images=images, placing=placing, aim=aim, recipe=recipe or inside,
        widths=Widths(weights=tuple(weights), activations=tuple(activations), tied=tied, ends=free_ends),
        settings=_of_recipe(recipe or inside, settings), folder=_folder(output), executor=executor,
        verified=verify_images, terminal=terminal,
    )  # fmt: skip


def _folder(output: str | os.PathLike[str]) -> Path:
    """The folder of this name, made where it is not there: before anything is measured that it is to keep."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InputError(str(folder), "is a file", "a folder", "choose another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(str(folder), f"cannot be made: {error.strerror}", fix="choose another folder") from error
    return folder


def _distilled(network: ir.Model, settings: Mapping[str, Any], folder: Path, terminal: Terminal) -> Path:
    """Images made from batch norm, as a file that points are calibrated with too; made once."""
    chosen = {"seed": terminal.seed, **settings}
    digest = hashlib.sha256(repr(sorted(chosen.items())).encode() + model_bytes(network)).hexdigest()[:16]
    path = folder / f"distilled-{digest}.npz"
    if not path.exists():
        found = distilled(network, chosen, terminal)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **found.arrays)  # type: ignore[arg-type]
        part.rename(path)
    return path


def _images(
    network: ir.Model,
    data: Any,
    validation_of: tuple[Any, int],
    eval_data: Any,
    aim: Aim,
    opened: dict[str, Any],
    terminal: Terminal,
) -> Images:
    calibration: Batches = data_for(network, data, terminal, **opened)
    val_data, val_limit = validation_of
    validation: Batches | None = None
    if val_data:
        validation = data_for(network, val_data, terminal, **opened | {"limit": val_limit})
    measured = data_for(network, eval_data, terminal, **opened | {"limit": 0}) if eval_data else calibration
    digests = f"{digest_of(calibration)} {digest_of(measured)}"
    method = lookup(SENSITIVITIES, aim.method, "method").load()
    if validation is None and is_order(aim.method) and method.needs_labels:
        calibration, validation = calibration.halved(terminal.seed)
        terminal.note(f"note: {aim.method} scores on half of the images of --data; give --val-data for others")
    if aim.max_drop is not None or (eval_data and measured.labels is not None):
        check_labels(measured, network, str(eval_data or data))
    own = {"data": data, "eval_data": eval_data or data, "eval_limit": 0 if eval_data else opened["limit"]}
    job = {**own, "images": digests, **opened}
    judged = data_for(network, val_data, terminal, **opened | {"limit": 0}) if val_limit else validation or calibration
    return Images(
        calibration=calibration, validation=validation, judged=judged, measured=measured, same=not eval_data, job=job
    )  # fmt: skip


def _costing(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of costs, checked."""
    found = parse_settings(texts)
    for name, settings in found.items():
        checked_settings(lookup(COSTS, name, "cost").load(), settings, f"--cost {name}")
    return found


def _aim(aim: Aim) -> Aim:
    """The aim, checked."""
    drop = 100 * (aim.max_drop or 0.0)
    if not 0 <= drop <= 100:
        raise InputError("--max-drop", f"is {drop:g}", "percentage points, 0 to 100")
    if not 0 <= aim.confidence < 1:
        raise InputError("--confidence", f"is {aim.confidence:g}", "a fraction from 0 to below 1, as 0.95")
    if aim.points < 2:
        raise InputError("--points", f"is {aim.points}", "2 or more")
    if aim.refine < 0:
        raise InputError("--refine", f"is {aim.refine}", "0 tries or more")
    if aim.polish < 0:
        raise InputError("--polish", f"is {aim.polish}", "0 tries or more")
    if aim.polish and not aim.budgets:
        raise InputError(f"--polish {aim.polish}", "needs a budget", "--budget, as size=1/8", "or no --polish")
    for name in aim.over:
        lookup(COSTS, name, "cost")
    if not 1 <= len(aim.over) <= 2 or len({*aim.over}) < len(aim.over):
        raise InputError("--over", f"is {','.join(aim.over) or 'empty'}", "one cost, or two different ones")
    if len(aim.over) > 1 and (aim.max_drop is not None or aim.budgets):
        raise InputError(f"--over {','.join(aim.over)}", "is a front of two costs, which has no bounds", "one cost")
    orders = is_order(aim.method)
    if len(aim.over) > 1 and orders:
        raise InputError(
            f"--over {','.join(aim.over)}", f"{aim.method} is an order, whose walk is one line", "one cost"
        )
    if aim.refine and orders:
        raise InputError(
            f"--refine {aim.refine}",
            f"{aim.method} is an order, and foretells no losses",
            "a method with losses, as kl",
        )
    if aim.solver:
        lookup(SOLVERS, aim.solver, "solver")
        if orders:
            raise InputError(
                f"--solver {aim.solver}", f"{aim.method} is an order, which takes the solver's place", "no --solver"
            )
    if aim.solver == "pareto" and aim.budgets:
        raise InputError("--solver pareto", "makes fronts, and --budget asks for one point", "milp, greedy or genetic")
    if aim.solver not in ("", "pareto") and not aim.budgets:
        raise InputError(f"--solver {aim.solver}", "needs a budget", "--budget, as size=1/8", "or no --solver")
    return aim


def _also(text: str, method: str, budget: str | Sequence[str]) -> tuple[str, ...]:
    """The other methods of a search within a budget.

    Raises:
        InputError: no budget, an order, or no such method.
    """
    if not text:
        return (ALSO,) if budget and not is_order(method) and method != ALSO else ()
    names = tuple(name for name in dict.fromkeys(text.split(",")) if name not in (NONE, method))
    if names and not budget:
        raise InputError(f"--also {text}", "needs a budget", "--budget, as size=1/8", "or no --also")
    for name in names:
        if is_order(name):
            raise InputError(f"--also {name}", "is an order, and has a walk of its own", "a method with losses")
    return names


def tries_of(refine: int | None, method: str, budget: str | Sequence[str]) -> int:
    """How many whole networks are tried.

    Example:
        >>> tries_of(None, "kl", "size=1/8"), tries_of(None, "msq", "size=1/8"), tries_of(None, "kl", ())
        (32, 0, 0)
    """
    if refine is not None:
        return refine
    return TRIED if budget and not is_order(method) else 0


def _executor(processes: int, ray: str) -> Executor:
    if processes < 1:
        raise InputError("--processes", f"is {processes}", "1 or more")
    if ray:
        if processes > 1:
            raise InputError("--processes", f"is {processes}, beside --ray", "one of both")
        return RayCluster(address=ray)
    return Processes(workers=processes) if processes > 1 else Here()


def _of_recipe(name: str, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Settings of the steps that a recipe has."""
    steps = {step for step, _ in load_recipe(name).steps}
    return {step: values for step, values in settings.items() if step in steps}
