"""Independent jobs: every executor gives the same results in order, hands them over, and outlives its workers."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitwright.errors import BitwrightError, GoalError, InputError, UnsupportedError
from bitwright.mixed.jobs import EXECUTORS, task
from bitwright.mixed.jobs.cluster import RayCluster, _answers
from bitwright.mixed.jobs.executor import Executor, died
from bitwright.mixed.jobs.here import Here
from bitwright.mixed.jobs.processes import Processes
from bitwright.mixed.jobs.task import run, share, threads, unpacked

RAY = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "bitwright[ray]"'),
]


# What workers run: functions of this module.


def later(job: tuple[float, int]) -> tuple[int, int, tuple[int, str | None]]:
    """Sleep, then square; with the process and its threads."""
    seconds, number = job
    print("from a worker")
    time.sleep(seconds)
    return number**2, os.getpid(), (threads(), os.environ.get("MKL_NUM_THREADS"))


def refuse(job: str) -> str:
    if job.startswith("input"):
        Path(job.removeprefix("input ")).touch()
        raise InputError("W", "17 bits", "1 to 16 bits", "choose W=8")
    if job == "goal":
        raise GoalError("drop", "2 points")
    if job == "value":
        raise ValueError("no such thing")
    if job.startswith("after"):
        while not Path(job.removeprefix("after ")).exists():
            time.sleep(0.02)
        time.sleep(0.4)
    if job == "odd":
        raise OddError(3, "parts")
    return job


class OddError(Exception):
    """Cannot be unpickled: its constructor wants other arguments than it passes on."""

    def __init__(self, number: int, word: str) -> None:
        super().__init__(f"{number} {word}")


def die_at_first(marker: Path | None) -> str:
    """Kill the worker, once."""
    if marker is not None and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived" if marker else "never killed"


def die_always(job: str) -> str:
    if job == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return job


# Before a connection is open.


@pytest.mark.xdist_group("ray")
@RAY[1]
def test_an_address_at_which_nothing_answers_is_named() -> None:
    with pytest.raises(InputError, match=r"^ray 127\.0\.0\.1:1: no cluster answers: .*refused"):
        RayCluster(address="127.0.0.1:1").run(refuse, ["a"])


@pytest.mark.xdist_group("ray")
@RAY[1]
@pytest.mark.parametrize(
    ("words", "told"), [(b"SSH-2.0-none\r\n", "something else listens there"), (b"", "timed out")]
)
def test_another_server_at_the_address_is_told(words: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.mixed.jobs.cluster.TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        accepted: list[socket.socket] = []

        def answer() -> None:
            accepted.append(server.accept()[0])
            accepted[0].sendall(words)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InputError, match=f"^ray {address}: no cluster answers: {told}"):
            RayCluster(address=address).run(refuse, ["a"])
        thread.join()
        accepted[0].close()


# Every executor.


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A local cluster of two workers, which prints nothing to standard output and is gone afterwards."""
    import ray

    path = os.environ.get("PYTHONPATH")
    with RayCluster(workers=2, threads=1, retries=1).connected() as found:
        assert os.environ.get("PYTHONPATH") == path
        yield found
    assert not ray.is_initialized()


@pytest.fixture(params=["here", "processes", pytest.param("ray", marks=RAY)])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "ray":
        return request.getfixturevalue("cluster")
    return EXECUTORS[request.param].load()(**({"threads": 1, "retries": 1} if request.param == "processes" else {}))


@pytest.fixture(params=["processes", pytest.param("ray", marks=RAY)])
def apart(request: pytest.FixtureRequest) -> Executor:
    """An executor whose workers are other processes; each job is tried twice."""
    return request.getfixturevalue("cluster") if request.param == "ray" else Processes(workers=2, threads=1, retries=1)


def test_results_are_in_the_order_of_the_jobs_and_handed_over_as_they_come(executor: Executor) -> None:
    jobs = [(0.6, 1), (0.0, 2), (0.0, 3), (0.0, 4)]
    given: list[tuple[int, object]] = []
    found = executor.run(later, jobs, lambda i, result: given.append((i, result)))
    assert [square for square, _, _ in found] == [1, 4, 9, 16]
    assert sorted(given, key=lambda pair: pair[0]) == list(enumerate(found))
    pids = {pid for _, pid, _ in found}
    if isinstance(executor, Here):
        assert pids == {os.getpid()} and [i for i, _ in given] == [0, 1, 2, 3]
    else:
        assert os.getpid() not in pids and {limit for *_, limit in found} == {(1, "1")}
        assert isinstance(executor, RayCluster) or (len(pids) == 2 and given[-1][0] == 0)
    assert executor.run(later, []) == []


def test_what_a_job_raises_is_raised_and_what_was_done_before_is_kept(executor: Executor, tmp_path: Path) -> None:
    marker = tmp_path / "refused"
    given: list[str] = []
    with pytest.raises(InputError) as caught:
        executor.run(
            refuse, ["fine", f"input {marker}", *[f"after {marker}"] * 8], lambda i, result: given.append(result)
        )
    assert str(caught.value) == "W: 17 bits; expected 1 to 16 bits; choose W=8"
    assert (caught.value.where, caught.value.fix) == ("W", "choose W=8")
    assert given[0] == "fine" and len(given) < 4
    with pytest.raises(ValueError, match="no such thing"):
        executor.run(refuse, ["value"])


