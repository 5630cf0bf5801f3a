from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from bitwright.cost.timing_cache import default_path, fingerprint, open_cache

SAMPLES = {"W8": [1.0, 2.0, 3.0], "W4": [1.5, 2.5, 3.5], "float": [4.0, 5.0, 6.0]}


def keep(path: Path, machine: str = "here") -> None:
    cache = open_cache(path, machine)
    cache.add("conv", SAMPLES, 0.02)
    cache.save()


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latency.json"
    keep(path)
    cache = open_cache(path, "here")
    assert cache.samples("conv", SAMPLES, 3, 0.02) == SAMPLES
    assert cache.samples("conv", {"W8": b"", "W4": b""}, 2, 0.01) == {k: SAMPLES[k] for k in ("W8", "W4")}


@pytest.mark.parametrize(
    ("signature", "wanted", "rounds", "seconds"),
    [("gemm", ["W8"], 3, 0.02), ("conv", ["W8", "W2"], 3, 0.02), ("conv", ["W8"], 4, 0.02), ("conv", ["W8"], 3, 0.1)],
)
def test_other_regions_widths_more_rounds_and_longer_samples_are_not_known(
    signature: str, wanted: list[str], rounds: int, seconds: float, tmp_path: Path
) -> None:
    path = tmp_path / "latency.json"
    keep(path)
    assert open_cache(path, "here").samples(signature, dict.fromkeys(wanted), rounds, seconds) is None


def test_timings_of_another_machine_are_not_used_and_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "latency.json"
    keep(path, "there")
    with caplog.at_level(logging.INFO, "bitwright"):
        cache = open_cache(path, "here")
    assert cache.samples("conv", SAMPLES, 3, 0.02) is None
    assert "has timings of 1 other machines or versions, which are not used: this is here" in caplog.text
    keep(path, "here")
    for machine in ("here", "there"):
        assert open_cache(path, machine).samples("conv", SAMPLES, 3, 0.02) == SAMPLES


def test_what_others_wrote_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    first, second = open_cache(path, "here"), open_cache(path, "here")
    first.add("a", SAMPLES, 0.02)
    second.add("b", SAMPLES, 0.02)
    first.save()
    second.save()
    assert set(open_cache(path, "here").entries) == {"a", "b"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "it cannot be read"),
        ("\udcff", "it cannot be read"),
        ("[]", "it is of version None, not 1"),
        ('{"version": 2, "machines": {}}', "it is of version 2, not 1"),
        ('{"version": 1}', "it does not hold timings"),
        ('{"version": 1, "machines": {"here": 3}}', "it does not hold timings"),
        ('{"version": 1, "machines": {"here": {"conv": {"seconds": 1}}}}', "it does not hold timings"),
        ('{"version": 1, "machines": {"here": {"conv": {"seconds": 1, "samples": {"W8": []}}}}}', "not hold timings"),
        (
            '{"version": 1, "machines": {"here": {"conv": {"seconds": 1, "samples": {"W8": [-1]}}}}}',
            "not hold timings",
        ),
        (
            '{"version": 1, "machines": {"here": {"conv": {"seconds": 1, "samples": {"W8": [1], "W4": [1, 2]}}}}}',
            "not hold timings",
        ),
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning_and_written_anew(
    content: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING, "bitwright"):
        cache = open_cache(path, "here")
    assert cache.entries == {} and told in caplog.text and str(path) in caplog.text
    keep(path)
    assert open_cache(path, "here").samples("conv", SAMPLES, 3, 0.02) == SAMPLES
    assert json.loads(path.read_text())["version"] == 1


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = open_cache(tmp_path / "latency.json", "here")
    cache.add("conv", SAMPLES, 0.02)
    cache = type(cache)(path=tmp_path / "file" / "latency.json", machine="here", entries=cache.entries)
    with caplog.at_level(logging.WARNING, "bitwright"):
        cache.save()
    assert "timings are not kept" in caplog.text


def test_where_timings_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_path() == tmp_path / "caches" / "bitwright" / "latency.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".cache" / "bitwright" / "latency.json"


def test_a_fingerprint_names_what_timings_depend_on() -> None:
    one, two = fingerprint("onnxruntime", 1), fingerprint("onnxruntime", 2)
    assert one != two and "onnxruntime 1." in one and "cores" in one and "1 threads" in one
    assert "all threads" in fingerprint("onnxruntime", 0)
