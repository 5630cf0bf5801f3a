"""`bitwright search` and `bitwright sensitivity`: bounds met or missed, fronts, and runs that were killed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console, RenderableType

import bitwright.verbs.searching as searching
from bitwright.errors import UnsupportedError
from bitwright.verbs.fronts import Front
from bitwright.verbs.points import PointJob, make_point
from bitwright.verbs.search_text import told

SCHEMA = json.loads((resources.files("bitwright.verbs") / "schema.json").read_text())
#: Keys whose values are no result: they differ from run to run.
CHANGING = ("seconds", "peak_memory_mb", "folder", "file")


def network(path: Path, seed: int = 0) -> None:
    """Four convolutions of 16 channels and a linear layer on `x [N, 4, 6, 6]`: 31 kB."""
    draw = np.random.default_rng(seed)
    nodes, weights, reads, inputs = [], {}, "x", 4
    for name in ("a", "b", "c", "d"):
        weights[f"{name}.weight"] = draw.standard_normal((16, inputs, 3, 3)) * 0.2
        nodes.append(helper.make_node("Conv", [reads, f"{name}.weight"], [f"{name}_out"], name=name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"]))
        reads, inputs = f"{name}_relu", 16
    weights["fc.weight"] = draw.standard_normal((16, 5))
    nodes += [
        helper.make_node("GlobalAveragePool", [reads], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, other.onnx, calib.npz (32 images) and eval.npz (64, labelled by net.onnx)."""
    folder = tmp_path_factory.mktemp("search")
    network(folder / "net.onnx")
    network(folder / "other.onnx", seed=1)
    draw = np.random.default_rng(1)
    x = (draw.standard_normal((96, 4, 6, 6)) * draw.uniform(0.2, 2, (96, 4, 1, 1))).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "net.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    np.savez(folder / "calib.npz", x=x[:32])
    np.savez(folder / "eval.npz", x=x[32:], labels=y[32:].argmax(1))
    np.savez(folder / "values.npz", x=x[:32], labels=y[:32, 0])
    return folder


def arguments(files: Path, output: Path, *more: object, model: str = "net.onnx") -> list[object]:
    """Of a search in these files."""
    return ["search", files / model, "--data", files / "calib.npz", "--weights", "7,4,2", "--method", "sqnr",
            "--verify-images", 8, "-o", output, "--json", *more]  # fmt: skip


def labelled(files: Path, output: Path, *more: object) -> list[object]:
    return arguments(files, output, "--eval-data", files / "eval.npz", *more)


FRONT = ("--points", 3, "--uniform")


@pytest.fixture(scope="module")
def front(cli: Any, files: Path) -> tuple[Any, Path]:
    """A front of three points with those of one width, and its folder, which no test changes."""
    folder = files / "front"
    return cli(*labelled(files, folder, *FRONT)), folder


