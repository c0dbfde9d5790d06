"""Addresses that programs name: webhooks (ten seconds, 64 KiB of answer), pictures (8 MiB). No redirects.

Webhooks are told by a process of its own (``python -m host.egress.receivers``): no run waits behind a
request. The host says a frame for each: a line of JSON (number, address, headers), then the body. It hears
frames of answers that came together, a list of JSON: a number and an ``Answer`` each.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

import anyio
import httpx2

from host.egress.addresses import TLS, AddressPolicy, Forbidden, PinnedTransport
from host.egress.bounded import ACCEPTED, Bounded, bound
from host.egress.transport import ApiTransport, Connection
from shared.children import Link, serve
from shared.clock import ms_of_http_date, now_ms
from shared.errors import InvalidInput
from shared.jsons import dump_bytes, loads
from shared.processes import framed

WITHIN_S: Final = 10.0
LOOK_UP_WITHIN_S: Final = 3.0
BOUNDED_AS_A_WHOLE: Final = {"read": 2 * WITHIN_S, "write": 2 * WITHIN_S}
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


class Answer(NamedTuple):
    """What a receiver said: its status, or None with why there is none; for how long it wants to be left."""

    status: int | None
    error: str
    retry_after_ms: int = 0


class Receivers(ApiTransport):
    """A client for webhooks: the address that is checked is the one that is dialled."""

    def __init__(self, allowed_hosts: frozenset[str], version: str) -> None:
        super().__init__()
        self._policy = AddressPolicy(allowed_hosts)
        self._own = (("User-Agent", f"PicoClaw/{version}"), ("Accept-Encoding", "identity"))

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a body; nothing is raised for what a receiver does."""
        parts, answer = urlsplit(url), Answer(None, f"no answer within {WITHIN_S:g} s")
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        said = [("Host", parts.netloc), *self._own, ("Content-Length", str(len(body))), *headers.items()]
        lines = [f"POST {target} HTTP/1.1", *map(": ".join, said), "\r\n"]
        data = "\r\n".join(lines).encode() + body
        again = True
        with anyio.move_on_after(WITHIN_S):
            while again:
                again = False
                try:
                    connection, again = await self._connection(parts)
                    async with aclosing(connection):
                        await connection.ask(data, BOUNDED_AS_A_WHOLE)
                        again = False
                        line, later = f"HTTP {connection.status}", _retry_after_ms(connection.headers)
                        answer = Answer(connection.status, line, later)
                        await _hear_out(connection)
                except (OSError, httpx2.TransportError) as error:
                    # A receiver may end a connection that is kept, just as it is used again.
                    answer = answer if answer.status else Answer(None, _sentence(error))
        return answer

    async def _connection(self, parts: SplitResult) -> tuple[Connection, bool]:
        """Take a connection that is kept if it still leads to a right address (True), or connect."""
        secure, host = parts.scheme == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        addresses = await self._policy.resolve(host, port)
        origins = [(f"{parts.scheme}://{host}", address, port) for address in addresses]
        for origin in origins:
            if (kept := self.kept(origin)) is not None:
                return kept, True
        context, name = (TLS, host) if secure else (None, None)
        connect = asyncio.get_running_loop().create_connection
        for origin in origins:
            make = partial(Connection, self, origin)
            try:
                return (await connect(make, *origin[1:], ssl=context, server_hostname=name))[1], False
            except OSError:
                if origin == origins[-1]:
                    raise
        raise httpx2.ConnectError("the name has no address")

    def keep(self, connection: Connection) -> None:
        """Have a connection wait for the next delivery, for as long as its receiver lets it."""
        self.idle.append(connection)
        if len(self.idle) > MOST_KEPT:
            self.idle.pop(0).close()


async def _hear_out(connection: Connection) -> None:
    """Hear a receiver out, up to a bound: what it says means nothing. Then it may be asked again."""
    left = MOST_READ
    async for piece in connection:
        left -= len(piece)
        if left < 0:
            return


def _sentence(error: Exception) -> str:
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return "its answer is not HTTP, or ended early"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _retry_after_ms(headers: list[tuple[bytes, bytes]]) -> int:
    said = next((value for name, value in headers if name.lower() == b"retry-after"), b"").decode("latin-1")
    if said.isascii() and said.isdigit():
        return int(said[:9]) * 1000
    moment = ms_of_http_date(said)
    return 0 if moment is None else max(moment - now_ms(), 0)


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


logger = logging.getLogger("picoclaw.webhooks")

LONGEST: Final = 1 << 20
Request = tuple[int, str, dict[str, str], bytes]
"""Its number, the address, headers and the body."""
TOGETHER_S: Final = 0.02
"""So long answers wait for others: to be woken takes the host longer than to hear one of them."""


class Telling(Link):
    """The host's side. ``heard`` is called with the number of a request and its answer.

    ``lost`` is called when the process has ended: nobody knows what came of requests without an answer.
    """

    def __init__(self, heard: Callable[[int, Answer], None], lost: Callable[[], None]) -> None:
        super().__init__(LONGEST, lost)
        self._heard = heard

    def post(self, requests: Iterable[Request]) -> None:
        """Have bodies sent; together, because each time the process is woken costs both."""
        framed_all = (framed(dump_bytes([*head]) + b"\n" + body, LONGEST) for *head, body in requests)
        self.transport.write(b"".join(framed_all))

    def data_received(self, data: bytes) -> None:
        """Pass the answers on (asyncio's call)."""
        for frame in self.frames.feed(data):
            for number, *answer in loads(frame):
                self._heard(number, Answer(*answer))


class Teller(Link):
    """Makes the host's requests side by side."""

    def __init__(self, receivers: Receivers, closed: Callable[[], None]) -> None:
        super().__init__(LONGEST, closed)
        self._receivers = receivers
        self._requests = set[asyncio.Task[None]]()
        self._answers: list[Any] = []

    def data_received(self, data: bytes) -> None:
        """Begin requests (asyncio's call)."""
        for frame in self.frames.feed(data):
            head, _, body = frame.partition(b"\n")
            number, url, headers = loads(head)
            request = asyncio.create_task(self._answer(number, url, headers, body))
            self._requests.add(request)
            request.add_done_callback(self._requests.discard)

    async def _answer(self, number: int, url: str, headers: dict[str, str], body: bytes) -> None:
        answer = Answer(None, "the host failed to send it")
        try:
            answer = await self._receivers.post(url, body, headers)
        except Exception:
            logger.exception("A webhook could not be told")
        if not self._answers:
            asyncio.get_running_loop().call_later(TOGETHER_S, self._say)
        self._answers.append([number, *answer])

    def _say(self) -> None:
        self.transport.write(framed(dump_bytes(self._answers), LONGEST))
        self._answers.clear()


if __name__ == "__main__":
    _, _, version, *allowed = sys.argv
    serve(partial(Teller, Receivers(frozenset(allowed), version)))
