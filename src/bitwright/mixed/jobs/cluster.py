"""Jobs as tasks of a Ray cluster.

A task whose worker or machine dies is begun again by Ray, elsewhere if need be; one that raises is not.

Source: Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, OSDI 2018;
https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.errors import InputError, UnsupportedError, first_line
from bitwright.mixed.jobs.executor import Done, J, R, check_counts, keep_busy
from bitwright.mixed.jobs.task import run, share

#: Address of a cluster that is started on this machine, and ends with the jobs.
LOCAL = "local"
#: Bytes of shared memory of such a cluster; what is beyond goes to disk.
STORE = 200 * 2**20
#: Addresses of clusters that this process started: their workers have its path from the beginning.
_STARTED: set[str] = set()
#: Seconds in which a cluster has to answer.
TIMEOUT = 5.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """On a Ray cluster of which this machine is a part.

    A connection of this process that is open already is used, and left open; one that is opened here is closed again.

    Attributes:
        address: HOST:PORT of the cluster; `auto` for the one that this machine belongs to; `local` for one that is
            started on this machine, with as many cores as the workers have threads.
        workers: jobs at once; 2 on a local cluster, as many as the cluster has room for on others if not said.
        threads: cores, and threads, of a job; on a local cluster this machine's divided by `workers`, on others 1 if
            not said.
        retries: how often a job is tried again after its worker died.

    Raises:
        InputError: another form of address, a count below 1, or retries below 0.

    Example:
        >>> RayCluster(workers=4, threads=2).cores, RayCluster(address="auto").cores
        (2, 1)
    """

    address: str = LOCAL
    workers: int | None = None
    threads: int | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        check_counts("ray", workers=self.workers, threads=self.threads, retries=self.retries)
        host, _, port = self.address.rpartition(":")
        if self.address not in (LOCAL, "auto") and not (host and port.isdecimal() and "/" not in host):
            raise InputError("ray", f"the address {self.address!r}", "HOST:PORT, auto or local")

    def run(self, function: Callable[[J], R], jobs: Sequence[J], done: Done[R] | None = None) -> list[R]:
        """The results, in the order of the jobs; `Executor.run`.

        Raises:
            UnsupportedError: Ray is not installed.
            InputError: nothing of Ray answers at the address, or no machine has enough cores for a job.
        """
        ray = _ray()
        with self.connected() as cluster:
            return keep_busy(_Tasks(ray, cluster), function, jobs, done, retries=0, told=self.retries + 1)

    @contextlib.contextmanager
    def connected(self) -> Iterator[RayCluster]:
        """The cluster with a connection that stays open between runs; a local one starts and ends with it.

        Raises:
            UnsupportedError: Ray is not installed.
            InputError: nothing of Ray answers at the address, or this process is connected to another one.
        """
        ray = _ray()
        with contextlib.ExitStack() as closing:
            opened = not ray.is_initialized()
            if opened:
                closing.enter_context(_messages_to_stderr(ray))
                self._open(ray)
                closing.callback(ray.shutdown)
            now = ray.get_runtime_context().gcs_address
            if not opened and self.address not in ("auto", now):
                raise InputError(
                    f"ray {self.address}", f"this process is connected to {now} already", "that address, or auto"
                )
            if self.address != LOCAL:
                yield dataclasses.replace(self, address=now)
                return
            _STARTED.add(now)
            closing.callback(_STARTED.discard, now)
            yield dataclasses.replace(self, address=now, workers=self.at_once, threads=self.cores)

    def _open(self, ray: Any) -> None:
        """Connect this process."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == LOCAL:
            options |= {"num_cpus": self.at_once * self.cores, "include_dashboard": False}
            options |= {"object_store_memory": STORE}
        elif self.address != "auto":
            _answers(self.address)
        try:
            with _path_exported() if self.address == LOCAL else contextlib.nullcontext():
                ray.init(address=self.address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(self.address, first_line(error)) from error

    @property
    def at_once(self) -> int:
        """Jobs at once on a local cluster."""
        return self.workers or 2

    @property
    def cores(self) -> int:
        """Cores of a job."""
        return self.threads or (share(self.at_once) if self.address == LOCAL else 1)


class _Tasks:
    """Tasks of the cluster that this process is connected to."""

    def __init__(self, ray: Any, settings: RayCluster) -> None:
        self.ray, self.settings = ray, settings
        cores = settings.cores
        largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if 0 < largest < cores:  # none at all where machines are started for tasks that wait
            raise InputError(
                "ray.threads", f"{cores} cores for a job", f"at most {largest:g}, which the largest machine has"
            )
        options: dict[str, Any] = {"num_cpus": cores, "max_retries": settings.retries, "retry_exceptions": False}
        if settings.address not in _STARTED:
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": _path()}}
        self.task = ray.remote(run).options(**options)
        self.function: tuple[bytes, Any] | None = None

    def width(self) -> int:
        if self.settings.workers is not None:
            return self.settings.workers
        return max(1, int(self.ray.cluster_resources().get("CPU", 0.0) // self.settings.cores))

    def start(self, function: bytes, job: bytes) -> Any:
        if self.function is None or self.function[0] is not function:
            self.function = function, self.ray.put(function)  # sent once, whatever it carries
        return self.task.remote(self.function[1], job, self.settings.cores)

    def ended(self, running: Collection[Any]) -> Iterable[Any]:
        return self.ray.wait(list(running), num_returns=1)[0]

    def outcome(self, handle: Any) -> bytes | None:
        try:
            return bytes(self.ray.get(handle))
        except self.ray.exceptions.RayTaskError as error:
            # What the function raises comes back as bytes: here the worker could not even begin.
            raise InputError(
                f"ray {self.settings.address}", f"a worker could not run a job: {first_line(error.cause or error)}",
                "this version of bitwright on every machine of the cluster", 'pip install "bitwright[ray]" there',
            ) from error  # fmt: skip
        except self.ray.exceptions.RayError:
            return None


def _ray() -> Any:
    """The package.

    Raises:
        UnsupportedError: it is not installed.
    """
    # Read when it is imported and when a cluster starts: workers run this Python and not `uv run` again, and a cluster
    # that is started here sends nothing about itself to anybody.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("ray", "is not installed", "the package ray", 'pip install "bitwright[ray]"') from error
    return ray


def _path() -> str:
    """What workers need to import what this process can: folders of its path that come with no Python."""
    own = tuple(os.path.realpath(prefix) + os.sep for prefix in (sys.prefix, sys.base_prefix))
    folders = [os.path.realpath(path or os.curdir) for path in sys.path]
    return os.pathsep.join(path for path in dict.fromkeys(folders) if os.path.isdir(path) and not path.startswith(own))


@contextlib.contextmanager
def _path_exported() -> Iterator[None]:
    """While a cluster starts: its workers inherit the path, and start a second sooner than with one of their own."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _path()
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _messages_to_stderr(ray: Any) -> Iterator[None]:
    """Ray prints what happens to workers to standard output, whatever its settings; that belongs to the commands."""
    module = ray._private.worker
    plain = module.print_to_stdstream

    def to_stderr(data: dict[str, Any], **options: Any) -> None:
        plain({**data, "is_err": True}, **options)

    module.print_to_stdstream = to_stderr
    try:
        yield
    finally:
        module.print_to_stdstream = plain


def _answers(address: str) -> None:
    """Whether a server of HTTP/2 is there, which Ray's is: Ray itself would try for minutes.

    Raises:
        InputError: none is.

    Source: RFC 9113, section 3.4: after the client's first words the server's begin with a frame of type 4.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise _unreachable(address, first_line(error)) from error
    if answer[3:4] != b"\4":
        raise _unreachable(address, "something else listens there")


def _unreachable(address: str, why: str) -> InputError:
    return InputError(
        f"ray {address}", f"no cluster answers: {why}", "the address of a Ray cluster",
        "start one with `ray start --head`, or say local",
    )  # fmt: skip
