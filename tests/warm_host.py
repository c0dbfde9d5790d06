"""Programs that start in a fifth of the time: forked from a process that has imported what they import.

They are real processes, children of the test's, with a command line, an environment, files and a session of
their own; only the imports, which are the same every time, are not made again. Nor are those of the processes
that a host starts itself: the first of each kind is born with the host, and waits until the host wants it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import fcntl
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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

if TYPE_CHECKING:
    from io import TextIOWrapper

    import psutil

ROOT: Final = Path(__file__).parent.parent
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NAME: Final = 15
PACKET: Final = 1 << 20
BIRTH_S: Final = 120.0
HIGH: Final = 512
"""From here on are the descriptors of the zygote itself, libuv's too: a program is given lower numbers."""
CHILDREN: Final = ("host.models.worker", "mcp_server.zygote")
"""The modules that a host starts as processes."""
Cold: Final = subprocess.Popen
_BIRTHS: Final = threading.Lock()


class Warm(subprocess.Popen[Any]):
    """``python -m MODULE ...``, forked from a process that has imported the module; else as any ``Popen``.

    It leads a session of its own. In ``/proc`` it has the command and the environment of the process it was
    forked from: where a test looks for those, the program is started as people do.
    """

    def _execute_child(self, command: Sequence[str | bytes | Path], *given: Any) -> None:
        _, _, _, pass_fds, cwd, environment, _, _, _, *ends = given[:15]
        environment = dict(os.environ if environment is None else environment)
        command = [os.fsdecode(part) for part in command]
        ours = command[0] == sys.executable and "-m" in command
        if not ours or _of_python(environment) - _of_python(os.environ):
            cast(Any, super())._execute_child(command, *given)
            return
        module, *arguments = command[command.index("-m") + 1 :]
        streams = {at: fd if fd >= 0 else at for at, fd in enumerate((ends[0], ends[3], ends[5]))}
        descriptors = streams | {fd: fd for fd in pass_fds}
        folder = str(cwd or Path.cwd())
        wanted = {
            "module": module,
            "arguments": arguments,
            "path": [] if "-I" in command else [folder],
            "folder": folder,
            "environment": environment,
            "descriptors": list(descriptors),
        }
        self.pid = _bear(json.dumps(wanted).encode(), list(descriptors.values()))
        self._child_created = True
        cast(Any, self)._close_pipe_fds(*ends)


def _of_python(environment: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return what an environment tells an interpreter; the warm process has heard what ours does."""
    return {item for item in environment.items() if item[0].startswith("PYTHON")}


@contextlib.contextmanager
def warm() -> Iterator[None]:
    """While the block lasts, what asyncio and ``subprocess.run`` start is a ``Warm``."""
    subprocess.Popen = Warm  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = Cold  # type: ignore[misc]


def _bear(wanted: bytes, descriptors: list[int]) -> int:
    """Return the id of a new process, which is our child: its parent goes, and we take the orphan."""
    adopt = functools.partial(ctypes.CDLL(None).prctl, PR_SET_CHILD_SUBREAPER)
    with _BIRTHS:
        zygote = _zygote()
        adopt(1)
        try:
            socket.send_fds(zygote, [wanted], descriptors)
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
        process = Cold(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "TZ": "UTC", **dict(_of_python(os.environ))},
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


def main(inherited: int) -> None:
    """Fork a process for every packet that comes by a socket."""
    control = socket.socket(fileno=fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, HIGH))
    while (last := os.dup(inherited)) < HIGH:
        """Have libuv begin there, too."""
    os.close(last)
    for name in ("host.app", "anyio._backends._asyncio", "shared.store.volume.volume", *CHILDREN):
        importlib.import_module(name)
    _make_ready()
    importlib.import_module("mcp_server.session").warm()
    importlib.import_module("tests.made_once").make_once()
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        importlib.import_module("shared.store.sqlite.store").migrate(connection)
    os.closerange(3, HIGH)
    gc.collect()
    gc.freeze()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 64)
        if not packet:
            return
        wanted = json.loads(packet)
        if not _is_host(wanted):
            _warm_up(wanted["module"])
        if (born := _orphan()) == 0:
            control.close()
            _be(wanted, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(str(born).encode())


def _make_ready() -> None:
    """Make what each host makes the same: how settings are checked, the patterns of the routes."""
    importlib.import_module("shared.settings.tree").Settings.model_rebuild()
    operation = importlib.import_module("host.http.routing").Operation
    compile_path = importlib.import_module("starlette.routing").compile_path
    for each in gc.get_objects():
        if isinstance(each, operation):
            compile_path(each.path)


def _is_host(wanted: dict[str, Any]) -> bool:
    return bool(wanted["module"] == "host.cli" and wanted["arguments"] == ["serve"])


@functools.cache
def _warm_up(module: str) -> None:
    """Import what a program imports; of a host it is there already."""
    importlib.import_module(module)
    if module == "host.cli":
        import httpx2
        from typer.testing import CliRunner

        from host.cli import make_app

        CliRunner().invoke(make_app(), "--help")
        with httpx2.Client(trust_env=False) as client, contextlib.suppress(httpx2.TransportError):
            client.get("http://127.0.0.1:1")
    gc.freeze()


def _be(wanted: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Be a program as it was asked for."""
    _become(wanted, descriptors)
    if _is_host(wanted):
        from host.cli.serve import serve

        _to_its_end(lambda: sys.exit(_served(serve)))
    _run(wanted["module"], wanted["arguments"])


def _run(module: str, arguments: list[str]) -> NoReturn:
    if not hasattr(sys.modules[module], "__path__"):
        del sys.modules[module]  # it is run once more, as the program
    sys.argv = [module, *arguments]
    _to_its_end(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def _to_its_end(program: Callable[[], object]) -> NoReturn:
    """Run a program and what it left to be done at its end, then be gone: taking everything apart would copy
    the memory that is shared with the warm process, 60 ms for each. An error ends it as any program.
    """
    code = 0
    try:
        program()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        code = ended.code or 0
    cast(Any, threading)._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # what can't be written ends it as any program, too
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
        os.environ.clear()
        environment, arguments = json.loads(packet)
        os.environ.update(environment)
        os.chdir(os.sep)
        os.dup2(0, 1)
        _run(module, [str(descriptors[0]), *arguments])

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


def _become(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Be a process as it was asked for: its session, environment, folder, and descriptors."""
    os.setsid()
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
    tempfile.tempdir = None  # what the warm process found out for itself
    os.chdir(wanted["folder"])
    sys.path[:1] = wanted["path"]
    out_of_the_way = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(out_of_the_way, wanted["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        was = getattr(sys, name)
        stream = open(number, mode, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
    cast("TextIOWrapper", sys.stderr).reconfigure(line_buffering=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
