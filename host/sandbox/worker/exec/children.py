"""The supervisor's children, forked with nothing but a channel, all ended; and background commands."""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .. import syscalls
from ..confine import namespaces
from ..confine.grants import Stamp
from ..frames import Channel, Closed, Config, Frame, Place
from ..limits import tree

_END_S: Final = 3.0


class Child:
    """A forked process and our end of its channel; ``requests`` are the host's ids it owes an answer."""

    conversation = ""
    job: int | None = None
    is_worker = False
    has_ended = False
    used = 0.0
    stamp: Stamp = ()
    place: Place | None = None
    config: Config | None = None

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self.requests: set[int] = set()


class Children:
    """Whom we forked, by the descriptor of our end of the channel; ``poll`` hears of all of them."""

    def __init__(self, poll: select.poll) -> None:
        self._poll = poll
        self._known: dict[int, Child] = {}
        self._leaving: set[int] = set()
        self._pid = os.getpid()

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._known.values()))

    def at(self, descriptor: int) -> Child | None:
        """Return who speaks through a descriptor."""
        return self._known.get(descriptor)

    def fork(
        self,
        role: Callable[[Channel], None],
        inside: Config | None = None,
        processes: int = 0,
        kept: Sequence[int] = (),
    ) -> Child:
        """Fork a child that plays ``role``; in namespaces of its own with ``inside``, that of ``processes``
        (CLONE_NEWPID) among them. It has copies of the descriptors ``kept``. Raises ``OSError``.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                pid = _fork(inside, processes)
            except OSError:
                ours.close()
                raise
            if pid == 0:
                _be_child(theirs, role, kept)
        child = Child(pid, Channel(ours))
        self._known[ours.fileno()] = child
        self.watch(child.channel)
        return child

    def watch(self, channel: Channel) -> None:
        """Hear of what arrives, and of room for what is pending."""
        self._poll.register(channel, select.POLLIN | (select.POLLOUT if channel.pending else 0))

    def send(self, child: Child, frame: Frame) -> bool:
        """Queue a frame; False if the child is gone."""
        try:
            child.channel.queue(frame)
        except Closed:
            return False
        self.watch(child.channel)
        return True

    def forget(self, child: Child) -> None:
        """Close our end of a child that is gone or going."""
        self._leaving.add(child.pid)
        self._poll.unregister(child.channel)
        self._known.pop(child.channel.fileno(), None)
        child.channel.close()

    @property
    def leaving(self) -> bool:
        """Whether somebody is about to end and wants to be reaped (namespaces take their time)."""
        return bool(self._leaving)

    def kill(self, child: Child) -> None:
        """Kill a child; what it may have started is ended by ``end_orphans``."""
        if not child.has_ended:  # else its number may be another's by now
            os.kill(child.pid, signal.SIGKILL)

    def collect(self) -> None:
        """Reap whatever has ended: our children, and orphans that came to us."""
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._leaving.discard(pid)
                for child in self._known.values():
                    child.has_ended = child.has_ended or child.pid == pid

    def end_orphans(self) -> None:
        """Kill children that are not ours by birth: what a reaper left when it died."""
        known = {child.pid for child in self._known.values()}
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            self.collect()
            strangers = [pid for pid in tree.children(self._pid) if pid not in known]
            if not strangers:
                return
            for pid in strangers:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Close all channels, at which reapers sweep and workers leave; then make sure."""
        for child in self._known.values():
            child.channel.close()
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and tree.children(self._pid):
            self.collect()
            time.sleep(0.002)
        self._known.clear()
        self.end_orphans()


def _fork(inside: Config | None, processes: int) -> int:
    if inside is None or not inside.namespaces:
        return os.fork()
    kinds = namespaces.flags(network=inside.allow_network) | processes
    return namespaces.fork_into(kinds, inside.inner_uid, inside.inner_gid)


def _be_child(connection: socket.socket, role: Callable[[Channel], None], kept: Sequence[int]) -> None:
    """Never returns. Everything inherited but the child's own channel and what is kept is closed first."""
    try:
        syscalls.close_all_but(connection.fileno(), *kept)
        role(Channel(connection))
    except BaseException:  # noqa: BLE001 - a traceback has nowhere to go; the parent sees the end
        os._exit(1)
    os._exit(0)


MAX_RUNNING: Final = 8
MAX_KEPT: Final = 16
_SHOWN_COMMAND: Final = 200


class Job:
    """A background command: running while ``result`` is None."""

    result: dict[str, Any] | None = None

    def __init__(self, command: str, descriptor: int, started: float) -> None:
        self.command = command
        self.descriptor = descriptor
        self.started = started


class Jobs:
    """Numbers, keeps and forgets background commands; ended ones are kept for their output, a few."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[int, Job]] = {}
        self._last = 0

    def refusal(self, conversation: str) -> str | None:
        """Return why no further command may start, or None."""
        running = sum(job.result is None for job in self._jobs.get(conversation, {}).values())
        if running < MAX_RUNNING:
            return None
        return f"{running} background commands are running, the limit is {MAX_RUNNING}; kill one first"

    def add(self, conversation: str, command: str, descriptor: int) -> int:
        """Record a started command and return its number."""
        self._last += 1
        self._jobs.setdefault(conversation, {})[self._last] = Job(command, descriptor, time.monotonic())
        return self._last

    def get(self, conversation: str, number: int) -> Job | None:
        """Return a conversation's own job."""
        return self._jobs.get(conversation, {}).get(number)

    def finish(self, conversation: str, number: int, result: dict[str, Any]) -> None:
        """Keep the result; the oldest ended ones make room."""
        jobs = self._jobs.get(conversation, {})
        if number in jobs:
            jobs[number].result = result
        ended = [n for n, job in jobs.items() if job.result is not None]
        for n in ended[: max(0, len(ended) - MAX_KEPT)]:
            del jobs[n]

    def listed(self, conversation: str) -> list[dict[str, Any]]:
        """Return number, command, state and age in milliseconds of each."""
        now = time.monotonic()
        return [
            {
                "job": number,
                "command": job.command[:_SHOWN_COMMAND],
                "state": "running" if job.result is None else job.result.get("ended", "failed"),
                "age_ms": round((now - job.started) * 1000),
            }
            for number, job in self._jobs.get(conversation, {}).items()
        ]

    def forget(self, conversation: str) -> None:
        """Drop a conversation's jobs."""
        self._jobs.pop(conversation, None)
