"""Starting a command: fork, confine, execve. The child tells of a fault before execve; afterwards it is on
its own.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH109, PTH110

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import confine, frames, grants, notify, paths, privileges, probe, seccomp
from .config import Config, Place
from .frames import Channel, Closed
from .landlock import Access
from .paths import Refused
from .private_root import PrivateRoot

NICE: Final = 10
OOM_SCORE: Final = 600  # the kernel's out-of-memory killer takes the command, not the host
_SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_FAULT_EXIT: Final = 126


@dataclass(slots=True)
class Process:
    """A running command and the reaper's ends of its descriptors."""

    pid: int
    pidfd: int
    output: int
    input: int | None
    listener: int | None
    writable: list[str]
    fault: str | None = None
    _reaped: int | None = field(default=None, repr=False)

    def status(self, *, kill: bool) -> int | None:
        """Wait for the command (killed first if ``kill``) and return its exit code, negative for a signal."""
        if self._reaped is None:
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self._reaped = os.waitstatus_to_exitcode(status)
        return self._reaped

    def close_input(self) -> None:
        """Close the command's standard input."""
        if self.input is not None:
            os.close(self.input)
            self.input = None

    def close(self) -> None:
        """Close all descriptors."""
        self.close_input()
        for descriptor in (self.pidfd, self.output, self.listener):
            if descriptor is not None:
                os.close(descriptor)


class Prepared:
    """A command-to-be, forked ahead: all but its conversation, its directory and its words are settled."""

    def __init__(self, config: Config, workspace: str) -> None:
        self._output, output_inside = os.pipe2(os.O_CLOEXEC)
        input_inside, self._input = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours = ours
        self._root = PrivateRoot(config, workspace) if config.namespaces else None
        self._system = grants.Prebuilt(config)
        reaper = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            os.close(self._output)
            os.close(self._input)
            _become_command(config, self._system, (input_inside, output_inside), theirs, reaper)
        for descriptor in (output_inside, input_inside):
            os.close(descriptor)
        theirs.close()
        self._system.close()
        self._pidfd = os.pidfd_open(self._pid)
        os.set_blocking(self._output, False)
        os.set_blocking(self._input, False)
        self._listener, self._fault = notify.receive_listener(ours)
        with paths.Roots(paths.root_paths(config, Place(config.temporary, config.temporary))):
            frames.Decoder().feed(frames.encode({"command": ""}))  # rehearsed, as in the child

    def start(self, config: Config, request: dict[str, Any], streams: Sequence[int]) -> Process:
        """Start ``request["command"]``, or ``request["program"]``, in its place.

        ``streams``: stdin and stdout if they are not to be the reaper's; closed here.
        """
        place = Place(request["workspace"], request["temporary"])
        allowed = grants.worker_grants(config, place)
        writable = [g.path for g in allowed if g.access & Access.MAKE_REG]
        process = Process(self._pid, self._pidfd, self._output, self._input, self._listener, writable)
        try:
            if self._root is not None:
                self._root.show(place)
                privileges.renounce()
            with (
                paths.Roots(paths.root_paths(config, place)) as roots,
                roots.directory(request.get("cwd") or ".") as directory,
            ):
                process.fault = self._tell(request, [directory, *streams])
        except Refused as refusal:
            process.fault = str(refusal)
        finally:
            frames.close_all(streams)
        if not request.get("stdin"):
            process.close_input()
        return process

    def _tell(self, request: dict[str, Any], descriptors: list[int]) -> str | None:
        """Hand over working directory, streams and request; wait for execve (end of stream) or a fault."""
        fault = self._fault
        with self._ours, contextlib.suppress(Closed):
            if not fault:
                socket.send_fds(self._ours, [b"d"], descriptors)
                Channel(self._ours).send(request)
                fault = self._ours.recv(4096)
        return fault.decode("utf-8", "replace") or None


