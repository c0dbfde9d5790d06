"""Real tool servers for tests: through the official client, or byte by byte."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.client import ConnectMode

from shared import jsons
from shared.store import open_store
from tests.warm_host import warm

COMMAND = [sys.executable, "-m", "mcp_server"]
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
SECONDS = 60
LINE_LIMIT = 32 * 1024 * 1024


def environment(
    database: Path, conversation_id: str, *, is_main: bool = False, principal_id: str = ""
) -> dict[str, str]:
    """Return the environment a tool server is born with; the store is made where its directory is."""
    if database.parent.is_dir() and not database.exists():
        open_store(database).give_up()
    return {
        "PICOCLAW_DB_PATH": str(database),
        "PICOCLAW_CONVERSATION_ID": conversation_id,
        "PICOCLAW_IS_MAIN": "1" if is_main else "0",
        "TZ": "Europe/Berlin",
        **({"PICOCLAW_PRINCIPAL_ID": principal_id} if principal_id else {}),
    }


@asynccontextmanager
async def official_client(
    database: Path,
    conversation_id: str,
    *,
    is_main: bool = False,
    mode: ConnectMode = "auto",
    principal_id: str = "",
) -> AsyncIterator[Client]:
    """Yield the SDK's client on a tool server of its own."""
    parameters = StdioServerParameters(
        command=COMMAND[0],
        args=COMMAND[1:],
        env=environment(database, conversation_id, is_main=is_main, principal_id=principal_id),
    )
    with anyio.fail_after(SECONDS):
        async with AsyncExitStack() as stack:
            client = Client(parameters, mode=mode, read_timeout_seconds=SECONDS)
            with warm():
                await stack.enter_async_context(client)
            yield client


class RawServer:
    """A tool server one writes bytes to; a ``cold`` one is started as agents start it."""

    def __init__(self, env: dict[str, str], *, cold: bool = False) -> None:
        self._env = env
        self._cold = cold
        self.process: Process
        self._lines: BufferedByteReceiveStream

    async def __aenter__(self) -> RawServer:
        with contextlib.nullcontext() if self._cold else warm():
            self.process = await anyio.open_process(
                COMMAND, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self._env
            )
        assert self.process.stdout is not None
        self._lines = BufferedByteReceiveStream(self.process.stdout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            if self.process.returncode is None:
                self.process.kill()
            await self.process.aclose()

    async def hello(self) -> dict[str, Any]:
        """Shake hands."""
        answer = await self.ask("hello", "initialize", HELLO)
        await self.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    async def ask(self, request_id: int | str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the next line."""
        await self.say({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        return await self.hear()

    async def tool(self, name: str, request_id: int | str = 1, **arguments: Any) -> dict[str, Any]:
        """Call a tool and return its result."""
        answer = await self.ask(request_id, "tools/call", {"name": name, "arguments": arguments})
        assert answer["id"] == request_id
        result: dict[str, Any] = answer["result"]
        return result

    async def say(self, message: dict[str, Any]) -> None:
        """Send one message."""
        await self.send(jsons.dump_bytes(message) + b"\n")

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        assert self.process.stdin is not None
        await self.process.stdin.send(data)

    async def hear(self) -> dict[str, Any]:
        """Return the next message."""
        with anyio.fail_after(SECONDS):
            answer: dict[str, Any] = jsons.loads(await self._lines.receive_until(b"\n", LINE_LIMIT))
            return answer

    async def end(self) -> int:
        """Close its input and return its exit status."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        with anyio.fail_after(SECONDS):
            return await self.process.wait()

    async def complaint(self) -> str:
        """Return what it wrote to stderr until its end."""
        assert self.process.stderr is not None
        with anyio.fail_after(SECONDS):
            return b"".join([chunk async for chunk in self.process.stderr]).decode()
