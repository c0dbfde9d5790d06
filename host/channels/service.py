"""All channels of this host, from the settings: each is loaded, kept running, started again when it fails."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Final

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from host.channels.base import Channel, ChannelConfig, ChannelDown, ChannelFault
from host.channels.chats import Rules
from host.channels.deliveries import Deliveries
from host.channels.intake import Cards, ChannelDoor
from host.channels.messages import Commands, InboxFiles
from host.channels.turns import Turns
from host.http.health import ChannelState
from host.runs.attachments import Attachments
from host.runs.conversation_files import SentFiles
from host.runs.meter import Ledger
from host.runs.service import RunService
from shared.settings import Settings
from shared.settings.access import PluginChannel, Telegram
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


GROUP: Final = "picoclaw.channels"
"""The entry points at which packages offer channels: a callable from ``ChannelConfig`` to ``Channel``."""

WITHIN_S: Final = 5.0
"""How long ``doctor`` waits for Telegram."""

NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def enabled_channels(settings: Settings) -> dict[str, Enabled]:
    """Return the channels that are switched on; nothing of them is imported yet."""
    return dict(_enabled(settings))


def entry_point(name: str) -> EntryPoint:
    """Return the installed channel of that name; raises ChannelDown."""
    if not NAME.fullmatch(name) or name == "telegram":
        raise ChannelDown("a channel's name is 1 to 32 of a-z, 0-9, _ and -, and not telegram")
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise ChannelDown(f"no installed package offers a channel named {name}")
    return found[0]


def _enabled(settings: Settings) -> Iterator[tuple[str, Enabled]]:
    for name, channel in settings.channels.by_name().items():
        if not channel.enabled:
            continue
        rules = Rules(name, channel, settings.main_conversation_id)
        if isinstance(channel, Telegram):
            yield name, Enabled(rules, partial(anyio.to_thread.run_sync, _telegram, channel))
        elif isinstance(channel, PluginChannel):
            yield name, Enabled(rules, partial(anyio.to_thread.run_sync, _plugin, name, channel))


def _telegram(settings: Telegram) -> Channel:
    try:
        from host.channels.telegram.channel import telegram_channel
    except ImportError as error:
        raise ChannelDown("python-telegram-bot is missing: pip install 'picoclaw[telegram]'") from error
    return telegram_channel(settings)


def _plugin(name: str, settings: PluginChannel) -> Channel:
    make = entry_point(name).load()
    secrets = {key: value.get_secret_value() for key, value in settings.secrets.items()}
    channel: object = make(ChannelConfig(name, settings.options, secrets))
    if not isinstance(channel, Channel):
        raise ChannelDown(f"the channel named {name} is not a host.channels.base.Channel")
    return channel


def faults(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Yield each enabled channel with what is wrong about it, None if nothing is found."""
    for name, channel in settings.channels.by_name().items():
        if channel.enabled:
            yield (
                name,
                _telegram_fault(channel) if isinstance(channel, Telegram) else _plugin_fault(name),
            )


def _plugin_fault(name: str) -> str | None:
    try:
        entry_point(name)
    except ChannelDown as fault:
        return f"{fault}; install it beside picoclaw"
    return None


def _telegram_fault(settings: Telegram) -> str | None:
    import httpx2

    try:
        _telegram(settings)
    except ChannelDown as fault:
        return str(fault)
    token = settings.token.get_secret_value().strip() if settings.token else ""
    base = settings.api_base.rstrip("/")
    try:
        # The token is a part of the address, so no error's text is shown.
        with httpx2.stream("GET", f"{base}/bot{token}/getMe", timeout=WITHIN_S) as answer:
            pass
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{base} cannot be reached ({type(error).__name__}); check the network and api_base"
    if answer.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.NOT_FOUND):
        return "Telegram does not accept the bot's token; set another one (BotFather gives it)"
    return None if answer.is_success else f"{base} answers {answer.status_code}; try again later"
