"""From the settings to channels: Telegram, and those of installed packages (``picoclaw.channels``).

``picoclaw doctor`` asks here too: could they be loaded, and does Telegram know the bot?
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import anyio.to_thread

from host.channels.base import Channel, ChannelConfig, ChannelDown
from host.channels.rules import Rules
from host.channels.service import Enabled
from shared.settings import Settings
from shared.settings.channels import PluginChannel, Telegram

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
