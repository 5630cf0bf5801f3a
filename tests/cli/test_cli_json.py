"""What `--json` prints: one object, whose keys are those of verbs/schema.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest

import bitwright.deploy.benchmark as benchmark
from bitwright.verbs import VERBS

SCHEMA = json.loads((resources.files("bitwright.verbs") / "schema.json").read_text())


def validate(command: str, found: Any) -> None:
    """Raise where the object is not that of the command."""
    schema = {**SCHEMA, "$ref": f"#/$defs/{quote(command)}"}
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)


def test_the_schema_is_one_and_has_every_command() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(VERBS) <= set(SCHEMA["$defs"])


@pytest.mark.parametrize("command", sorted(VERBS))
def test_the_schema_asks_for_every_key_it_describes(command: str) -> None:
    described = SCHEMA["$defs"][command]
    assert described["type"] == "object" and described["required"] == list(described["properties"])


@pytest.fixture
def arguments(float_file: Path, int8_file: Path, test_images: Path, image_file: Callable[..., Path]) -> Any:
    """Arguments of each command but the demo, which has a test of its own."""
    few = ["--data", test_images, "--limit", 20]
    ranges = ["--data", float_file.with_name("digits_calib.npz")]
    return {
        "auto": [float_file, *ranges, "--eval-data", test_images, "--max-drop", "5"],
        "debug": [float_file, *few, "--top", "3"],
        "inspect": [float_file],
        "quantize": [float_file, *few],
        "search": [float_file, *few, "--weights", "4,2", "--budget", "weights=1/8", "--verify-images", "4"],
        "sensitivity": [float_file, *few, "--weights", "4,2"],
        "run": [int8_file, image_file(0), "--against", float_file, "--color", "GRAY"],
        "evaluate": [int8_file, *few, "--against", float_file],
        "verify": [int8_file, *few],
        "benchmark": [float_file, int8_file, "--threads", "1", "--rounds", "1"],
        "plan show": [int8_file],
        "plan diff": [int8_file, int8_file],
        "plan edit": [int8_file, "--set", "stem.*:A=7", "-o", "edited.json"],
        "methods": [],
        "recipes": [],
        "targets": [],
    }


@pytest.mark.parametrize("command", sorted(set(VERBS) - {"demo"}))
def test_json_is_one_object_on_stdout(
    command: str, arguments: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "SAMPLE_SECONDS", 0.001)
    ran = cli(*command.split(), *arguments[command], "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1 and ran.out.startswith("{")
    validate(command, ran.json)


@pytest.mark.xdist_group("demo")
def test_the_demo_prints_one_object_too(demo: Any) -> None:
    ran, _ = demo
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    validate("demo", ran.json)


def test_files_without_answers_give_null(cli: Any, float_file: Path, int8_file: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "unlabelled.npz", image=np.zeros((3, 1, 8, 8), np.float32))
    found = cli("evaluate", int8_file, "--data", tmp_path / "unlabelled.npz", "--json").json
    validate("evaluate", found)
    unknown = ("top1", "top5", "agreement", "sqnr_db", "drop")
    empty: dict[str, object] = {
        "images": 3,
        **dict.fromkeys(unknown),
        "simulated": False,
        "outputs": [],
        "metrics": [],
    }
    assert {key: found[key] for key in empty} == empty
    same = cli("evaluate", float_file, "--data", tmp_path / "unlabelled.npz", "--against", float_file, "--json").json
    validate("evaluate", same)
    assert (same["agreement"], same["sqnr_db"]) == (1.0, None)


# The check, checked.


def test_what_is_not_in_the_schema_is_refused() -> None:
    row = dict(model="m", runtime="r", threads=0, batch=1, median_ms=1.0, p10_ms=1.0, p90_ms=1.0, ratio=1)
    good = {"rows": [row | {"runtime_ratio": 1}], "fastest": []}
    validate("benchmark", {**good, "more": 1})
    with pytest.raises(jsonschema.ValidationError, match="'rows' is a required property"):
        validate("benchmark", {})
    good["rows"][0]["ratio"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is less than or equal to the minimum of 0"):
        validate("benchmark", good)
