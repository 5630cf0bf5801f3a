"""`bitwright methods`: every row of the tables, with its parameters, defaults and source, no more and no less."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from bitwright.execute import OPS
from bitwright.targets import TARGETS
from bitwright.verbs.methods import KINDS, source_of


def test_every_row_of_every_table(cli: Any) -> None:
    found = cli("methods", "--json").json
    text = cli("methods").out
    for kind, (_, table) in KINDS.items():
        assert [row["name"] for row in found[kind]] == list(table)
        for row in found[kind]:
            assert row["help"] == table[row["name"]].help and row["help"] in text
            if row["missing"] is not None:
                continue
            loaded = table[row["name"]].load()
            fields = dataclasses.fields(loaded) if inspect.isclass(loaded) and dataclasses.is_dataclass(loaded) else ()
            assert {*row["required"], *row["parameters"]} == {field.name for field in fields}
            for field in fields:
                if isinstance(field.default, bool | int | float | str):
                    assert row["parameters"][field.name] == field.default
                    assert f"{field.name}={field.default}" in text
    assert found["ops"] == len(OPS) and f"{len(OPS)} ONNX ops run on torch" in text


def test_packings_are_those_that_targets_choose(cli: Any) -> None:
    told = {row["name"]: row["targets"] for row in cli("methods", "packings", "--json").json["packings"]}
    for name in TARGETS:
        for number_format, widths in TARGETS[name].load().weight_packing.items():
            for bits, packing in widths.items():
                assert bits in told[packing][name][number_format]
    count = sum(len(bits) for targets in told.values() for formats in targets.values() for bits in formats.values())
    assert count == sum(len(w) for name in TARGETS for w in TARGETS[name].load().weight_packing.values())


def test_one_kind_at_a_time(cli: Any) -> None:
    found = cli("methods", "estimators", "--json").json
    assert found["estimators"] and not found["steps"] and not found["packings"]
    text = cli("methods", "estimators").out
    assert text.startswith("estimators (") and "formats (" not in text
    rows = {row["name"]: row for row in found["estimators"]}
    assert rows["percentile"]["parameters"]["percentile"] == 99.99
    assert rows["aciq"]["source"].startswith("Banner et al., Post Training 4-bit Quantization")
    assert rows["minmax"]["source"] is None


def test_a_required_parameter_is_told_as_such(cli: Any) -> None:
    (affine,) = [row for row in cli("methods", "formats", "--json").json["formats"] if row["name"] == "affine"]
    assert affine["required"] == ["bits", "signed"] and affine["parameters"] == {"narrow": False}


@pytest.mark.parametrize(
    ("doc", "source"),
    [
        ("One line.", None),
        ("x\n\nSource: Smith et al., A Title, section 3.1. More. And more.", "Smith et al., A Title, section 3.1"),
        ("x\n\nSource: A,\nB.\n\nOther: C.", "A, B"),
        ("x\n\n    Source: A Title (a note)\n", "A Title (a note)"),
    ],
)  # fmt: skip
def test_the_source_is_the_first_sentence(doc: str, source: str | None) -> None:
    def method() -> None: ...

    method.__doc__, method.__module__ = doc, "no.such.module"
    assert source_of(method) == source
