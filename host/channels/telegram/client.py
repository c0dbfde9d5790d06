"""Calls of the Bot API through python-telegram-bot, with its errors as a channel's faults.

The bot's token is a part of every address that is called, so no text of an error below leaves this module:
what does is Telegram's own description, without the token.
"""

import warnings
from typing import Any, Final

import httpx
from telegram import Bot
from telegram.error import (
    BadRequest,
    ChatMigrated,
    Conflict,
    Forbidden,
    InvalidToken,
    NetworkError,
    RetryAfter,
    TelegramError,
)
from telegram.request import HTTPXRequest
from telegram.warnings import PTBUserWarning

from host.channels.base import ChannelDown, ChannelFault, ChatMoved, Gone, TryLater, Undeliverable
from host.egress.bounded import ACCEPTED, Bounded, bound
from shared.clock import monotonic_ms

CALL_WITHIN_S: Final = 10.0
POLL_S: Final = 25
"""How long Telegram may hold a poll while there is nothing new."""

FILE_WITHIN_S: Final = 60.0
LARGEST: Final = 24_000_000
"""Bytes of an answer, unpacked; the largest file that bots may fetch has 20 MB."""
PAUSE: Final = "Telegram asks for a pause"
NOT_MODIFIED: Final = "message is not modified"
_GONE: Final = ("message to edit not found", "message can't be edited", "message to delete not found")


# Results are wanted as JSON has them: one update that the library can't read must not hide the others.
warnings.filterwarnings("ignore", "Please use 'Bot", PTBUserWarning)


class TelegramClient:
    """One bot's connection to the Bot API at ``api_base``."""

    def __init__(self, token: str, api_base: str) -> None:
        base = api_base.rstrip("/")
        self._token = token
        self._pauses: dict[str, float] = {}
        self._files = f"{base}/file/bot{token}"
        self._bot = Bot(
            token,
            base_url=lambda token: f"{base}/bot{token}",
            base_file_url=lambda token: f"{base}/file/bot{token}",
            request=_request(),
            get_updates_request=_request(),
        )

    async def call(self, method: str, within: float = CALL_WITHIN_S, **parameters: Any) -> Any:
        """Call a method and return its result as JSON has it, within so many seconds. Raises ChannelFault."""
        within = POLL_S + CALL_WITHIN_S if method == "getUpdates" else within
        chat_id = parameters.get("chat_id")
        self._keep_pause(chat_id)
        try:
            return await self._bot.do_api_request(
                method, api_kwargs=parameters, read_timeout=within, write_timeout=within
            )
        except RetryAfter as error:
            seconds = _seconds(error)
            if chat_id is not None:
                self._pauses[chat_id] = monotonic_ms() + seconds * 1000
            raise TryLater(PAUSE, seconds) from None
        except TelegramError as error:
            raise self._fault(error) from None

    async def download(self, path: str) -> bytes:
        """Return a file that ``getFile`` gave a path for. Raises TryLater, Undeliverable."""
        address = f"{self._files}/{path.lstrip('/')}"
        try:
            return await self._bot.request.retrieve(address, read_timeout=FILE_WITHIN_S)
        except InvalidToken:
            raise Undeliverable("Telegram has no such file") from None
        except NetworkError as error:
            if isinstance(error.__cause__, httpx.DecodingError):
                raise Undeliverable(f"Telegram {error.__cause__}") from None
            raise self._fault(error) from None
        except TelegramError as error:
            raise self._fault(error) from None

    async def aclose(self) -> None:
        """Close the connections."""
        for request in self._bot._request:
            await request.shutdown()

    def _keep_pause(self, chat_id: str | None) -> None:
        """Raise TryLater while Telegram wants to hear nothing for this chat, whatever it is."""
        now = monotonic_ms()
        self._pauses = {chat: until for chat, until in self._pauses.items() if until > now}
        if chat_id is not None and chat_id in self._pauses:
            raise TryLater(PAUSE, (self._pauses[chat_id] - now) / 1000)

    def _fault(self, error: TelegramError) -> ChannelFault:
        if isinstance(error, RetryAfter):
            return TryLater(PAUSE, _seconds(error))
        said = error.message.replace(self._token, "[redacted]")
        if isinstance(error, InvalidToken):
            return ChannelDown("Telegram does not accept the bot's token")
        if isinstance(error, Conflict):
            return ChannelDown(f"another program asks for this bot's messages ({said})")
        if isinstance(error, ChatMigrated):
            return ChatMoved(str(error.new_chat_id))
        if isinstance(error, Forbidden):
            return Undeliverable(f"Telegram refuses: {said}")
        if isinstance(error, BadRequest):
            gone = any(sign in said.lower() for sign in _GONE)
            return Gone(said) if gone else Undeliverable(f"Telegram refuses: {said}")
        if isinstance(error, NetworkError) and error.__cause__ is not None:
            return TryLater(f"Telegram cannot be reached ({type(error.__cause__).__name__})")
        return TryLater(f"Telegram fails: {said}")


def _request() -> HTTPXRequest:
    return HTTPXRequest(
        read_timeout=CALL_WITHIN_S,
        write_timeout=CALL_WITHIN_S,
        connect_timeout=CALL_WITHIN_S,
        pool_timeout=30.0,
        httpx_kwargs={"headers": ACCEPTED, "event_hooks": {"response": [_bounded]}},
    )


class _Answer(Bounded, httpx.AsyncByteStream):
    too_much = httpx.DecodingError


async def _bounded(response: httpx.Response) -> None:
    bound(response, _Answer, LARGEST)


def _seconds(error: RetryAfter) -> float:
    with warnings.catch_warnings():
        # It is a number of seconds today and a timedelta tomorrow, and says so each time.
        warnings.simplefilter("ignore")
        after = error.retry_after
    return float(after) if isinstance(after, int) else after.total_seconds()
