"""All channels of this host: each is loaded, kept running and started again when it fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import anyio
from anyio.abc import TaskGroup

from host.channels.base import Channel, ChannelFault
from host.channels.cards import Cards
from host.channels.commands import Commands
from host.channels.deliveries import Deliveries
from host.channels.inbox_files import InboxFiles
from host.channels.intake import ChannelDoor
from host.channels.rules import Rules
from host.channels.turns import Turns
from host.http.health import ChannelState
from host.runs.attachments import Attachments
from host.runs.meter import Ledger
from host.runs.sent_files import SentFiles
from host.runs.service import RunService
from shared.tasks import TaskService

logger = logging.getLogger("picoclaw.channels")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
CLOSE_WITHIN_S: Final = 5.0

LoadChannel = Callable[[], Awaitable[Channel]]


@dataclass(frozen=True, slots=True)
class Enabled:
    """A channel that the settings switch on."""

    rules: Rules
    load: LoadChannel


class ChannelService:
    """Owns the channels. Enter it when runs can be started; nothing about a channel ever stops the host."""

    def __init__(
        self,
        ledger: Ledger,
        runs: RunService,
        tasks: TaskService,
        attachments: Attachments,
        channels: Mapping[str, Enabled],
    ) -> None:
        self._ledger = ledger
        self._store = ledger.store
        self._runs = runs
        self._task_service = tasks
        self._attachments = attachments
        self._channels = channels
        self._states: dict[str, ChannelState] = dict.fromkeys(channels, "retrying")
        self._running: dict[str, tuple[Channel, ChannelDoor]] = {}
        self._tasks: TaskGroup = anyio.create_task_group()

    async def __aenter__(self) -> ChannelService:
        await self._tasks.__aenter__()
        for name, channel in self._channels.items():
            self._tasks.start_soon(self._keep, name, channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    @property
    def states(self) -> dict[str, ChannelState]:
        """How each channel is."""
        return dict(self._states)

    def running(self, name: str) -> tuple[Channel, ChannelDoor] | None:
        """Return a channel that was loaded, and its door."""
        return self._running.get(name)

    async def _keep(self, name: str, enabled: Enabled) -> None:
        pause = FIRST_PAUSE_S
        while True:
            try:
                channel = await enabled.load()
                await self._store.channels.decide_trust(name, enabled.rules.trusts)
            except Exception as error:  # noqa: BLE001 - whatever ails a channel, the host goes on
                self._warn(name, error, pause)
                await anyio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            else:
                await self._serve(name, channel, enabled.rules)

    async def _serve(self, name: str, channel: Channel, rules: Rules) -> None:
        sent = SentFiles(self._attachments.sandbox, self._attachments.spaces)
        cards = Cards(channel, self._ledger, rules)
        deliveries = Deliveries(channel, self._ledger, rules, self._runs.limits.end_marker, sent, cards)
        commands = Commands(self._store, self._runs, self._task_service, rules)
        files = InboxFiles(channel, self._attachments)
        turns = Turns(channel, self._store, self._runs, commands, files, rules, delivered=deliveries.wake)
        door = ChannelDoor(
            self._store,
            rules,
            self._runs.principals,
            cards.press,
            wake=lambda: _wake(turns, deliveries),
            connected=lambda: self._connected(name),
        )
        self._running[name] = channel, door
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(deliveries.run)
                tasks.start_soon(turns.run)
                await self._receive(name, channel, door)
        finally:
            del self._running[name]
            await _close(name, channel)

    async def _receive(self, name: str, channel: Channel, door: ChannelDoor) -> None:
        """Let the channel bring messages for ever; after a failure it begins again."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                await channel.receive(door)
                error: Exception = ChannelFault("it stopped by itself")
            except Exception as raised:  # noqa: BLE001 - whatever ails a channel, the host goes on
                error = raised
            pause = FIRST_PAUSE_S if self._states[name] == "ok" else min(pause * 2, LONGEST_PAUSE_S)
            self._warn(name, error, pause)
            await anyio.sleep(pause)

    def _connected(self, name: str) -> None:
        if self._states[name] != "ok":
            logger.info("A channel is connected", extra={"channel": name})
        self._states[name] = "ok"

    def _warn(self, name: str, error: Exception, pause: float) -> None:
        self._states[name] = "retrying"
        known = isinstance(error, ChannelFault)
        logger.warning(
            "A channel does not work and is tried again",
            extra={
                "channel": name,
                "error": str(error) if known else type(error).__name__,
                "seconds": pause,
            },
            exc_info=None if known else error,
        )


async def _close(name: str, channel: Channel) -> None:
    """Let a channel close its connections; one that fails at it, or never ends, holds up nothing."""
    try:
        with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
            await channel.aclose()
    except Exception:
        logger.exception("A channel could not be closed", extra={"channel": name})


def _wake(turns: Turns, deliveries: Deliveries) -> None:
    turns.wake()
    deliveries.wake()
