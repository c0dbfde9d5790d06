"""Which other MCP servers a run may use, and how they are reached: checked before anything is dialled."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import urlsplit

from shared.errors import InvalidInput, Misconfigured
from shared.settings import Settings
from shared.settings.files import line_of, read_text
from shared.settings.tools import McpServer, server_type

if TYPE_CHECKING:
    from host.mcp_clients.sign_ins import SignIn

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
logger = logging.getLogger("picoclaw.mcp")

RESERVED: Final = "picoclaw"
TIMEOUT_MS: Final = 30_000
LONGEST_TIMEOUT_MS: Final = 600_000
MOST_SERVERS: Final = 32
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""

ServerType = Literal["http", "sse", "stdio"]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server. ``trusted``: the operator's own, so its address isn't checked.

    ``start_ms``: how long it may take to connect and to list its tools, None for the host's default.
    """

    type: ServerType
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed_tools: frozenset[str] | None = None
    timeout_ms: int = TIMEOUT_MS
    trusted: bool = False
    start_ms: int | None = None
    sign_in: SignIn | None = field(default=None, repr=False, compare=False)

    @property
    def place(self) -> str:
        """Return what identifies the server without its credentials."""
        return self.url or " ".join((self.command, *self.args))

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing that must not be stored: no program, no headers."""
        return self.type != "stdio" and not self.headers

    def entry(self) -> dict[str, Any]:
        """Return the entry of a request that gives this server."""
        entry: dict[str, Any] = {"type": self.type, "timeout_ms": self.timeout_ms}
        if self.type == "stdio":
            entry |= {"command": self.command, "args": self.args, "env": self.env}
        else:
            entry |= {"url": self.url, "headers": self.headers}
        return entry if self.allowed_tools is None else {**entry, "allowed_tools": sorted(self.allowed_tools)}

    def allows(self, tool: str) -> bool:
        """Return whether a tool of the server may be offered."""
        return self.allowed_tools is None or tool in self.allowed_tools


def parse_servers(
    entries: object, *, stdio_allowed: bool, trusted: bool = False, label: str = "mcp_servers"
) -> dict[str, ServerConfig]:
    """Return the servers of a request or a file; raises InvalidInput naming the entry and its field."""
    if not isinstance(entries, Mapping):
        raise InvalidInput(f"{label}: must be an object")
    if len(entries) > MOST_SERVERS:
        raise InvalidInput(f"{label}: must have at most {MOST_SERVERS} entries")
    return {
        _name(name, label): config
        for name, entry in entries.items()
        if (config := _Entry(entry, f"{label}.{name}").config(stdio_allowed, trusted)) is not None
    }


def managed_servers(entries: object) -> dict[str, ServerConfig]:
    """Return the organisation's servers of ``managed-mcp.json``; raises InvalidInput naming the entry."""
    return parse_servers(entries, stdio_allowed=True, trusted=True, label="managed-mcp.json: mcpServers")


def configured_servers(servers: Mapping[str, McpServer]) -> dict[str, ServerConfig]:
    """Return the operator's enabled servers of ``tools.mcp.servers``; raises InvalidInput."""
    return {
        _name(name, "tools.mcp.servers"): ServerConfig(
            type=server.type,
            url=server.url or "",
            headers={key: value.get_secret_value() for key, value in server.headers.items()},
            command=server.command or "",
            args=server.args,
            env={key: value.get_secret_value() for key, value in server.env.items()},
            allowed_tools=None if server.allowed_tools is None else frozenset(server.allowed_tools),
            timeout_ms=server.timeout_ms,
            trusted=True,
            start_ms=server.timeout_ms if "timeout_ms" in server.model_fields_set else None,
        )
        for name, server in servers.items()
        if server.enabled
    }


def operators_servers(settings: Settings) -> dict[str, ServerConfig]:
    """Return the servers of every run, the organisation's first; raises Misconfigured with file and line."""
    managed_path = None if settings.org_dir is None else settings.org_dir / "managed-mcp.json"
    with _located(settings.config_path):
        configured = configured_servers(settings.tools.mcp.servers)
    with _located(managed_path):
        managed = managed_servers(settings.managed_mcp)
    for name in configured.keys() & managed.keys():
        logger.warning("The MCP server %s of managed-mcp.json counts, that of config.json doesn't", name)
    servers = {**configured, **managed}
    for sentence in alike(servers, servers):
        logger.warning("%s", sentence)
    return servers


