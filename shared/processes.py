"""How processes are kept small, private and in step: lazy packages, no dumps, an end in time, frames.

The ``__init__`` of an SDK imports all there is. Of ``anthropic`` that is 3,000 modules, most of them types
of endpoints that the host never calls, for 1.1 s of processor time and 46 MiB; of ``mcp``, its other server
and its clients. A lazy package takes each of its names, once somebody asks, from the submodule that its
``__init__`` would have taken it from: 0.3 s and 10 MiB remain of ``anthropic``, 37 of 53 MiB of ``mcp``. A
name that the ``import`` statements don't explain runs the whole ``__init__``, so whatever is there without
this is there with it; only what importing does besides (``anthropic`` reads ``ANTHROPIC_LOG``) waits for
that. A function that is named as ``late`` is imported when it is called, for the sake of one whose module
imports 700 others and that nobody calls.

A frame is four bytes of length (big endian), then the body. ``host.sandbox.worker.frames`` speaks the same
from inside the sandbox, where there is only the standard library.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # at run time it would bring importlib.resources, tempfile, bz2 ...
    from socket import socket
    from subprocess import Popen

    from anyio.abc import Process


PR_SET_DUMPABLE: Final = 4


def not_dumpable() -> None:
    """Keep this process's memory and first environment from others: not dumpable, no core files.

    prctl(2), PR_SET_DUMPABLE: other processes of the user can't read /proc/PID/environ and mem, nor trace it.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def hangs(attempt: Callable[[], object], within_s: float) -> bool:
    """Return whether a file system hasn't answered an attempt after so many seconds; blocks as long.

    A fault is an answer, too.
    """

    def answered() -> None:
        with suppress(OSError):
            attempt()

    # A daemon: the end of the process doesn't wait for it either.
    trial = threading.Thread(target=answered, daemon=True)
    trial.start()
    trial.join(within_s)
    return trial.is_alive()


def leave_the_end_to_the_host() -> None:
    """Ignore signals to all of a service's processes, and the terminal's: runs that are being finished need
    this process, so the host decides when it ends, after them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def how_to_begin(
    module: str, theirs: socket, environment: Mapping[str, str], *arguments: str
) -> tuple[list[str], dict[str, Any]]:
    """Return command and options of a process of the host's own, ``python -m module``, at a socket's side."""
    from subprocess import DEVNULL

    command = [sys.executable, "-I", "-m", module, str(theirs.fileno()), *arguments]
    options = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": None, "env": environment, "cwd": os.sep}
    # The terminal's Ctrl-C is for the host.
    return command, {**options, "pass_fds": (theirs.fileno(),), "start_new_session": True}


def begin_early(module: str, environment: Mapping[str, str]) -> Early | None:
    """Begin such a process before anything slow is imported; None where the system refuses it."""
    import socket
    from subprocess import Popen

    ours, theirs = socket.socketpair()
    with theirs:
        command, options = how_to_begin(module, theirs, environment)
        try:
            return Early(Popen(command, **options), ours)  # noqa: S603 - ours
        except OSError:
            ours.close()
            return None


class Early:
    """A process that was begun before there was an event loop: what is asked of one of anyio's."""

    def __init__(self, process: Popen[bytes], ours: socket) -> None:
        self.ours = ours
        self.pid = process.pid
        self.kill = process.kill
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Its exit code once it has ended."""
        return self._process.poll()

    async def wait(self) -> int:
        """Return when it has ended."""
        from anyio.to_thread import run_sync

        return await run_sync(self._process.wait, abandon_on_cancel=True)

    async def aclose(self) -> None:
        """Nothing is open."""


async def terminate(process: Process | Early, within_s: float) -> None:
    """Return when the process has ended, by itself or killed after ``within_s``; not to be cancelled."""
    import anyio  # not at the top: `picoclaw supervise` lives without it

    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(within_s):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()


_LENGTH: Final = struct.Struct(">I")


def framed(body: bytes, most: int) -> bytes:
    """Return a body as a frame. Raises ``ValueError`` if it has more than ``most`` bytes."""
    if len(body) > most:
        raise ValueError(f"larger than {most} bytes")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts what comes in into bodies of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self._wanted = _LENGTH.size

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came and return the bodies that are whole now. Raises ``ValueError`` for one too long."""
        self._data += data
        whole: list[bytes] = []
        while len(self._data) >= self._wanted:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > self._most:
                raise ValueError(f"a frame of {length} bytes")
            end = _LENGTH.size + length
            if len(self._data) < end:
                self._wanted = end
                break
            whole.append(bytes(self._data[_LENGTH.size : end]))
            del self._data[:end]
            self._wanted = _LENGTH.size
        return whole


_whole: Final = threading.RLock()


def make_lazy(package: str, *below: str, late: Collection[str] = ()) -> None:
    """Import the package lazily from now on, and its subpackages ``below`` with every package in them.

    ``late``: functions, by the names that these packages give them (``package.sub.function``). What is
    imported already stays as it is.
    """
    sys.meta_path.insert(0, _Finder(package, below, late))


class _Finder:
    def __init__(self, package: str, below: Sequence[str], late: Collection[str]) -> None:
        self._package = package
        self._late = late
        self._below = tuple(f"{package}.{name}." for name in below)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._package and not f"{fullname}.".startswith(self._below):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.submodule_search_locations is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = cast("Loader", _LazyLoader(spec.loader, self._late))
        return spec


class _LazyLoader:
    def __init__(self, real: SourceFileLoader, late: Collection[str]) -> None:
        self._real = real
        self._late = late
        self._origins: dict[str, tuple[str, str]] | None = None
        self._is_running = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = partial(self._get, module)

    def _get(self, module: ModuleType, name: str) -> Any:
        if self._origins is None:  # most packages are only passed through
            self._origins = _origins(module.__name__, self._real.get_source(module.__name__) or "")
        if name in self._origins:
            submodule, original = self._origins[name]
            if f"{module.__name__}.{name}" in self._late:
                value: Any = _when_called(submodule, original)
            else:
                value = getattr(import_module(submodule), original)
            setattr(module, name, value)
            return value
        # Whoever walks over all modules asks each for these.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        if PathFinder.find_spec(f"{module.__name__}.{name}", module.__path__):
            return import_module(f"{module.__name__}.{name}")
        return self._get_of_whole(module, name)

    def _get_of_whole(self, module: ModuleType, name: str) -> Any:
        with _whole:
            if self._is_running:
                # The package's own code asks, for what it has not come to yet.
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} yet")
            ours = module.__dict__.get("__getattr__")
            if isinstance(ours, partial):
                self._is_running = True
                try:
                    self._real.exec_module(module)
                finally:
                    self._is_running = False
                if module.__dict__.get("__getattr__") is ours:
                    del module.__dict__["__getattr__"]
        return getattr(module, name)


def _when_called(submodule: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(submodule), name)(*arguments, **named)

    return call


def _origins(package: str, source: str) -> dict[str, tuple[str, str]]:
    """Return for each name that a package takes from one of its submodules: that, and the name there."""
    import ast  # not at the top: a zygote that waits has none of it

    found: dict[str, tuple[str, str]] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.level <= 1:
            submodule = f"{package}.{statement.module}" if statement.level else statement.module
            if submodule.startswith(f"{package}."):
                found |= {each.asname or each.name: (submodule, each.name) for each in statement.names}
    return found