def test_a_callback_that_fails_ends_it(executor: Executor) -> None:
    def full(i: int, result: str) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        executor.run(refuse, ["a", "b"], full)


def test_a_killed_worker_loses_nothing_and_its_job_is_tried_again(
    apart: Executor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given: list[int] = []
    found = apart.run(die_at_first, [None, tmp_path / "tried", None, None], lambda i, _: given.append(i))
    assert found == ["never killed", "survived", "never killed", "never killed"]
    assert (tmp_path / "tried").exists() and sorted(given) == [0, 1, 2, 3]
    assert capfd.readouterr().out == ""


def test_a_job_that_always_kills_its_worker_is_named(apart: Executor) -> None:
    given: list[str] = []
    with pytest.raises(BitwrightError, match=r"^job 2 of 2 \(deadly\): its worker died 2 times") as caught:
        apart.run(die_always, ["harmless", "deadly"], lambda i, result: given.append(result))
    assert not isinstance(caught.value, InputError) and given == ["harmless"]


# Processes.


def test_cores_are_shared_out_and_torch_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # here, as workers import this module

    cores = len(os.sched_getaffinity(0))
    assert (share(1), share(cores), share(10 * cores)) == (cores, 1, 1)
    before = torch.get_num_threads()
    for name in task.VARIABLES:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(task, "_limited", 0)
    task.limit_threads(before + 1)
    found = torch.get_num_threads(), threads(), os.environ["OMP_NUM_THREADS"]
    torch.set_num_threads(before)
    assert found == (before + 1, before + 1, str(before + 1))


def test_standard_output_belongs_to_the_commands(capfd: pytest.CaptureFixture[str]) -> None:
    Processes(workers=1, threads=1).run(later, [(0.0, 1)])
    output, errors = capfd.readouterr()
    assert output == "" and "from a worker" in errors


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, pathlib, time\n"
        "from bitwright.mixed.jobs.processes import Processes\n"
        "def work(folder):\n"
        "    (pathlib.Path(folder) / 'pid.part').write_text(str(os.getpid()))\n"
        "    os.rename(folder + '/pid.part', folder + '/pid')\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        f"    Processes(workers=1).run(work, [{str(tmp_path)!r}])\n"
    )
    driver = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    try:
        pid = int(wait_for(tmp_path / "pid"))
    finally:
        driver.kill()
        driver.wait()
    for _ in range(200):
        if not Path(f"/proc/{pid}/status").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker was still there after 10 s")


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no {path} after 30 s")


# Ray.


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r'^ray: is not installed; .*; pip install "bitwright\[ray\]"$'):
        RayCluster().run(refuse, ["a"])


@pytest.mark.xdist_group("ray")
@RAY[1]
def test_a_cluster_that_others_started_gets_the_path_with_each_job(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(cluster.address)  # what is asked before this process connects
    monkeypatch.setattr("bitwright.mixed.jobs.cluster._STARTED", set())
    assert RayCluster(address="auto", workers=1).run(refuse, ["a", "b"]) == ["a", "b"]


@pytest.mark.xdist_group("ray")
@RAY[1]
def test_another_cluster_than_the_one_connected_to_and_too_many_cores_are_refused(cluster: RayCluster) -> None:
    with pytest.raises(InputError, match=f"this process is connected to {cluster.address} already"):
        RayCluster().run(refuse, ["a"])
    with pytest.raises(InputError, match=r"ray\.threads: 99 cores for a job; expected at most 2"):
        RayCluster(address="auto", threads=99).run(refuse, ["a"])


# Settings and what passes between processes.


@pytest.mark.parametrize(
    ("executor", "told"),
    [
        (lambda: Processes(workers=0), r"processes\.workers: 0; expected 1 or more"),
        (lambda: Processes(threads=0), r"processes\.threads: 0; expected 1 or more"),
        (lambda: Processes(retries=-1), r"processes\.retries: -1; expected 0 or more"),
        (lambda: RayCluster(workers=0), r"ray\.workers: 0; expected 1 or more"),
        (lambda: RayCluster(address="head"), "ray: the address 'head'; expected HOST:PORT, auto or local"),
        (lambda: RayCluster(address="ray://head:10001"), "ray: the address 'ray://head:10001'"),
    ],
)
def test_settings_out_of_range_are_refused(executor: type[Executor], told: str) -> None:
    with pytest.raises(InputError, match=told):
        executor()


def test_an_error_passes_whole_and_one_that_cannot_is_told(tmp_path: Path) -> None:
    for name in (f"input {tmp_path / 'marker'}", "goal"):
        with pytest.raises(BitwrightError) as caught:
            unpacked(run(pickle.dumps(refuse), pickle.dumps(name), 0))
        assert "in refuse" in caught.value.__notes__[0], "where it was raised is told as a note"
    with pytest.raises(RuntimeError, match="OddError: 3 parts"):
        unpacked(run(pickle.dumps(refuse), pickle.dumps("odd"), 0))


def test_a_long_job_is_named_by_its_beginning() -> None:
    assert str(died(["x" * 1000], 0, 1)).startswith(f"job 1 of 1 ({'x' * 77}...): its worker died; expected")
