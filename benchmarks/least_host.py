"""The least that could be called a host: what our figures are held against (``python -m benchmarks turns``).

Starlette on uvicorn, the SDK as its manual shows it, and two durable rows a turn in SQLite. No identity,
leases, events, history, prompt, tools, limits or sandbox.

``PORT=... python -m benchmarks.least_host <model's url> <directory>``
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class LeastHost:
    """Turns without anything around them."""

    def __init__(self, model_url: str, directory: Path) -> None:
        self._model_url = model_url
        self._directory = directory
        self._client: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._database = sqlite3.connect(
            directory / "least.db", isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE IF NOT EXISTS messages (conversation TEXT, content TEXT)")

    async def health(self, _: Request) -> Response:
        """Answer at once."""
        return JSONResponse({"status": "ok"})

    async def chat(self, request: Request) -> Response:
        """Make a turn."""
        body = await request.json()
        conversation = body.get("conversation_id") or str(uuid4())
        await self._store(conversation, body["message"])
        if body.get("stream"):
            return StreamingResponse(
                self._stream(conversation, body["message"]), media_type="text/event-stream"
            )
        text = "".join([piece async for piece in self._reply(body["message"])])
        await self._store(conversation, text)
        return JSONResponse({"status": "success", "conversation_id": conversation, "result": text})

    async def _stream(self, conversation: str, message: str) -> AsyncIterator[str]:
        pieces = []
        async for piece in self._reply(message):
            pieces.append(piece)
            yield f"event: chunk\ndata: {json.dumps({'text': piece})}\n\n"
        await self._store(conversation, "".join(pieces))
        yield "event: done\ndata: {}\n\n"

    async def _reply(self, message: str) -> AsyncIterator[str]:
        if self._client is None:
            from anthropic import AsyncAnthropic

            self._client = AsyncAnthropic(api_key="none", base_url=self._model_url, max_retries=0)
        stream = await self._client.messages.create(
            model="m", max_tokens=100, messages=[{"role": "user", "content": message}], stream=True
        )
        async for event in stream:
            if event.type == "content_block_delta":
                yield event.delta.text

    async def _store(self, conversation: str, content: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write, conversation, content)

    def _write(self, conversation: str, content: str) -> None:
        self._database.execute("INSERT INTO messages VALUES (?, ?)", (conversation, content))


def main(model_url: str, directory: Path) -> None:
    """Serve until stopped."""
    host = LeastHost(model_url, directory)
    routes = [Route("/health", host.health), Route("/chat", host.chat, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=int(os.environ["PORT"]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
