"""Which other MCP servers a run may use, how they are reached, and sign-ins: checked before any dialling."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import anyio
from pydantic import ValidationError

from shared import jsons
from shared.clock import now_ms
from shared.errors import InvalidInput, Misconfigured
from shared.secrets import Seal
from shared.settings import Settings
from shared.settings.files import line_of, read_text
from shared.settings.load import said
from shared.settings.tools import McpServer, server_type

if TYPE_CHECKING:
    import httpx2

    from shared.store.store import Store

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
logger = logging.getLogger("picoclaw.mcp")

RESERVED: Final = "picoclaw"
TIMEOUT_MS: Final = 30_000
MOST_SERVERS: Final = 32
FIELDS: Final = {"http": frozenset({"url", "headers"}), "stdio": frozenset({"command", "args", "env"})}
EVERYWHERE: Final = frozenset({"enabled", "type", "allowed_tools", "timeout_ms"})

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
    servers = {
        _name(name, label): _entry(entry, f"{label}.{name}", stdio_allowed=stdio_allowed)
        for name, entry in entries.items()
    }
    return {name: _config(server, trusted) for name, server in servers.items() if server.enabled}


def managed_servers(entries: object) -> dict[str, ServerConfig]:
    """Return the organisation's servers of ``managed-mcp.json``; raises InvalidInput naming the entry."""
    return parse_servers(entries, stdio_allowed=True, trusted=True, label="managed-mcp.json: mcpServers")


def configured_servers(servers: Mapping[str, McpServer]) -> dict[str, ServerConfig]:
    """Return the operator's enabled servers of ``tools.mcp.servers``; raises InvalidInput."""
    return {
        _name(name, "tools.mcp.servers"): _config(server, trusted=True)
        for name, server in servers.items()
        if server.enabled
    }


def _config(server: McpServer, trusted: bool) -> ServerConfig:
    return ServerConfig(
        type=server.type,
        url=server.url or "",
        headers={key: value.get_secret_value() for key, value in server.headers.items()},
        command=server.command or "",
        args=server.args,
        env={key: value.get_secret_value() for key, value in server.env.items()},
        allowed_tools=None if server.allowed_tools is None else frozenset(server.allowed_tools),
        timeout_ms=server.timeout_ms,
        trusted=trusted,
        start_ms=server.timeout_ms if "timeout_ms" in server.model_fields_set else None,
    )


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


def _entry(entry: object, label: str, *, stdio_allowed: bool) -> McpServer:
    """Read an entry that no settings have read; every fault names its field."""
    if not isinstance(entry, Mapping):
        raise InvalidInput(f"{label}: must be an object")
    kind = server_type(entry)
    if kind == "stdio" and not stdio_allowed and entry.get("enabled", True):
        raise InvalidInput(f"{label}.type: stdio servers in requests are off (ALLOW_REQUEST_STDIO_MCP)")
    known = FIELDS["stdio" if kind == "stdio" else "http"] | EVERYWHERE
    for name in entry:
        if name not in known:
            raise InvalidInput(f"{label}.{str(name)[:64]}: is not a field of a server of type {kind}")
    try:
        server = McpServer.model_validate_json(jsons.dump_bytes({**entry, "type": kind}), strict=True)
    except TypeError:
        raise InvalidInput(f"{label}: has a number that is too large, or is nested too deep") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = fault["loc"][0] if fault["loc"] else "command" if kind == "stdio" else "url"
        raise InvalidInput(f"{label}.{field}: {said(fault)}") from None
    if "@" in urlsplit(server.url or "").netloc:
        raise InvalidInput(f"{label}.url: must not contain credentials; use headers")
    return server


RENEWING_MS: Final = 30_000
"""After that a host that renews tokens counts as gone."""
LOOK_AGAIN_S: Final = 0.1
NO_KEY: Final = (
    "SEAL_KEY is not set, or has less than 32 characters, so tokens can't be kept: run "
    "`openssl rand -base64 32 | picoclaw secrets set seal_key` and restart the host; all hosts of a store "
    "have the same"
)


class SignIn:
    """One server's sign-in, for all runs of the host. ``problem``: what the server's last refusal means.

    Tokens are sealed in the store and lie nowhere else. A record is only opened for the server of the name
    and the address that it was made for; without SEAL_KEY nothing is kept.
    """

    def __init__(self, name: str, url: str, store: Store, settings: Settings) -> None:
        server = settings.tools.mcp.servers.get(name)
        secret = server.client_secret if server else None
        self.name = name
        self.url = url
        self.client_id = server.client_id if server else None
        self.client_secret = secret.get_secret_value() if secret else None
        self.client_metadata_url = settings.tools.mcp.client_metadata_url
        self.lock = anyio.Lock()
        self.problem: str | None = None
        self.challenge: httpx2.Response | None = None
        self._seal = Seal(settings.seal_key, b"picoclaw mcp sign-ins")
        self._store = store

    def auth(self) -> httpx2.Auth:
        """Return what adds the token to a run's requests, and renews it in time."""
        auth: httpx2.Auth = importlib.import_module("host.mcp_clients.sign_in").Token(self)
        return auth

    def refused(self, challenge: httpx2.Response) -> None:
        """Note that the server wants a sign-in, or one with more rights."""
        self.challenge = challenge
        more = " with more rights" if challenge.status_code == 403 else ""
        self.problem = f"needs sign-in{more}: picoclaw mcp login {self.name}"

    def accepted(self) -> None:
        """Note that the server serves us."""
        self.problem = self.challenge = None

    async def load(self) -> Mapping[str, Any]:
        """Return the record; empty when there is none for this server's address and this key."""
        sealed = await self._store.sign_ins.find(self.name) if self._seal.usable else None
        opened = None if sealed is None else self._seal.open(sealed, self._bound())
        record: Mapping[str, Any] = {} if opened is None else jsons.loads(opened)
        return record

    async def save(self, record: Mapping[str, Any]) -> None:
        """Keep a record in place of the one before."""
        self.check_key()
        sealed = self._seal.close(jsons.dump_bytes(record), self._bound())
        await self._store.sign_ins.keep(self.name, sealed, now_ms())
        await self._store.durable()

    async def forget(self) -> bool:
        """Sign out here: the record goes; False if there was none."""
        gone = await self._store.sign_ins.forget(self.name)
        await self._store.durable()
        return gone

    @asynccontextmanager
    async def turn(self, wanted: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool]:
        """Yield whether to renew the tokens, which then no other run of any host does.

        ``wanted`` loads them and says whether they still need it: another may have renewed them meanwhile.
        """
        async with self.lock:
            while await wanted():
                if await self._store.sign_ins.claim(self.name, RENEWING_MS):
                    break
                await anyio.sleep(LOOK_AGAIN_S)
            else:
                yield False
                return
            try:
                yield await wanted()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._store.sign_ins.release(self.name)

    def check_key(self) -> None:
        """Raise Misconfigured where nothing could be kept."""
        if not self._seal.usable:
            raise Misconfigured(NO_KEY)

    def _bound(self) -> bytes:
        return f"{self.name} {self.url}".encode()
