"""`bitwright sensitivity` tells of interactions what it has measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bitwright.verbs.sensitivity import Sensitivity
from bitwright.verbs.terminal import Terminal


@pytest.mark.parametrize("pairs", ["none", "neighbours"])
def test_pairs_are_told_where_they_are_measured(assets: Path, pairs: str) -> None:
    asked = Sensitivity(
        model=str(assets / "digits.onnx"), data_path=str(assets / "digits_calib.npz"), method="kl", weights="7,2",
        measure=(f"pairs={pairs}",), inside="int8", target="onnxruntime-x64-avx2", limit=8,
    )  # fmt: skip
    found = asked.run(Terminal()).json
    names = [group["name"] for group in found["groups"]]
    told = {tuple(pair["groups"]): pair["losses"] for pair in found["pairs"]}
    if pairs == "none":
        assert told == {} and found["passes"] == 2 + 6
        return
    assert list(told) == list(itertools.pairwise(names)) and found["passes"] == 2 + 6 + 5
    for (nothing, first), (second, both) in told.values():
        assert nothing == first == second == 0.0 != both
