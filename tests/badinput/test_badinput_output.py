"""Files that cannot be written: an earlier one stays as it was, and nothing is left half-way."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from bitwright.cli import main

Refused = Callable[..., str]
Arguments = Callable[..., list[object]]


def test_the_network_itself(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(digits.read_bytes())
    refused(quantize(path, "-o", path), r"net\.onnx: is the float network itself; expected another file")
    (tmp_path / "link.onnx").symlink_to(path)
    refused(quantize(path, "-o", tmp_path / "link.onnx"), r"link\.onnx: is the float network itself")
    os.link(path, tmp_path / "same.onnx")
    refused(quantize(path, "-o", tmp_path / "same.onnx"), r"same\.onnx: is the float network itself")
    refused(quantize(path, "-o", tmp_path / "." / "net.onnx"), "is the float network itself")


def test_its_external_data(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(onnx.load(digits), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    refused(quantize(path, "-o", tmp_path / "weights.bin"), r"weights\.bin: is a part of the float network")


def test_the_data(refused: Refused, quantize: Arguments, digits: Path, images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    data.write_bytes(images.read_bytes())
    refused(quantize(digits, "--data", data, "-o", data), r"data\.npz: is what --data names; expected another file")
    refused(quantize(digits, "--eval-data", data, "-o", data), r"data\.npz: is what --eval-data names")


def test_no_such_folder(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    refused(quantize(digits, "-o", tmp_path / "gone" / "out.onnx"), "folder '.*gone' does not exist; create it first")


def test_a_file_as_folder(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    refused(quantize(digits, "-o", tmp_path / "file" / "out.onnx"), r"file/out\.onnx: folder '.*file'")


def test_a_folder_as_file(refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    refused(quantize(digits, "-o", tmp_path), ": is a folder; expected a file's name")


def test_a_folder_that_is_not_writable(refused: Refused, quantize: Arguments, digits: Path) -> None:
    """Not even for root."""
    refused(
        quantize(digits, "-o", "/proc/out.onnx"), r"/proc/out\.onnx: ", "writable|written", "choose another --output"
    )


FAULTS = {"disk full": errno.ENOSPC, "quota": errno.EDQUOT, "device gone": errno.EIO}


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("fault", FAULTS)
def test_writing_fails(
    fault: str, place: str, refused: Refused, quantize: Arguments, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code = FAULTS[fault]

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync" if place == "fsync" else "replace", fail)
    if place == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    (tmp_path / "out.onnx").write_bytes(b"an earlier file")
    refused(quantize(digits), rf"out\.onnx: cannot be written: {os.strerror(code)}", "choose another --output")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB; the written network has 54."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(refused: Refused, quantize: Arguments, digits: Path, small_disk: Path) -> None:
    (small_disk / "out.onnx").write_bytes(b"an earlier file")
    refused(quantize(digits, "-o", small_disk / "out.onnx"), r"out\.onnx: cannot be written: No space left on device")
    assert [p.name for p in small_disk.iterdir()] == ["out.onnx"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from bitwright.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_limit_on_the_size_of_files(quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"an earlier file")
    arguments = [str(a) for a in [*quantize(digits), "--quiet"]]
    ran = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("bitwright: ") and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "File too large" in ran.stderr
    assert (tmp_path / "out.onnx").read_bytes() == b"an earlier file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx"]


def test_an_earlier_file_is_replaced_when_all_went_well(quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"an earlier file")
    assert main([str(a) for a in [*quantize(digits), "--quiet"]]) == 0
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx"]


#: Stops where the run has come to: just before a function is called, for the first time.
STOPPED = """
import importlib, os, signal, sys
module, name = sys.argv[1].split(":")
holder = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    holder = getattr(holder, part)
def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(holder, last, stop)
from bitwright.cli import main
sys.exit(main(sys.argv[2:]))
"""
MOMENTS = ["bitwright.ptq.calibrate:observe", "os:fsync", "pathlib:Path.replace"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment(moment: str, quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    """What is killed cannot clean up after itself: but the output is the earlier file."""
    output = tmp_path / "out.onnx"
    output.write_bytes(b"an earlier file")
    arguments = [str(a) for a in [*quantize(digits), "--quiet"]]
    ran = subprocess.run([sys.executable, "-c", STOPPED, moment, *arguments], capture_output=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert output.read_bytes() == b"an earlier file"
    # A temporary file of the killed run neither takes the output's name nor stands in the next run's way.
    assert {p.name for p in tmp_path.iterdir()} - {"out.onnx"} <= {p.name for p in tmp_path.glob(".*.part")}
    assert main([str(a) for a in [*quantize(digits), "--quiet"]]) == 0
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


def test_killed_at_any_time(quantize: Arguments, digits: Path, tmp_path: Path) -> None:
    """The output is none, or a whole file."""
    output = tmp_path / "out.onnx"
    command = [sys.executable, "-m", "bitwright", *(str(a) for a in [*quantize(digits), "--quiet"])]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole, seconds = output.read_bytes(), time.perf_counter() - start
    for share in (0.7, 0.9):
        output.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * seconds)
        process.kill()
        process.wait()
        assert not output.exists() or output.read_bytes() == whole


@pytest.mark.parametrize("moment", [("bitwright.ptq.calibrate", "observe"), ("os", "fsync")])
def test_interrupted(
    moment: tuple[str, str], quantize: Arguments, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Ctrl-C: one line below the terminal's ^C, no traceback, and the temporary file is taken away."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(moment[0]), moment[1], interrupt)
    assert main([str(a) for a in [*quantize(digits), "--quiet"]]) == 130
    assert capfd.readouterr().err.split("\n") == ["", "bitwright: interrupted", ""]
    assert list(tmp_path.iterdir()) == []
