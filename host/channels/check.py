"""What ``picoclaw doctor`` asks about channels: could they be loaded, and does Telegram know the bot?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import httpx2

from host.channels.base import ChannelDown
from host.channels.loading import entry_point
from shared.settings import Settings
from shared.settings.channels import Telegram

WITHIN_S: Final = 5.0


def faults(settings: Settings) -> Iterator[tuple[str, str | None]]:
    """Yield each enabled channel with what is wrong about it, None if nothing is found."""
    for name, channel in settings.channels.by_name().items():
        if channel.enabled:
            yield name, _telegram(channel) if isinstance(channel, Telegram) else _plugin(name)


def _plugin(name: str) -> str | None:
    try:
        entry_point(name)
    except ChannelDown as fault:
        return f"{fault}; install it beside picoclaw"
    return None


def _telegram(settings: Telegram) -> str | None:
    try:
        from host.channels.telegram.channel import telegram_channel

        telegram_channel(settings)
    except ImportError:
        return "python-telegram-bot is missing: pip install 'picoclaw[telegram]'"
    except ChannelDown as fault:
        return str(fault)
    token = settings.token.get_secret_value().strip() if settings.token else ""
    base = settings.api_base.rstrip("/")
    try:
        # The token is a part of the address, so no error's text is shown.
        answer = httpx2.get(f"{base}/bot{token}/getMe", timeout=WITHIN_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{base} cannot be reached ({type(error).__name__}); check the network and api_base"
    if answer.status_code in (httpx2.codes.UNAUTHORIZED, httpx2.codes.NOT_FOUND):
        return "Telegram does not accept the bot's token; set another one (BotFather gives it)"
    return None if answer.is_success else f"{base} answers {answer.status_code}; try again later"