@pytest.fixture
def copied(front: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy of the front's folder."""
    return Path(shutil.copytree(front[1], tmp_path / "copy"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of points as they are made."""
    found: list[str] = []

    def counted(job: PointJob) -> dict[str, Any]:
        row = make_point(job)
        found.append(Path(job.folder).name)
        return row

    monkeypatch.setattr(searching, "make_point", counted)
    return found


def result(found: Any) -> Any:
    """What a run found, without what changes from run to run."""
    if isinstance(found, dict):
        return {key: result(value) for key, value in found.items() if key not in CHANGING}
    return [result(value) for value in found] if isinstance(found, list) else found


def refused(cli: Any, told: str, *given: object, code: int = 2) -> None:
    ran = cli(*given)
    assert ran.code == code and ran.out == "", ran
    assert told in ran.err and "Traceback" not in ran.err, ran.err
    assert ran.err.splitlines()[-1].startswith("bitwright: ")


# Fronts.


def test_a_front_is_written_measured_and_verified(front: tuple[Any, Path]) -> None:
    ran, folder = front
    assert ran.code == 0
    found = ran.json
    jsonschema.validate(found, {**SCHEMA, "$ref": f"#/$defs/{quote('search')}"}, cls=jsonschema.Draft202012Validator)
    assert json.loads((folder / "front.json").read_text()) == found
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    assert found["met"] and not found["limits"] and found["float"]["accuracy"] == 1.0
    kinds = [point["kind"] for point in found["points"]]
    assert kinds.count("search") == 3 and kinds.count("uniform") == 3
    for point in found["points"]:
        assert point["proven"] and point["codes"] > 1000 and point["mismatches"] == 0
        assert Path(point["file"]).stat().st_size == point["costs"]["size"]
        assert abs(point["predicted"]["size"] - point["costs"]["size"]) < 320
        assert point["drop"]["images"] == 64
    sizes = [point["costs"]["size"] for point in found["points"]]
    assert sizes == sorted(sizes)
    assert [group["name"] for group in found["groups"]] == ["b", "c", "d"]
    assert {entry["region"] for entry in found["fixed"]} == {"a", "fc"}
    uniform = {point["mean_bits"] for point in found["points"] if point["kind"] == "uniform"}
    assert uniform == {7.0, 4.0, 2.0}


def test_points_of_a_front_lose_less_for_more(front: tuple[Any, Path]) -> None:
    ladder = [point for point in front[0].json["points"] if point["kind"] == "search"]
    assert [point["loss"] for point in ladder] == sorted((point["loss"] for point in ladder), reverse=True)
    assert front[0].json["best"] in [point["name"] for point in ladder]
    assert sum(point["best"] for point in front[0].json["points"]) == 1


def test_people_read_a_table(cli: Any, files: Path, front: tuple[Any, Path], copied: Path) -> None:
    given = [argument for argument in labelled(files, copied, *FRONT) if argument != "--json"]
    ran = cli(*given)
    best = front[0].json["best"]
    assert ran.code == 0 and f"most accurate: {best}" in ran.out
    assert all(point["name"] in ran.out for point in front[0].json["points"])


# Budgets.


def test_budgets_are_met_by_what_is_written(cli: Any, files: Path, copied: Path) -> None:
    ran = cli(*labelled(files, copied, "--budget", "size=2/5", "--budget", "weights=5000"))
    found = ran.json
    assert ran.code == 0 and found["met"] and found["excess"] == {}
    (point,) = [point for point in found["points"] if point["best"]]
    assert point["costs"]["size"] <= found["limits"]["size"] == 0.4 * found["float"]["costs"]["size"]
    assert point["costs"]["weights"] <= found["limits"]["weights"] == 5000
    assert Path(point["file"]).stat().st_size <= found["limits"]["size"] and point["proven"]
    free = json.loads((copied / "front.json").read_text())
    assert free == found  # the front's own was replaced by that of this search


def test_impossible_budgets_say_what_can_be_reached(cli: Any, files: Path, copied: Path, made: list[str]) -> None:
    before = sorted(path.relative_to(copied) for path in copied.rglob("*"))
    refused(
        cli, "limit of size: ", *labelled(files, copied, "--budget", "size=1/100")
    )  # fmt: skip
    ran = cli(*labelled(files, copied, "--budget", "weights=1/1000"))
    assert "(the least that can be reached) to " in ran.err and "(the most); raise it, or offer narrower" in ran.err
    assert sorted(path.relative_to(copied) for path in copied.rglob("*")) == before and made == []


def printed(what: RenderableType) -> str:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(what)
    return console.export_text()


QUICKLY = ("--cost", "latency.rounds=5", "--cost", "latency.seconds=0.001")


@pytest.mark.parametrize(("share", "code"), [("1000", 0), ("0.0001", 1)], ids=["within", "above"])
def test_a_latency_is_met_by_what_was_measured(
    share: str, code: int, cli: Any, files: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two-sided: a drop and a latency. What tables foretell is no bound: the fastest is written, and timed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(copied))
    ran = cli(*labelled(files, copied, "--budget", f"latency={share}", "--max-drop", 100, "--also", "none", *QUICKLY))
    found = ran.json
    assert ran.code == code and found["met"] == (code == 0)
    (best,) = [point for point in found["points"] if point["best"]]
    latency = best["latency"]
    assert latency["ms"] > 0 and latency["to_float"] > 0
    assert latency["to_float_low"] is latency["to_float_high"] is None, "five rounds are too few for an interval"
    assert set(found["excess"]) == ({"latency"} if code else set())
    foretold = "latency: no choice of widths is foretold to take less than " in ran.err
    assert foretold == (code == 1)
    if code:
        assert f"(latency <= {share} of float, drop <= " in printed(told(found))
        assert found["excess"]["latency"] == pytest.approx(latency["to_float"] / 0.0001)
        latency |= {"to_float_low": 0.3, "to_float_high": 0.7}
        assert f"(latency <= {share} of float at a confidence of 0.95, drop <= " in printed(told(found))


# Drops of accuracy.


def test_the_cheapest_within_a_drop(
    cli: Any, files: Path, front: tuple[Any, Path], copied: Path, made: list[str]
) -> None:
    ladder = [point for point in front[0].json["points"] if point["kind"] == "search"]
    goal = max(100 * point["drop"]["drop"] for point in ladder) + 0.01
    ran = cli(*labelled(files, copied, "--points", 3, "--max-drop", f"{goal:.4f}", "--confidence", 0))
    found = ran.json
    assert ran.code == 0 and found["met"] and made == []  # all points are those of the front
    assert found["best"] == ladder[0]["name"]  # all are within, so it is the cheapest


def test_bounds_that_are_missed_name_the_nearest(cli: Any, files: Path, tmp_path: Path) -> None:
    given = labelled(files, tmp_path / "s", "--points", 2, "--max-drop", 0.01)
    given[given.index("7,4,2")] = "2,1"
    ran = cli(*given)
    found = ran.json
    assert ran.code == 1 and not found["met"] and set(found["excess"]) == {"drop"} and found["excess"]["drop"] > 0
    assert json.loads((tmp_path / "s" / "front.json").read_text()) == found
    assert sum(point["best"] for point in found["points"]) == 1
    ran = cli(*(argument for argument in given if argument != "--json"))
    assert ran.code == 1 and "BOUNDS MISSED (drop <= 0.01 points at a confidence of 0.95); nearest is" in ran.out
    assert found["best"] in ran.out and "points above the goal" in ran.out


# What is refused before anything runs.


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--method", "sqnx"), "method 'sqnx': there is no method of this name; did you mean 'sqnr'"),
        (("--budget", "size=1/4", "--solver", "mlip"), "solver 'mlip': there is no solver of this name"),
        (("--budget", "siz=1/4"), "did you mean 'size'"),
        (("--over", "bits"), "cost 'bits': there is no cost of this name"),
        (("--over", "size,size"), "--over: is size,size; expected one cost, or two different ones"),
        (("--over", "size,bops", "--budget", "size=1/4"), "--over size,bops: is a front of two costs, which has no"),
        (("--over", "size,bops", "--method", "size"), "--over size,bops: size is an order, whose walk is one line"),
        (("--cost", "bop.accumulation=true"), "cost 'bop'"),
        (("--weights", "8.5"), "--weights: is '8.5'; expected whole numbers with commas between, as 8,4,2"),
        (("--weights", "4,4"), "weights: 4, 4: a width twice; expected different widths"),
        (("--weights", "12,4"), "12-bit weights; expected weights of 1, 2, 3"),
        (("--activations", "8,4", "--tied"), "activations: are given (8, 4), and tied to the weights"),
        (("--budget", "size=1/4", "--budget", "size=1/5"), "--budget: bounds size twice; expected one bound a cost"),
        (("--budget", "size=1/4", "--solver", "pareto"), "--solver pareto: makes fronts, and --budget asks for one"),
        (("--solver", "greedy"), "--solver greedy: needs a budget"),
        (("--polish", -1), "--polish: is -1; expected 0 tries or more"),
        (("--polish", 4), "--polish 4: needs a budget"),
        (("--refine", -1), "--refine: is -1; expected 0 tries or more"),
        (("--method", "size", "--refine", 4), "--refine 4: size is an order, and foretells no losses"),
        (("--points", 1), "--points: is 1; expected 2 or more"),
        (("--processes", 0), "--processes: is 0; expected 1 or more"),
        (("--processes", 2, "--ray", "auto"), "--processes: is 2, beside --ray; expected one of both"),
        (("--max-drop", 200), "--max-drop: is 200; expected percentage points, 0 to 100"),
        (("--confidence", 1), "--confidence: is 1; expected a fraction"),
        (("--max-drop", 1), "has no labels; expected a label for every image"),
        (("--method", "accuracy"), "has no labels; expected a label for every image"),
        (("--method", "adaquant", "--measure", "loss=cross-entropy"), "has no labels"),
        (("--method", "adaquant", "--measure", "loss=l1"), "adaquant.loss: is 'l1'"),
        (("--method", "kl", "--measure", "loss=mse"), "method kl"),
        (("--step", "gtpq.damping=0.1"), "--step gtpq: no recipe here has this step; did you mean 'gptq'"),
        (("--verify-images", -1), "--verify-images: is -1; expected 0 or more"),
        (("--val-limit", 3), "--val-limit: is 3, and there are no --val-data"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_flags_are_told(
    cli: Any, more: Sequence[object], told: str, files: Path, tmp_path: Path, made: list[str]
) -> None:
    given = arguments(files, tmp_path / "s")
    for flag in [flag for flag in more if flag in given]:
        at = given.index(flag)
        del given[at : at + 2]
    refused(cli, told, *given, *more)
    assert made == [] and not list(tmp_path.rglob("*.onnx"))


def test_labels_that_are_no_classes_are_refused_where_they_are_counted(cli: Any, files: Path, tmp_path: Path) -> None:
    given = arguments(files, tmp_path / "s", "--val-data", files / "values.npz", "--method", "accuracy")
    refused(cli, "values.npz: has labels from ", *given)


@pytest.mark.parametrize("output", ["net.onnx", "net.onnx/s"])
def test_an_output_that_is_a_file_is_refused(cli: Any, output: str, files: Path) -> None:
    before = (files / "net.onnx").read_bytes()
    refused(cli, f"{output}: ", *arguments(files, files / output))
    assert (files / "net.onnx").read_bytes() == before


# Runs that go on, and what they find there.


def test_a_killed_search_goes_on(
    cli: Any, files: Path, front: tuple[Any, Path], copied: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = sorted((copied / "points").glob("*/evaluation.json"))
    assert len(evaluations) >= 4
    lost = [path.parent.name for path in evaluations[:2]]
    for path in evaluations[:2]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in evaluations[2:]}

    def killed(job: PointJob) -> dict[str, Any]:
        if made:
            raise KeyboardInterrupt
        row = make_point(job)
        made.append(Path(job.folder).name)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(searching, "make_point", killed)
        assert cli(*labelled(files, copied, *FRONT)).code == 130
    assert len(made) == 1
    ran = cli(*labelled(files, copied, *FRONT))
    assert ran.code == 0 and sorted(made) == sorted(lost)  # each once: what was done was not made again
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert result(ran.json) == result(front[0].json)


def test_a_library_file_that_cannot_be_read_is_made_anew(
    cli: Any, files: Path, front: tuple[Any, Path], copied: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted((copied / "kept").glob("library-*.pt"))
    sound = [path.read_bytes() for path in paths]
    assert len(paths) == 3
    paths[0].write_bytes(b"no such file")
    paths[1].write_bytes(sound[1][: len(sound[1]) // 2])
    paths[2].write_bytes(b"")

    def unable(self: Front, path: Path, over: str) -> None:
        raise UnsupportedError("picture", "matplotlib is not installed")

    monkeypatch.setattr(Front, "plot", unable)
    ran = cli(*labelled(files, copied, *FRONT))
    assert ran.code == 0 and made == []
    assert all(f"{path} cannot be read (" in ran.err for path in paths) and ran.err.count("): made anew") == 3
    assert "note: no picture: picture: matplotlib is not installed" in ran.err
    assert result(ran.json) == result(front[0].json) == result(json.loads((copied / "front.json").read_text()))


def test_what_was_kept_of_another_network_is_not_used(
    cli: Any, files: Path, front: tuple[Any, Path], copied: Path, made: list[str]
) -> None:
    there = list((copied / "kept").iterdir())
    more = ("--eval-data", files / "eval.npz", "--budget", "weights=5000", "--also", "none")
    found = cli(*arguments(files, copied, *more, model="other.onnx"))
    assert found.code == 0 and len(made) == 2  # what was found, and one width for all
    (note,) = found.json["notes"]
    assert note == f"{len(there)} files in {copied / 'kept'} are of other networks, data or settings: not used"
    assert f"note: {note}" in found.err
    again = cli(*labelled(files, copied, *FRONT))
    assert again.code == 0 and len(made) == 2  # the first network's points are there still
    assert result(again.json["points"]) == result(front[0].json["points"])


def test_processes_find_the_same(cli: Any, files: Path, front: tuple[Any, Path], copied: Path) -> None:
    lost = sorted((copied / "points").iterdir())[:2]
    for folder in lost:
        shutil.rmtree(folder)
    ran = cli(*labelled(files, copied, *FRONT, "--processes", 2))
    assert ran.code == 0
    assert result(ran.json) == result(front[0].json)
    assert (copied / "front.png").read_bytes() == (front[1] / "front.png").read_bytes()
    for folder in lost:
        here = front[1] / "points" / folder.name / "model.onnx"
        assert (folder / "model.onnx").read_bytes() == here.read_bytes()


def test_labels_that_are_no_classes_are_left_out(cli: Any, files: Path, tmp_path: Path) -> None:
    given = arguments(files, tmp_path / "s", "--budget", "weights=1/5", "--free-ends", "--method", "kl")
    given[given.index(files / "calib.npz")] = files / "values.npz"
    ran = cli(*given)
    found = ran.json
    assert ran.code == 0 and found["float"]["accuracy"] is None and found["points"][0]["drop"] is None
    assert found["same_images"] and "points are measured on the calibration images" in ran.err
    assert found["fixed"] == [] and not (tmp_path / "s" / "front.png").exists()


# Sensitivity.


def test_sensitivity_lists_groups(cli: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.mixed.sensitivity.sqnr import Sqnr

    given: list[object] = ["sensitivity", files / "net.onnx", "--data", files / "calib.npz", "--batch", 8,
                           "--weights", "7,4,2", "--method", "sqnr", "--keep", tmp_path / "kept"]  # fmt: skip
    ran = cli(*given, "--json")
    assert ran.code == 0
    found = ran.json
    schema = {**SCHEMA, "$ref": f"#/$defs/{quote('sensitivity')}"}
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)
    assert [(group["name"], group["regions"]) for group in found["groups"]] == [(n, [n]) for n in "bcd"]
    for group in found["groups"]:
        assert group["choices"] == ["W7", "W4", "W2"] and max(group["losses"]) == group["losses"][-1] > 0
    assert not found["orders"] and found["images"] == 32 and found["passes"] == 11
    (kept,) = (tmp_path / "kept").rglob("sqnr-*.jsonl")
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    kept.write_text("".join(lines[:2]) + lines[2][:20])
    ran_again: list[int] = []
    step = Sqnr._batch

    def counted(self: Sqnr, *given: Any) -> Any:
        ran_again.append(1)
        return step(self, *given)

    monkeypatch.setattr(Sqnr, "_batch", counted)
    again = cli(*given, "--json").json
    assert len(ran_again) == 2 and result(again) == result(found)
    table = cli(*given)
    assert table.code == 0 and len(ran_again) == 2
    assert "at most 11 of the network, over 32 images" in table.out and "fc does not move: an end of" in table.out


def test_sensitivity_without_keep_leaves_nothing(cli: Any, files: Path, tmp_path: Path) -> None:
    given: list[object] = ["sensitivity", files / "net.onnx", "--data", files / "calib.npz", "--weights", "4,2"]
    with contextlib.chdir(tmp_path):
        ran = cli(*given, "--tied", "--method", "zeroq", "--quiet")
    assert ran.code == 0 and "W4A4" in ran.out and ran.err == ""
    assert list(tmp_path.iterdir()) == []
