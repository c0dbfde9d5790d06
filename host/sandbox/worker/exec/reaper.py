"""The reaper: one process per command at work. It starts the command, watches it, and leaves nothing behind.

It is forked ahead of the request, so that giving up its rights costs the request nothing, and it waits for
one frame on its channel. It reads the command's output and /proc, never the command's files.
"""

import contextlib
import gc
import math
import os
import select
import time
from typing import Any, Final

from .. import syscalls
from ..confine import confine, namespaces, privileges
from ..frames import Channel, Closed, Config, Frame
from ..limits import quota, tree
from ..limits.quota import Space
from .command import Launcher, Output
from .launcher import Environment
from .notify import Gate

_CHUNK: Final = 64 << 10
_TICK_S: Final = 0.01
_SLOW_TICK_S: Final = 0.05
_AGAIN_S: Final = 0.003
# Processes come and go while they are counted, so one sum over the limit proves nothing. It takes three looks
# in a row that are certain; ten where kcmp(2) is refused, as a child between vfork and exec then looks like
# one with memory of its own; thirty that don't come to the end of many processes.
_PROOF: Final = 30
_CERTAIN, _BLIND, _UNFINISHED = 10, 3, 1
_PAUSE_MS: Final = 3
_FAST_PHASE_S: Final = 2.0
_NOTIFICATIONS_PER_TURN: Final = 64
_WATCH_SHARE: Final = 4  # watching many processes takes at most a quarter of one processor


def reap(channel: Channel, config: Config, workspace: str, supervisor: int, *, guarded: bool) -> None:
    """Give up rights; serve requests, all of one conversation's, as long as commands leave nothing behind.

    ``guarded``: see ``Environment``.
    """
    gc.disable()  # short-lived, and collecting touches pages that are shared until then
    privileges.no_new_privileges()
    try:
        scoped = _enter(config, supervisor)
        environment = Environment(config, workspace, scoped=scoped, guarded=guarded)
        launcher = Launcher(environment)
        environment.furnish()
    except (OSError, confine.ScopeUnproven) as error:
        channel.receive()
        channel.send({"fault": f"the confinement could not be prepared: {error!r}"})
        return
    channel.takes_descriptors = True  # the supervisor's: a program's own stdin and stdout
    try:
        while _serve(channel, environment, launcher) and environment.is_clean():
            if not launcher.serves_on:
                launcher.close()
                _let_others_go_first(channel)
                environment.renew()
                launcher = Launcher(environment)
            channel.send({"rests": True})
    except Closed:
        pass
    finally:
        launcher.end_all()


def _serve(channel: Channel, environment: Environment, launcher: Launcher) -> bool:
    """Run one command, and answer; True if it ended by itself and is gone. Raises ``Closed``."""
    request = _next(channel)
    try:
        answer = Run(channel, environment, launcher, request).to_the_end()
    except (OSError, ValueError) as error:
        answer = {"fault": f"{type(error).__name__}: {error}", "left": not launcher.end_all()}
    answer["scoped"] = environment.scoped
    channel.send(answer)
    return answer.get("ended") == "exited" and not answer["left"]


def _let_others_go_first(channel: Channel) -> None:
    """Wait a moment, so that preparing the next command doesn't hold up this one's answer."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.poll(_PAUSE_MS)


def _next(channel: Channel) -> Frame:
    """Wait for a request; what was meant for a command that has ended is passed over."""
    while "op" in (frame := channel.receive()):
        pass
    return frame


def _enter(config: Config, supervisor: int) -> bool:
    """Take one's place above the command; True if ``kill(-1)`` reaches what is below and nothing else."""
    if config.namespaces:
        namespaces.settle(config.inner_uid, config.inner_gid)
        if not config.allow_network:
            namespaces.raise_loopback()
            namespaces.bound_buffers()
        syscalls.take_proc_along()
        return True  # the end of process 1, the launcher, is that of all in there
    privileges.adopt_orphans()
    scoped = confine.enter_signal_scope(config.landlock_abi, supervisor)
    privileges.become(config.uid, config.gid)
    privileges.not_dumpable()
    return scoped


def _weight(used: tree.Usage) -> int:
    if not used.certain:
        return _UNFINISHED
    return _CERTAIN if syscalls.share_memory(os.getpid(), os.getpid()) else _BLIND


