"""The reaper: one process per command. It starts the command, watches it, and leaves nothing of it behind.

It is forked ahead of the request, so that giving up its rights costs the request nothing, and it waits for
one frame on its channel. It reads the command's output and /proc, never the command's files.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import time
from typing import Any, Final

from . import command, confine, namespaces, privileges, tree
from .config import Config
from .frames import Channel, Closed, Frame
from .notify import Gate
from .output import Output

_CHUNK: Final = 64 << 10
_TICK_S: Final = 0.01
_SLOW_TICK_S: Final = 0.05
_FAST_PHASE_S: Final = 2.0
_NOTIFICATIONS_PER_TURN: Final = 64
_WATCH_SHARE: Final = 4  # watching many processes takes at most a quarter of one processor


def reap(channel: Channel, config: Config, workspace: str, supervisor: int) -> None:
    """Give up rights, wait for a request, run it, answer, and end."""
    gc.disable()  # short-lived, and collecting touches pages that are shared until then
    privileges.no_new_privileges()
    try:
        scoped = _enter(config, supervisor)
        prepared = command.Prepared(config, workspace)
    except (OSError, confine.ScopeUnproven) as error:
        channel.receive()
        channel.send({"fault": f"the confinement could not be prepared: {error!r}"})
        return
    channel.takes_descriptors = True  # the supervisor's: a program's own stdin and stdout
    try:
        request = channel.receive()
    except Closed:
        tree.end_all(scoped=scoped)
        return
    run = Run(channel, config, request, prepared, scoped=scoped)
    try:
        answer = run.to_the_end()
    except (OSError, ValueError) as error:
        answer = {"fault": f"{type(error).__name__}: {error}"}
    finally:
        gone = tree.end_all(scoped=scoped)
    answer["scoped"] = scoped
    if not gone:
        answer["left"] = True
    with contextlib.suppress(Closed):
        channel.send(answer)


def _enter(config: Config, supervisor: int) -> bool:
    """Take one's place above the command; True if ``kill(-1)`` reaches what is below and nothing else."""
    if config.namespaces:
        namespaces.settle(config.inner_uid, config.inner_gid)
        if not config.allow_network:
            namespaces.raise_loopback()
        return os.getpid() == 1
    privileges.adopt_orphans()
    scoped = confine.enter_signal_scope(config.landlock_abi, supervisor)
    privileges.become(config.uid, config.gid)
    privileges.not_dumpable()
    return scoped


class Run:
    """One command from start to end."""

    def __init__(
        self, channel: Channel, config: Config, request: Frame, prepared: command.Prepared, *, scoped: bool
    ) -> None:
        self._channel = channel
        self._config = config
        self._request = request
        self._prepared = prepared
        self._scoped = scoped
        self._output = Output(config.output)
        self._ended: str | None = None
        self._gate: Gate | None = None
        self._input = memoryview(str(request.get("stdin") or "").encode())
        self._poll = select.poll()

    def to_the_end(self) -> Frame:
        """Start the command, serve it until it ends or a limit is reached, and say what happened."""
        started = time.monotonic()
        streams = self._channel.descriptors(self._request.get("descriptors", 0))
        with contextlib.closing(self._prepared.start(self._config, self._request, streams)) as process:
            self._process = process
            if process.fault is not None:
                return {"fault": process.fault}
            if process.listener is not None:
                self._gate = Gate(process.listener, process.writable, self._request["temporary"])
            self._register()
            self._listen()  # what came together with the request no longer wakes the poll
            self._serve(started)
            status = self._end()
        text, dropped = self._output.text()
        return {
            "ended": self._ended or "exited",
            "status": status,
            "output": text,
            "dropped": dropped,
            "total": self._output.total,
            "ms": round((time.monotonic() - started) * 1000, 1),
        }

    def _register(self) -> None:
        process = self._process
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(process.output, select.POLLIN)
        self._poll.register(process.pidfd, select.POLLIN)
        if process.input is not None:
            self._poll.register(process.input, select.POLLOUT)
        if self._gate is not None:
            self._poll.register(self._gate, select.POLLIN)

    def _serve(self, started: float) -> None:
        timeout_ms = self._request.get("timeout_ms")
        deadline = started + timeout_ms / 1000 if timeout_ms else float("inf")
        tick = started + _TICK_S
        while self._ended is None:
            now = time.monotonic()
            if now >= deadline:
                self._ended = "timeout"
                return
            if now >= tick:
                self._measure()
                pause = _TICK_S if now - started < _FAST_PHASE_S else _SLOW_TICK_S
                cost = time.monotonic() - now
                tick = now + max(pause, _WATCH_SHARE * cost)
            wait = max(0.0, min(tick, deadline) - now)
            if self._turn(int(wait * 1000) + 1):
                return

    def _turn(self, wait_ms: int) -> bool:
        """Serve what is ready; True when the command itself has exited."""
        process = self._process
        for descriptor, _ in self._poll.poll(wait_ms):
            if descriptor == process.pidfd:
                return True
            if descriptor == process.output:
                self._read()
            elif descriptor == process.input:
                self._feed()
            elif self._gate is not None and descriptor == self._gate.fileno():
                self._answer_notifications()
            else:
                self._listen()
        return False

    def _measure(self) -> None:
        used = tree.usage(os.getpid(), self._config.memory, self._config.processes)
        if used.tasks > self._config.processes:
            self._ended = "processes"
        elif used.memory > self._config.memory:
            self._ended = "memory"

    def _read(self) -> None:
        try:
            data = os.read(self._process.output, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self._output.add(data)
        else:
            self._poll.unregister(self._process.output)

    def _feed(self) -> None:
        target = self._process.input
        if target is None:
            return
        try:
            self._input = self._input[os.write(target, self._input[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._input = memoryview(b"")
        if not self._input:
            self._poll.unregister(target)
            self._process.close_input()

    def _answer_notifications(self) -> None:
        """Answer a bounded number, so that a flood of them can't keep the limits from being watched."""
        gate = self._gate
        if gate is None:
            return
        ready = select.poll()
        ready.register(gate, select.POLLIN)
        for _ in range(_NOTIFICATIONS_PER_TURN):
            events = ready.poll(0)
            if not events:
                return
            if events[0][1] & select.POLLHUP:
                self._poll.unregister(gate)
                return
            gate.answer()

    def _listen(self) -> None:
        try:
            frames = self._channel.pull()
        except Closed:
            self._ended = "cancelled"  # the supervisor is gone, and so must be everything here
            return
        for frame in frames:
            self._obey(frame)

    def _obey(self, frame: dict[str, Any]) -> None:
        if frame.get("op") == "cancel":
            self._ended = "cancelled"
        elif frame.get("op") == "peek":
            text, dropped = self._output.text()
            self._channel.send(
                {"peek": frame["id"], "output": text, "dropped": dropped, "total": self._output.total}
            )

    def _end(self) -> int | None:
        """Kill what is left and take the rest of the output; returns the wait status of the command."""
        status = self._process.status(kill=self._ended is not None)
        tree.end_all(scoped=self._scoped)
        with contextlib.suppress(OSError):
            while data := os.read(self._process.output, _CHUNK):
                self._output.add(data)
        return status
