"""What the host keeps of the sign-ins at the operator's MCP servers: sealed in the store, and nowhere else.

A record is only opened for the server of the name and the address that it was made for. Without SEAL_KEY
nothing is kept: tokens never lie anywhere in the clear.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import anyio

from shared import jsons
from shared.clock import now_ms
from shared.errors import Misconfigured
from shared.secrets import Seal
from shared.settings import Settings
from shared.store.store import Store

if TYPE_CHECKING:
    import httpx2

RENEWING_MS: Final = 30_000
"""After that a host that renews tokens counts as gone."""
LOOK_AGAIN_S: Final = 0.1
NO_KEY: Final = (
    "SEAL_KEY is not set, or has less than 32 characters, so tokens can't be kept: run "
    "`openssl rand -base64 32 | picoclaw secrets set seal_key` and restart the host; all hosts of a store "
    "have the same"
)


class SignIn:
    """One server's sign-in, for all runs of the host. ``problem``: what the server's last refusal means."""

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