class Run:
    """One command from start to end."""

    def __init__(
        self, channel: Channel, environment: Environment, launcher: Launcher, request: Frame
    ) -> None:
        config = environment.config
        self._channel = channel
        self._environment = environment
        self._config = config
        self._launcher = launcher
        self._request = request
        self._quota = environment.quota
        if self._quota is not None:
            self._quota.begin(launcher.pid if launcher.serves_on else None)
        # what was over the limit before may hardly grow
        used = quota.known(config.page) if config.most_bytes else 0
        most = config.most_bytes
        self._most_bytes = max(most, used, min(used + quota.STEP, most + quota.GRACE) if used > most else 0)
        self._full = ""
        self._meter = tree.Meter(own_network=config.namespaces and not config.allow_network)
        self._over = 0  # how much proves that there is too much memory
        self._output = Output(config.output)
        self._ended: str | None = None
        self._space: Space
        self._gate: Gate | None = None
        self._input = memoryview(str(request.get("stdin") or "").encode())
        self._poll = select.poll()

    def to_the_end(self) -> Frame:
        """Start the command, serve it until it ends or a limit is reached, and say what happened."""
        started = time.monotonic()
        streams = self._channel.descriptors(self._request.get("descriptors", 0))
        with contextlib.closing(self._launcher.start(self._request, streams)) as process:
            self._process = process
            if process.fault is not None:
                return {"fault": process.fault, "left": not self._launcher.end_all()}
            self._register()
            self._space = Space(self._request["temporary"], self._config.temporary_bytes)
            self._listen()  # what came together with the request no longer wakes the poll
            self._serve(started)
            gone = self._end()
            if process.fault is not None:
                return {"fault": process.fault, "left": not gone}
        return {
            "ended": self._ended or "exited",
            "status": process.status,
            "left": not gone,
            "killed": process.killed,
            "output": self._output.text(),
            "full": self._fullness(),
            "ms": round((time.monotonic() - started) * 1000, 1),
        }

    def _register(self) -> None:
        process = self._process
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(process.output, select.POLLIN)
        self._poll.register(self._launcher, select.POLLIN)
        if process.input is not None:
            self._poll.register(process.input, select.POLLOUT)
        if self._launcher.listener is not None:
            named = self._environment.name_calls()
            self._gate = Gate(
                self._launcher.listener, self._environment.writable, self._request["temporary"], named
            )
            self._poll.register(self._gate.listener, select.POLLIN)

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
                if self._gate is not None:
                    self._gate.release()
                pause = _TICK_S if now - started < _FAST_PHASE_S else _SLOW_TICK_S
                cost = time.monotonic() - now
                tick = now + (_AGAIN_S if self._over else max(pause, _WATCH_SHARE * cost))
            lasts_s = self._measure_workspace()
            wait = max(0.0, min(tick, deadline, now + lasts_s) - now)
            if self._turn(int(wait * 1000) + 1):
                # a quick command may have filled the disk between two looks
                if self._ended is None and self._space.is_exceeded(os.getpid()):
                    self._ended = "space"
                return

    def _turn(self, wait_ms: int) -> bool:
        """Serve what is ready; True when the command itself has exited."""
        process = self._process
        for descriptor, _ in self._poll.poll(wait_ms):
            if descriptor == self._launcher.fileno():
                return self._hear()
            if descriptor == process.output:
                self._read()
            elif descriptor == process.input:
                self._feed()
            elif self._gate is not None and descriptor == self._gate.listener:
                self._answer_notifications()
            else:
                self._listen()
        return False

    def _hear(self) -> bool:
        try:
            return self._launcher.hear(self._process)
        except Closed:
            self._ended = "launcher"
            return True

    def _measure(self) -> None:
        config, launcher = self._config, self._launcher
        tree.reap_orphans(launcher.pid)
        besides = launcher.pid if launcher.serves_on else None
        used = self._meter.usage(os.getpid(), besides, config.memory, config.processes)
        if used.tasks >= config.processes:
            self._ended = "processes"
        elif used.memory <= config.memory:
            self._over = 0
        else:
            self._over += _weight(used)
            self._meter.forget()
        if self._over >= _PROOF:
            self._ended = "memory"
        elif self._space.is_exceeded(os.getpid()):
            self._ended = "space"

    def _measure_workspace(self) -> float:
        """See that the workspace holds no more than it may, and return for how many seconds it surely does;
        bounds itself how much of the time that takes.
        """
        quota = self._quota
        if quota is None or self._ended is not None:
            return math.inf
        if quota.is_exceeded(self._most_bytes, os.getpid()):
            self._ended, self._full = "quota", quota.sentence
            return 0
        return quota.lasts_s(self._most_bytes)

    def _fullness(self) -> str:
        """Return what the command is to be told of a workspace without room, and count what it left."""
        if self._quota is None:
            return ""
        self._quota.note_nameless(0)
        full, most = self._config.is_full or bool(self._full), self._quota.most
        if full or self._quota.used() > most:
            used = self._quota.count()
            if self._config.is_full and used < most:
                return f"{quota.sentence(used, most)} now; it was full before"
            return self._full or (quota.sentence(used, most) if full else "")
        return ""

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
        ready.register(gate.listener, select.POLLIN)
        for _ in range(_NOTIFICATIONS_PER_TURN):
            events = ready.poll(0)
            if not events:
                return
            if events[0][1] & select.POLLHUP:
                self._poll.unregister(gate.listener)
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
            self._channel.send({"peek": frame["id"], "output": self._output.text()})

    def _end(self) -> bool:
        """End what is left and take the rest of the output; True once nothing is left."""
        gone = True
        if not self._launcher.serves_on:
            tree.reap_orphans(self._launcher.pid)
            self._process.killed = len(tree.descendants(os.getpid()))
        if self._ended is not None or not self._launcher.serves_on:
            gone = self._launcher.end_all()
        with contextlib.suppress(OSError):
            while data := os.read(self._process.output, _CHUNK):
                self._output.add(data)
        if self._ended == "space":
            self._space.clear()
        return gone