def _become_command(
    config: Config,
    system: grants.Prebuilt,
    streams: tuple[int, int],
    connection: socket.socket,
    reaper: int,
) -> None:
    """Never returns: becomes the shell, or says why not and exits.

    What needs no request is done at once; then one frame says where and what.
    """
    try:
        os.setsid()
        privileges.renounce()
        privileges.die_with_parent(reaper)
        _streams(*streams)
        _be_modest()
        confine.limit_resources(config)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _filter(config, connection)
        _rehearse(config, system)
        _, [directory, *given], _, _ = socket.recv_fds(connection, 1, 3, socket.MSG_CMSG_CLOEXEC)
        os.fchdir(directory)
        os.close(directory)
        for number, stream in enumerate(given):
            os.dup2(stream, number)
            os.close(stream)
        _run(config, system, Channel(connection).receive(), connection)
    except (Closed, ValueError):  # the reaper went before there was a request
        os._exit(0)
    except Refused as refusal:
        connection.send(f"{refusal}".encode())
    except BaseException as error:  # noqa: BLE001 - the one place to tell of it is the socket
        connection.send(f"the sandbox could not start the command: {type(error).__name__}: {error}".encode())
    os._exit(_FAULT_EXIT)


def _rehearse(config: Config, system: grants.Prebuilt) -> None:
    """Walk through what a request needs once, in vain: the page faults of a fresh fork are then paid for."""
    nowhere = Place(config.temporary, config.temporary)
    environment(config, nowhere, "/")
    frames.Decoder().feed(frames.encode({"command": "", "timeout_ms": 1, "cwd": None}))
    system.rehearse(grants.worker_grants(config, nowhere))


def _run(config: Config, system: grants.Prebuilt, request: dict[str, Any], connection: socket.socket) -> None:
    """Enter the place, close the last door behind, and become the shell."""
    place = Place(request["workspace"], request["temporary"])
    if not request.get("stdin") and not request.get("descriptors"):
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    system.complete(grants.worker_grants(config, place))
    if "probe" in request:
        connection.close()  # as execve would, or the reaper waits for it and answers nothing
        os.write(1, probe.attempts(request["probe"], place.temporary))
        os._exit(0)
    surroundings = {**environment(config, place, os.getcwd()), **request.get("environment", {})}
    if "program" in request:
        words = request["program"]
        os.execvpe(words[0], words, surroundings)  # noqa: S606 - searched in the PATH inside, without a shell
    shell = next(s for s in _SHELLS if os.path.exists(s))
    arguments = [shell.rpartition("/")[2], "-c", request["command"]]
    os.execve(shell, arguments, surroundings)  # noqa: S606 - a shell is what exec is for


def _streams(input_inside: int, output_inside: int) -> None:
    os.dup2(input_inside, 0)
    os.dup2(output_inside, 1)
    os.dup2(output_inside, 2)


def _be_modest() -> None:
    os.umask(0o022)
    os.nice(NICE)
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(score, str(OOM_SCORE).encode())
        os.close(score)


def _filter(config: Config, connection: socket.socket) -> None:
    """Install the filter. Where the kernel gives no notifications, what would need them is refused."""
    kind = confine.filter_kind(config)
    program = seccomp.command_filter(kind)
    listener: int | None = None
    try:
        listener = seccomp.install(program, flags=seccomp.FLAG_NEW_LISTENER)
    except OSError:
        seccomp.install(seccomp.without_notifications(kind))
    notify.send_listener(connection, listener)
    if listener is not None:
        os.close(listener)


def environment(config: Config, place: Place, cwd: str) -> dict[str, str]:
    """Return the whole environment of a command: nothing is inherited."""
    return {
        "PATH": config.path,
        "HOME": place.home,
        "TMPDIR": place.temporary,
        "PWD": cwd,
        "SHELL": "/bin/bash",
        "USER": "agent",
        "LOGNAME": "agent",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TZ": config.time_zone,
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
    }
