"""Under which names /mcp may be called: against DNS rebinding (MCP specification, transports, security)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from shared.errors import Forbidden

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ANY: Final = "*"


class McpGate:
    """Checks Host and Origin. An address is no name that somebody could point elsewhere, so it is let in."""

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._allowed = LOCAL | {_plain(host) for host in allowed_hosts}

    def check(self, headers: Headers) -> None:
        """Raise Forbidden for a host or an origin that is not allowed."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = _hostname(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or not (self._lets(host) or _is_address(host)):
            raise Forbidden("Host: is not allowed; gateway.allowed_hosts names those that are")
        if origins and not (len(origins) == 1 and self._knows(origins[0], host)):
            raise Forbidden("Origin: is not allowed; gateway.allowed_hosts names those that are")

    def _knows(self, origin: str, host: str) -> bool:
        if not origin.lower().startswith(("http://", "https://")):
            return False
        name = _hostname(origin)
        return name is not None and (name == host or self._lets(name))

    def _lets(self, name: str) -> bool:
        return name in self._allowed or ANY in self._allowed


def _hostname(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        name, _ = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return _plain(name)


def _plain(name: str) -> str:
    return name.lower().rstrip(".").removeprefix("[").removesuffix("]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
