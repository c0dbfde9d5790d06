"""Hosts that start in a fifth of the time: forked from a process that has imported what `serve` imports.

They are real processes, children of the test's, with an environment, files and a session of their own; only
the imports, which are the same every time, are not made again.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER: Final = 36
PACKET: Final = 1 << 20


class WarmHost(subprocess.Popen[bytes]):
    """A host that was forked; else as if it had been started by its command."""

    def __init__(self, environment: Mapping[str, str], log: int) -> None:
        self._born = functools.partial(_bear, environment, log)
        super().__init__(("picoclaw", "serve"))

    def _execute_child(self, *_: Any) -> None:
        self.pid = self._born()
        self._child_created = True


def _bear(environment: Mapping[str, str], log: int) -> int:
    """Return the process id of a new host, which is our child: its parent goes, and we take the orphan."""
    adopt = functools.partial(ctypes.CDLL(None).prctl, PR_SET_CHILD_SUBREAPER)
    zygote = _zygote()
    adopt(1)
    try:
        socket.send_fds(zygote, [json.dumps(dict(environment)).encode()], [log])
        return int(zygote.recv(64))
    finally:
        adopt(0)


@functools.cache
def _zygote() -> socket.socket:
    """Start the zygote of this process; return the way to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "TZ": "UTC"},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    atexit.register(_end, ours, process)
    return ours


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait(60)


def main(control: socket.socket) -> None:
    """Fork a host for every packet."""
    from host.cli.serve import serve

    importlib.import_module("host.app")
    gc.collect()
    gc.freeze()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 1)
        if not packet:
            return
        if (born := _orphan()) == 0:
            control.close()
            _become(json.loads(packet), descriptors[0])
            sys.exit(serve())
        os.close(descriptors[0])
        control.send(str(born).encode())


def _orphan() -> int:
    """Fork a process whose parent has ended; return its id, in it 0."""
    reading, writing = os.pipe()
    if (between := os.fork()) == 0:
        if born := os.fork():
            os.write(writing, str(born).encode())
            os._exit(0)
    else:
        os.waitpid(between, 0)
        born = int(os.read(reading, 64))
    os.close(reading)
    os.close(writing)
    return born


def _become(environment: dict[str, str], log: int) -> None:
    """Be a process as it was asked for: its session, environment, and standard streams."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None  # what the warm process found out for itself
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.close(nothing)
    os.close(log)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
