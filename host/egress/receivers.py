"""Addresses that programs name: webhooks (ten seconds, 64 KiB of answer), pictures (8 MiB). No redirects."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import anyio
import h11
import httpx2

from host.egress.addresses import TLS, AddressPolicy, Forbidden, PinnedTransport
from host.egress.bounded import ACCEPTED, Bounded, bound
from shared.clock import now_ms
from shared.errors import InvalidInput

WITHIN_S: Final = 10.0
LOOK_UP_WITHIN_S: Final = 3.0
MOST_READ: Final = 64 * 1024
MOST_KEPT: Final = 64
"""Connections that wait for the next delivery."""
FIRST_FREE_PORT: Final = 1024
SETTING: Final = "webhooks.allowed_hosts"


async def check_address(url: str, allowed_hosts: frozenset[str], setting: str = SETTING) -> None:
    """Raise InvalidInput for an address that may not be reached. A name without an address may get one.

    ``setting`` is where ``allowed_hosts`` stand.
    """
    parts, allowed = _split(url), f"; {setting} names those that may"
    host = parts.hostname or ""
    free = host in allowed_hosts
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url: must not hold credentials; the signature proves who sends")
    if parts.fragment or "#" in url:
        raise InvalidInput("url: must not have a fragment")
    if parts.scheme != "https" and not (free and parts.scheme == "http"):
        raise InvalidInput(f"url: must begin with https://{allowed if parts.scheme == 'http' else ''}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if port != 443 and port < FIRST_FREE_PORT and not (free and port == 80):
        raise InvalidInput(f"url: port {port} is not for webhooks; 443 and from {FIRST_FREE_PORT} on are")
    if free:
        return
    with anyio.move_on_after(LOOK_UP_WITHIN_S):
        try:
            await AddressPolicy().resolve(host, port)
        except Forbidden:
            raise InvalidInput(f"url: {host} is not a public address{allowed}") from None
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


Place = tuple[bool, str, int]
"""Whether it is encrypted, a receiver's name and its port."""


class Answer(NamedTuple):
    """What a receiver said: its status, or None with why there is none; for how long it wants to be left."""

    status: int | None
    error: str
    retry_after_ms: int = 0


@dataclass(slots=True)
class _Connection:
    """A connection to a receiver, for one request after the other."""

    address: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_READ)
    )
    used: bool = False

    async def ask(self, request: h11.Request, body: bytes) -> h11.Response:
        """Send a request; return how its answer begins. Raises OSError, h11.RemoteProtocolError."""
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        self.writer.write(b"".join(self.http.send(event) or b"" for event in events))
        while not isinstance(event := await self._heard(), h11.Response):
            pass
        return event

    async def hear_out(self) -> None:
        """Hear a receiver out, up to a bound: what it says means nothing. Then it may be asked again."""
        left = MOST_READ
        while left > 0 and isinstance(event := await self._heard(), h11.Data):
            left -= len(event.data)
        if self.http.our_state is self.http.their_state is h11.DONE:
            self.http.start_next_cycle()
            self.used = True

    async def _heard(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(MOST_READ))
        if isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed")
        return event


class Receivers:
    """A client for webhooks: the address that is checked is the one that is dialled.

    Over h11 itself: a client for everything takes three times the processor time, which runs then lack.
    """

    def __init__(self, allowed_hosts: frozenset[str], version: str) -> None:
        self._policy = AddressPolicy(allowed_hosts)
        self._own = (("User-Agent", f"PicoClaw/{version}"), ("Accept-Encoding", "identity"))
        self._kept: dict[Place, _Connection] = {}

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a body; nothing is raised for what a receiver does."""
        parts, answer = urlsplit(url), Answer(None, f"no answer within {WITHIN_S:g} s")
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        own = [("Host", parts.netloc), *self._own, ("Content-Length", str(len(body)))]
        request = h11.Request(method="POST", target=target, headers=[*own, *headers.items()])
        again = True
        with anyio.move_on_after(WITHIN_S):
            while again:
                again = False
                try:
                    async with self._connection(parts) as connection:
                        # A receiver may end a connection that is kept, just as it is used again.
                        again = connection.used
                        said = await connection.ask(request, body)
                        again = False
                        answer = Answer(said.status_code, f"HTTP {said.status_code}", _retry_after_ms(said))
                        await connection.hear_out()
                except (OSError, httpx2.ConnectError, h11.RemoteProtocolError) as error:
                    answer = answer if answer.status else Answer(None, _sentence(error))
        return answer

    @asynccontextmanager
    async def _connection(self, parts: SplitResult) -> AsyncIterator[_Connection]:
        """Connect, or take the connection that is kept if it still leads to the right address."""
        secure, host = parts.scheme == "https", parts.hostname or ""
        place = (secure, host, parts.port or (443 if secure else 80))
        addresses = await self._policy.resolve(*place[1:])
        connection = self._kept.pop(place, None)
        if connection is not None and (connection.reader.at_eof() or connection.address not in addresses):
            connection.writer.close()
            connection = None
        if connection is None:
            connection = await _dialled(place, addresses)
        try:
            yield connection
        finally:
            if connection.http.our_state is h11.IDLE and place not in self._kept:
                self._keep(place, connection)
            else:
                connection.writer.close()

    def _keep(self, place: Place, connection: _Connection) -> None:
        if len(self._kept) >= MOST_KEPT:
            self._kept.pop(next(iter(self._kept))).writer.close()
        self._kept[place] = connection

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in self._kept.values():
            connection.writer.close()
        self._kept.clear()


async def _dialled(place: Place, addresses: list[str]) -> _Connection:
    secure, host, port = place
    context, name = (TLS, host) if secure else (None, None)
    for address in addresses:
        try:
            streams = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
            return _Connection(address, *streams)
        except OSError:
            if address == addresses[-1]:
                raise
    raise httpx2.ConnectError("the name has no address")


def _sentence(error: Exception) -> str:
    if isinstance(error, h11.RemoteProtocolError):
        return "its answer is not HTTP, or ended early"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _retry_after_ms(response: h11.Response) -> int:
    said = dict(response.headers).get(b"retry-after", b"").decode("latin-1").strip()
    if said.isascii() and said.isdigit():
        return int(said[:9]) * 1000
    try:
        return max(round(parsedate_to_datetime(said).timestamp() * 1000) - now_ms(), 0)
    except (ValueError, OverflowError, TypeError):
        return 0


LARGEST_PICTURE: Final = 8 << 20
ANY_HOST: Final = "*"
PICTURE_SETTING: Final = "files.picture_hosts"


class _Picture(Bounded, httpx2.AsyncByteStream):
    too_much = httpx2.StreamError


async def fetch_picture(url: str, hosts: frozenset[str], most: int) -> bytes:
    """Return what is at an address, at most ``most`` bytes; raises InvalidInput with why there is nothing."""
    await check_address(url, hosts, PICTURE_SETTING)
    host = urlsplit(url).hostname or ""
    if ANY_HOST not in hosts and host not in hosts:
        raise InvalidInput(f"url: {PICTURE_SETTING} does not name its host")
    transport = PinnedTransport(AddressPolicy(hosts), bounded=partial(_bounded, min(most, LARGEST_PICTURE)))
    async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
        try:
            response = await client.get(url, headers=ACCEPTED)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise InvalidInput(f"url: {error or 'its server ended the connection'}") from None
    if response.status_code != httpx2.codes.OK:
        raise InvalidInput(f"url: its server answered HTTP {response.status_code}")
    return response.content


def _bounded(most: int, response: httpx2.Response, _refuse: Any) -> httpx2.Response:
    bound(response, _Picture, most)
    return response
