"""Where webhooks may be, and one request to one of them: ten seconds, no redirect, 64 KiB of answer."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import anyio
import httpx2

from host.egress.addresses import AddressPolicy, Forbidden, PinnedTransport
from shared.clock import now_ms
from shared.errors import InvalidInput

WITHIN_S: Final = 10.0
LOOK_UP_WITHIN_S: Final = 3.0
MOST_READ: Final = 64 * 1024
FIRST_FREE_PORT: Final = 1024
ALLOWED: Final = "; webhooks.allowed_hosts names those that may"


async def check_address(url: str, allowed_hosts: frozenset[str]) -> None:
    """Raise InvalidInput for an address that no webhook may have. A name without an address may get one."""
    parts = _split(url)
    host = parts.hostname or ""
    free = host in allowed_hosts
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url: must not hold credentials; the signature proves who sends")
    if parts.fragment or "#" in url:
        raise InvalidInput("url: must not have a fragment")
    if parts.scheme != "https" and not (free and parts.scheme == "http"):
        raise InvalidInput(f"url: must begin with https://{ALLOWED if parts.scheme == 'http' else ''}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if port != 443 and port < FIRST_FREE_PORT and not (free and port == 80):
        raise InvalidInput(f"url: port {port} is not for webhooks; 443 and from {FIRST_FREE_PORT} on are")
    if free:
        return
    with anyio.move_on_after(LOOK_UP_WITHIN_S):
        try:
            await AddressPolicy().resolve(host, port)
        except Forbidden:
            raise InvalidInput(f"url: {host} is not a public address{ALLOWED}") from None
        except httpx2.ConnectError:
            return


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and httpx2.URL(url).host == parts.hostname
    except (ValueError, httpx2.InvalidURL):
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidInput("url: must be an address such as https://example.com/hook")
    return parts


class Answer(NamedTuple):
    """What a receiver said: its status, or None with why there is none; for how long it wants to be left."""

    status: int | None
    error: str
    retry_after_ms: int = 0


class Receivers:
    """A client for webhooks: the address that is checked is the one that is dialled."""

    def __init__(self, allowed_hosts: frozenset[str], version: str) -> None:
        self._client = httpx2.AsyncClient(
            transport=PinnedTransport(AddressPolicy(allowed_hosts), most=MOST_READ),
            headers={"User-Agent": f"PicoClaw/{version}", "Accept-Encoding": "identity"},
            follow_redirects=False,
            timeout=None,
            trust_env=False,
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a body; nothing is raised for what a receiver does."""
        answer = Answer(None, f"no answer within {WITHIN_S:g} s")
        with anyio.move_on_after(WITHIN_S):
            try:
                async with self._client.stream("POST", url, content=body, headers=headers) as response:
                    status = response.status_code
                    answer = Answer(status, f"HTTP {status}", _retry_after_ms(response))
                    await _read(response)
            except httpx2.StreamError:
                return answer
            except httpx2.HTTPError as error:
                return answer if answer.status else Answer(None, str(error) or type(error).__name__)
        return answer

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


async def _read(response: httpx2.Response) -> None:
    """Hear a receiver out, up to a bound: what it says means nothing."""
    left = MOST_READ
    async for piece in response.aiter_raw():
        left -= len(piece)
        if left < 0:
            return


def _retry_after_ms(response: httpx2.Response) -> int:
    said = response.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return int(said[:9]) * 1000
    try:
        return max(round(parsedate_to_datetime(said).timestamp() * 1000) - now_ms(), 0)
    except (ValueError, OverflowError, TypeError):
        return 0
