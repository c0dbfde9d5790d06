"""Starting a command: fork, confine, execve. The child tells of a fault before execve; afterwards it is on
its own.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH109

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from . import confine, grants, notify, paths, privileges, probe, seccomp
from .config import Config, Place
from .landlock import Access
from .paths import Refused

NICE: Final = 5
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


def start(config: Config, request: dict[str, Any]) -> Process:
    """Start ``request["command"]``, confined, in its place. Raises ``OSError``."""
    place = Place(request["workspace"], request["temporary"])
    allowed = grants.command_grants(config, place)
    metadata = confine.metadata_mode(config, allowed)
    output, output_inside = os.pipe2(os.O_CLOEXEC)
    input_inside, feed = _input(bool(request.get("stdin")))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reaper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_command(
            config, request, place, allowed, metadata, (input_inside, output_inside), theirs, reaper
        )
    for descriptor in (output_inside, input_inside):
        os.close(descriptor)
    theirs.close()
    os.set_blocking(output, False)
    if feed is not None:
        os.set_blocking(feed, False)
    listener, fault = _hear(ours, expect_listener=metadata is not seccomp.Metadata.PERMISSIONS)
    writable = [g.path for g in allowed if g.access & Access.MAKE_REG]
    return Process(pid, os.pidfd_open(pid), output, feed, listener, writable, fault)


def _input(wanted: bool) -> tuple[int, int | None]:
    if not wanted:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), None
    return os.pipe2(os.O_CLOEXEC)


def _hear(connection: socket.socket, *, expect_listener: bool) -> tuple[int | None, str | None]:
    """Take the notification descriptor if one comes, then wait for execve (end of stream) or a fault."""
    with connection:
        listener = notify.receive_listener(connection) if expect_listener else None
        fault = connection.recv(4096)
    return listener, fault.decode("utf-8", "replace") or None


def _become_command(
    config: Config,
    request: dict[str, Any],
    place: Place,
    allowed: list[grants.Grant],
    metadata: seccomp.Metadata,
    streams: tuple[int, int],
    connection: socket.socket,
    reaper: int,
) -> None:
    """Never returns: becomes the shell, or says why not and exits."""
    try:
        os.setsid()
        privileges.die_with_parent(reaper)
        _streams(*streams)
        cwd = _enter(config, place, request.get("cwd"))
        _be_modest()
        confine.limit_resources(config)
        confine.enter_domain(config, allowed, network=config.allow_network)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _filter(config, metadata, connection)
        if "probe" in request:
            connection.close()  # as execve would, or the reaper waits for it and answers nothing
            os.write(1, probe.attempts(request["probe"], place.temporary))
            os._exit(0)
        shell = next(s for s in _SHELLS if Path(s).exists())
        arguments = [shell.rpartition("/")[2], "-c", request["command"]]
        os.execve(shell, arguments, environment(config, place, cwd))  # noqa: S606 - a shell is what exec is for
    except Refused as refusal:
        connection.send(f"{refusal}".encode())
    except BaseException as error:  # noqa: BLE001 - the one place to tell of it is the socket
        connection.send(f"the sandbox could not start the command: {type(error).__name__}: {error}".encode())
    os._exit(_FAULT_EXIT)


def _streams(input_inside: int, output_inside: int) -> None:
    os.dup2(input_inside, 0)
    os.dup2(output_inside, 1)
    os.dup2(output_inside, 2)


def _enter(config: Config, place: Place, cwd: str | None) -> str:
    """Change to the working directory, found as the file tools find paths; returns its path."""
    with paths.Roots(config, place) as roots, roots.directory(cwd or ".") as directory:
        os.fchdir(directory)
    return os.getcwd()


def _be_modest() -> None:
    os.umask(0o022)
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _filter(config: Config, metadata: seccomp.Metadata, connection: socket.socket) -> None:
    rules = seccomp.command_rules(
        network=config.allow_network, metadata=metadata, landlock_abi=config.landlock_abi
    )
    notifying = metadata is not seccomp.Metadata.PERMISSIONS
    listener = seccomp.install(seccomp.compiled(tuple(rules)), listener=notifying)
    if listener is not None:
        notify.send_listener(connection, listener)
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
