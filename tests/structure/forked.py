"""Python's commands in forks of a process that has imported what takes seconds: the libraries, nothing of bitwright.

    python forked.py SOCKET                     serves, once it has printed a line, until its standard input ends
    python forked.py SOCKET -m MODULE [ARG ...] is `python -m MODULE ARG ...`, run by it; so are -c TEXT and a script

A client hands over its folder, environment and standard streams, and ends with the exit code of the fork.
"""

from __future__ import annotations

import json
import os
import runpy
import selectors
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: None that starts a thread when it is imported, as onnxruntime does: a fork has only one.
LIBRARIES = ("numpy", "scipy.optimize", "onnx", "onnx_ir", "torch", "pytest", "rich.progress", "yaml")


def serve(path: str) -> None:
    """Fork for each client."""
    for name in LIBRARIES:
        __import__(name)
    threads = Path("/proc/self/task")
    if threads.exists() and len(list(threads.iterdir())) > 1:
        sys.exit(f"one of {', '.join(LIBRARIES)} has started a thread, which a fork would lack: leave it out")
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        server.bind(path)
        server.listen()
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is server for key, _ in selector.select()):
            client, _ = server.accept()
            with client:
                told, streams, _, _ = socket.recv_fds(client, 1 << 16, 3)
                while not told.endswith(b"\n"):
                    told += client.recv(1 << 16)
                child = os.fork()
                if child == 0:
                    for stream, given in enumerate(streams):
                        os.dup2(given, stream)
                    sys.exit(run(**json.loads(told)))
                for given in streams:
                    os.close(given)
                client.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run(arguments: Sequence[str], folder: str, environment: Mapping[str, str]) -> Any:
    """What `python ARGUMENTS` does in a folder; its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    first, *rest = arguments
    script = first not in ("-m", "-c")
    beside = os.path.dirname(os.path.abspath(first)) if script else folder
    sys.path[:1] = [beside, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = list(arguments) if script else [first, *rest[1:]]
    try:
        if script:
            runpy.run_path(first, run_name="__main__")
        elif first == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            exec(rest[0], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def ask(path: str, arguments: Sequence[str]) -> int:
    """Have a command run; its exit code."""
    told = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        socket.send_fds(client, [b" "], [0, 1, 2])
        client.sendall(json.dumps(told).encode() + b"\n")
        return int(client.recv(16))


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    serve(sys.argv[1])