def alike(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a sentence for those of the names that differ from another one in capitals only."""
    groups: dict[str, set[str]] = {}
    for name in known:
        groups.setdefault(name.lower(), set()).add(name)
    same = dict.fromkeys(" and ".join(sorted(groups[name.lower()])) for name in names)
    return [f"The MCP servers {each} differ in capitals only: both are used." for each in same if " " in each]


@contextmanager
def _located(path: Path | None) -> Iterator[None]:
    try:
        yield
    except InvalidInput as error:
        keys = error.message.removeprefix("managed-mcp.json: ").partition(":")[0].split(".")
        line = line_of(read_text(path) or "", tuple(keys)) if path else None
        raise Misconfigured(f"{path}, line {line}: {error.message}" if line else error.message) from None


def _name(name: object, label: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(f"{label}.{str(name)[:64]}: a name takes 1 to 32 of A-Z, a-z, 0-9, _ and -")
    if name.lower() == RESERVED:
        raise InvalidInput(f"{label}.{name}: this name is the built-in server's")
    return name


_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "http": frozenset({"url", "headers"}),
    "sse": frozenset({"url", "headers"}),
    "stdio": frozenset({"command", "args", "env"}),
}
_EVERYWHERE: Final = frozenset({"enabled", "type", "allowed_tools", "timeout_ms"})


class _Entry:
    """Reads one entry; every fault names it."""

    def __init__(self, entry: object, label: str) -> None:
        self._label = label
        if not isinstance(entry, Mapping):
            raise InvalidInput(f"{label}: must be an object")
        self._entry = entry

    def config(self, stdio_allowed: bool, trusted: bool) -> ServerConfig | None:
        """Return the server, None if it is switched off."""
        if self._entry.get("enabled", True) is False:
            return None
        kind = self._kind(stdio_allowed)
        for name in self._entry:
            if name not in _FIELDS[kind] | _EVERYWHERE:
                raise self._fault(str(name)[:64], f"is not a field of a server of type {kind}")
        allowed = self._texts("allowed_tools") if "allowed_tools" in self._entry else None
        return ServerConfig(
            type=kind,
            url="" if kind == "stdio" else self._url(),
            headers=self._headers(),
            command=self._text("command") if kind == "stdio" else "",
            args=self._texts("args"),
            env=self._mapping("env"),
            allowed_tools=None if allowed is None else frozenset(allowed),
            timeout_ms=self._timeout(),
            trusted=trusted,
            start_ms=self._timeout() if "timeout_ms" in self._entry else None,
        )

    def _fault(self, name: str, reason: str) -> InvalidInput:
        return InvalidInput(f"{self._label}.{name}: {reason}")

    def _kind(self, stdio_allowed: bool) -> ServerType:
        kind = server_type(self._entry)
        if kind == "stdio" and not stdio_allowed:
            raise self._fault("type", "stdio servers in requests are off (ALLOW_REQUEST_STDIO_MCP)")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise self._fault("type", "must be http, sse or stdio")
        return cast(ServerType, kind)

    def _text(self, name: str) -> str:
        value = self._entry.get(name)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._fault(name, "must be a text that is not empty")
        return value

    def _url(self) -> str:
        url = self._text("url")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound or not url.isascii() or any(character <= " " for character in url):
            raise self._fault("url", "must be an http or https address")
        if parts.username is not None or parts.password is not None:
            raise self._fault("url", "must not contain credentials; use headers")
        return url

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self._entry.get(name, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._fault(name, "must be a list of texts")
        if any("\0" in item for item in value):
            raise self._fault(name, "must not contain NUL")
        return tuple(value)

    def _mapping(self, name: str) -> dict[str, str]:
        value = self._entry.get(name, {})
        if not isinstance(value, Mapping):
            raise self._fault(name, "must be an object of texts")
        for key, text in value.items():
            if not (isinstance(key, str) and isinstance(text, str)) or "\0" in key + text or "=" in key:
                raise self._fault(name, "must be an object of texts")
        return dict(value)

    def _headers(self) -> dict[str, str]:
        headers = self._mapping("headers")
        for key, value in headers.items():
            if not HEADER_NAME.fullmatch(key) or not value.isprintable() or not value.isascii():
                raise self._fault("headers", f"{key[:64]!r} is not a header a request can carry")
        return headers

    def _timeout(self) -> int:
        value = self._entry.get("timeout_ms", TIMEOUT_MS)
        value = int(value) if isinstance(value, float) and value.is_integer() else value
        if type(value) is not int or not 1 <= value <= LONGEST_TIMEOUT_MS:
            raise self._fault("timeout_ms", f"must be a whole number from 1 to {LONGEST_TIMEOUT_MS}")
        return value
