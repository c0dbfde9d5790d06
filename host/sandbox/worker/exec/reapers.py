"""The reapers that wait: a few for whoever comes, and those whose last command left nothing behind."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from ..config import Config, Place
from ..confine import confine, grants, probe, seccomp
from ..confine.workspaces import Places
from ..frames import Closed, Frame
from . import reaper
from .children import Child, Children

WARM: Final = 1
MAX_RESTING: Final = 8


class Reapers:
    """Forks them ahead of requests, and lends them out."""

    def __init__(self, children: Children, config: Config, workspace: str) -> None:
        self._children = children
        self._config = config
        self._workspace = workspace
        self._warm: list[Child] = []
        self._resting: dict[str, Child] = {}  # by conversation, last used last
        self._parent = os.getpid()

    def take(self, conversation: str, place: Place, config: Config) -> Child:
        """Return one for a conversation's command: its own, a warm or a new one. Raises ``OSError``."""
        child = self._fitting(conversation, place, config) or self.fork(
            place.workspace, config, guarded=bool(place.words)
        )
        child.conversation = conversation
        child.place = place
        return child

    def _fitting(self, conversation: str, place: Place, config: Config) -> Child | None:
        stamp = grants.stamp(config, place.workspace)
        for child in self._waiting(conversation, place):
            if child.stamp == stamp and child.place in (None, place) and child.config == config:
                self.lost(child)
                return child
            self._dismiss(child)  # what it was made for has been replaced
        return None

    def fork(self, workspace: str, config: Config, *, guarded: bool = False) -> Child:
        """Fork a new one; ``guarded``: for who may not change all of the workspace. Raises ``OSError``."""
        stamp = grants.stamp(config, workspace)
        seccomp.command_filter(confine.filter_kind(config, guarded=guarded))  # once, not in each
        child = self._children.fork(
            lambda channel: reaper.reap(channel, config, workspace, self._parent, guarded=guarded),
            config,
            kept=config.kept,
        )
        child.stamp, child.config = stamp, config
        return child

    def tried(self, places: Places) -> Frame:
        """Have a new one run the self-test, and return what came of it."""
        try:
            child = self.fork(self._workspace, self._config)
        except OSError as error:
            return {"fault": f"no process could be started: {error}"}
        waiting = select.poll()
        waiting.register(child.channel, select.POLLIN)
        try:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                port = listening.getsockname()[1]
                child.channel.send(probe.request(self._config, places, self._workspace, port))
                ended = waiting.poll(2 * probe.TIMEOUT_MS)
            return child.channel.receive() if ended else {"fault": "the self-test did not end"}
        except Closed:
            return {"fault": "the self-test died"}
        finally:
            self._children.kill(child)
            self._dismiss(child)

    def rest(self, child: Child) -> None:
        """Keep one whose environment is as it was for its conversation's next command."""
        self.forget(child.conversation)
        if len(self._resting) >= MAX_RESTING:
            self.forget(next(iter(self._resting)))
        child.used = time.monotonic()
        self._resting[child.conversation] = child

    def warm_up(self) -> None:
        """See that some are warm."""
        with contextlib.suppress(OSError):  # no process to be had at this moment: the next turn tries again
            while len(self._warm) < WARM:
                self._warm.append(self.fork(self._workspace, self._config))

    def retire_stale(self) -> None:
        """End the one that rests longest, if that is too long; a turn is often enough."""
        oldest = next(iter(self._resting.values()), None)
        if oldest is not None and oldest.used < time.monotonic() - self._config.reaper_idle_s:
            self._dismiss(oldest)

    def forget(self, conversation: str) -> None:
        """End what waits for a conversation."""
        child = self._resting.get(conversation)
        if child is not None:
            self._dismiss(child)

    def lost(self, child: Child) -> None:
        """One waits no longer."""
        if child in self._warm:
            self._warm.remove(child)
        if self._resting.get(child.conversation) is child:
            del self._resting[child.conversation]

    def _waiting(self, conversation: str, place: Place) -> Iterator[Child]:
        if conversation in self._resting:
            yield self._resting[conversation]
        if place.workspace == self._workspace and not place.words:
            yield from reversed(list(self._warm))

    def _dismiss(self, child: Child) -> None:
        """Close its channel, at which it ends."""
        self.lost(child)
        self._children.forget(child)
