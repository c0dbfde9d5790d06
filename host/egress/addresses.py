"""Where a request's MCP server may be: the address that was checked is the one that is dialled."""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import anyio
import httpx2

from host.egress.bounded import Bounded, messages, unpacked
from shared.settings.sections import is_address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""What IANA gives out of IPv6 (iana.org/assignments/ipv6-address-space): all else is closed."""
_CLOSED: Final = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 168.63.129.16/32
    2001::/23 2001:db8::/32 3fff::/20
"""
CLOSED: Final[tuple[Network, ...]] = tuple(map(ipaddress.ip_network, _CLOSED.split()))
"""IANA's special-purpose registries (RFC 6890), multicast, and Azure's metadata service outside of them."""
MAPPED, NAT64 = ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96")

TLS: Final = httpx2.create_ssl_context(trust_env=False)
"""One for all: to read the certificates of all authorities takes 20 ms and more."""
EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
"""Where a server-sent event ends."""


Refuse = Callable[[str], object]
"""Hears why an answer is not taken in, as the end of a sentence that begins with the server's name."""
Bounding = Callable[[httpx2.Response, Refuse], httpx2.Response]
"""Bounds what is read of an answer; if not given, it is bounded as MCP's messages are."""


class Forbidden(httpx2.ConnectError):
    """The name leads to an address that requests may not reach."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which hosts may be dialled although they aren't public. ``any_address``: an operator's server."""

    allowed_hosts: frozenset[str] = field(default_factory=frozenset)
    any_address: bool = False

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses to dial, in order; raises Forbidden if one of them may not be."""
        addresses = [host] if is_address(host) else await _looked_up(host, port)
        if not self.any_address and host.lower() not in self.allowed_hosts:
            for address in addresses:
                if not is_public(address):
                    raise Forbidden("the address is not public")
        return addresses


async def _looked_up(host: str, port: int) -> list[str]:
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpx2.ConnectError("the name has no address") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(text: str) -> bool:
    """Return whether an address is global unicast, and the IPv4 address within it too.

    Of the forms that hold an IPv4 address, these lead anywhere: mapped (RFC 4291), NAT64 (RFC 6052), 6to4
    (RFC 3056) and ISATAP (RFC 5214). Compatible and translated ones, and local NAT64 (RFC 8215), are closed.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in MAPPED or address in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address not in GLOBAL_UNICAST or not all(is_public(inner) for inner in _inner(int(address))):
            return False
    return not any(address in block for block in CLOSED)


def _inner(address: int) -> Iterator[str]:
    """Yield the IPv4 address that a 6to4 or an ISATAP address leads to."""
    if address >> 112 == 0x2002:
        yield str(ipaddress.IPv4Address(address >> 80 & 0xFFFFFFFF))
    if address >> 32 & 0xFDFFFFFF == 0x5EFE:
        yield str(ipaddress.IPv4Address(address & 0xFFFFFFFF))


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Resolves and checks each request's host, redirects included, and dials the checked address."""

    def __init__(self, policy: AddressPolicy, refuse: Refuse = str, bounded: Bounding | None = None) -> None:
        self._policy = policy
        self._bounded = bounded or _bounded
        self._refuse = refuse
        # No proxy of the environment: it would resolve the name again, unchecked.
        self._inner = httpx2.AsyncHTTPTransport(verify=TLS, trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; raises Forbidden, and what the transport raises."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._policy.resolve(url.host, port)
        for last, address in ((address == addresses[-1], address) for address in addresses):
            try:
                response = await self._inner.handle_async_request(_pinned(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if last:
                    raise
            else:
                return self._bounded(response, self._refuse)
        raise httpx2.ConnectError("the name has no address")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    """Return the same request for one address; name, certificate and Host header stay the asked ones."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


def _bounded(response: httpx2.Response, refuse: Refuse) -> httpx2.Response:
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - an async transport made it
    encoding = response.headers.pop("content-encoding", "")
    events = response.headers.get("content-type", "").startswith("text/event-stream")
    whole = messages(unpacked(response.stream, encoding), EVENT_END if events else None)
    return httpx2.Response(
        response.status_code,
        headers=response.headers,
        stream=_Answer(response.stream, whole, refuse),
        extensions=response.extensions,
    )


class _Answer(Bounded, httpx2.AsyncByteStream):
    # The SDK ends the session for other errors than this one, which ends the request.
    too_much = httpx2.StreamError
