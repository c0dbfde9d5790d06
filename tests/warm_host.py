"""Hosts that start in a fifth of the time: forked from a process that has imported what `serve` imports.

They are real processes, children of the test's, with an environment, files and a session of their own; only
the imports, which are the same every time, are not made again. Nor are those of the processes that a host
starts itself: the first of each kind is born with the host, and waits until the host wants it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psutil

ROOT: Final = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NAME: Final = 15
PACKET: Final = 1 << 20
BIRTH_S: Final = 120.0
CHILDREN: Final = ("host.models.worker", "mcp_server.zygote")
"""The modules that a host starts as processes."""


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
    except TimeoutError:
        _zygote.cache_clear()  # an answer that came late would be taken for the next one's
        raise
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
    ours.settimeout(BIRTH_S)
    atexit.register(_end, ours, process)
    return ours


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    process.wait(60)


def is_process(process: psutil.Process, module: str) -> bool:
    """Return whether a process (of psutil) is a host's ``module``, started or born with it."""
    return module in process.cmdline() or process.name() == module[:15]


def main(control: socket.socket) -> None:
    """Fork a host for every packet."""
    from host.cli.serve import serve

    for name in ("host.app", "anyio._backends._asyncio", "shared.store.volume.volume", *CHILDREN):
        importlib.import_module(name)
    importlib.import_module("mcp_server.session").warm()
    importlib.import_module("tests.made_once").copy_new_databases()
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        importlib.import_module("shared.store.sqlite.store").migrate(connection)
    gc.collect()
    gc.freeze()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 1)
        if not packet:
            return
        if (born := _orphan()) == 0:
            control.close()
            _become(json.loads(packet), descriptors[0])
            sys.exit(_served(serve))
        os.close(descriptors[0])
        control.send(str(born).encode())


def _served(serve: Callable[[], int]) -> int:
    """Be a host, with children that wait until it wants them."""
    unborn: list[_Unborn] = []
    for module in CHILDREN:
        unborn.append(_Unborn.conceive(module, unborn))
    _start_with(unborn)
    try:
        return serve()
    finally:
        for each in unborn:
            each.forget()


@dataclass
class _Unborn:
    """A child of the host that waits to be told its command, and ends with the host."""

    module: str
    pid: int
    ours: socket.socket

    @classmethod
    def conceive(cls, module: str, elders: list[_Unborn]) -> _Unborn:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if pid := os.fork():
            theirs.close()
            return cls(module, pid, ours)
        for socket_of_host in (ours, *(each.ours for each in elders)):
            socket_of_host.close()
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_NAME, module.encode())
        packet, descriptors, _, _ = socket.recv_fds(theirs, PACKET, 1)
        if not packet:
            os._exit(0)
        theirs.close()
        del sys.modules[module]  # it is run once more, as the program
        os.environ.clear()
        environment, arguments = json.loads(packet)
        os.environ.update(environment)
        os.chdir(os.sep)
        os.dup2(0, 1)
        sys.argv = [module, str(descriptors[0]), *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)

    def bear(
        self, theirs: socket.socket, environment: Mapping[str, str], arguments: tuple[str, ...]
    ) -> _Born:
        packet = json.dumps([dict(environment), arguments]).encode()
        with self.ours:
            socket.send_fds(self.ours, [packet], [theirs.fileno()])
        return _Born(self.pid)

    def forget(self) -> None:
        """End it, if it was never wanted."""
        if self.ours.fileno() >= 0:
            self.ours.close()
            os.waitpid(self.pid, 0)


class _Born:
    """A process as ``anyio.open_process`` returns it, as far as the host looks at one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._handle = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._handle, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set()

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode

    def kill(self) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        await self.wait()


def _start_with(unborn: list[_Unborn]) -> None:
    """Have the host take the first child of each kind from those that wait."""
    children = importlib.import_module("shared.children")
    started = children.begun
    waiting = {each.module: each for each in unborn}

    async def begun(
        module: str, theirs: socket.socket, environment: Mapping[str, str], *arguments: str
    ) -> Any:
        first = waiting.pop(module, None)
        if first is None:
            return await started(module, theirs, environment, *arguments)
        return first.bear(theirs, environment, arguments)

    for module in ("shared.children", "host.mcp_clients.zygote"):
        setattr(importlib.import_module(module), "begun", begun)  # noqa: B010 - the checker knows no such module


def _orphan() -> int:
    """Fork a process whose parent has ended; return its id, in it 0."""
    reading, writing = os.pipe()
    if (between := os.fork()) == 0:
        if born := os.fork():
            os.write(writing, str(born).encode())
            os._exit(0)
        os.close(writing)
    else:
        os.close(writing)
        os.waitpid(between, 0)
        born = int(os.read(reading, 64))
    os.close(reading)
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
