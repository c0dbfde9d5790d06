"""The line to the database is cut amid a commit: what was stored is known, and is stored once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import pytest

from shared.store.postgres.database import Place
from shared.store.postgres.opening import open_shared_store
from shared.values import RunState
from tests.contract.store.making import T0, a_run, an_end, said

COMMIT: Final = b"COMMIT;"


class Line:
    """A way to the server on loopback that can be cut at the next commit, before it arrives or behind it."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self.cut: str | None = None
        self.cuts = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Give the address by which the database is reached over this line."""
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            place = self._server.netloc.rpartition(":")[0]
            yield urlunsplit(self._server._replace(netloc=f"{place}:{port}"))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_connection(self._server.hostname, self._server.port)
        back = asyncio.ensure_future(self._carry_back(answers, writer))
        while (sent := await reader.read(65536)) and not (self.cut and COMMIT in sent):
            server.write(sent)
        if sent:
            cut, self.cut = self.cut, None
            self.cuts += 1
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            if cut == "behind":
                server.write(sent)
                await answers.read(65536)
        for each in (server, writer):
            each.close()
        await asyncio.gather(back, return_exceptions=True)

    @staticmethod
    async def _carry_back(answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer := await answers.read(65536):
            writer.write(answer)
        writer.close()


@pytest.mark.parametrize("where", ["before", "behind"])
async def test_a_run_ends_once_whatever_becomes_of_the_answer(database: str, where: str) -> None:
    line = Line(database)
    async with line.open() as url:
        store = await open_shared_store(Place(url))
        try:
            await store.conversations.create("c", T0)
            lease = await store.runs.begin(a_run("r"))
            line.cut = where
            await store.runs.finish(lease, an_end(), [said("answer", "done", "assistant")], [], T0 + 1)
            assert line.cuts == 1
            run = await store.runs.find("run-r", None)
            assert run is not None
            assert run.state is RunState.SUCCESS
            page = await store.conversations.messages("c", limit=10, cursor=None)
            assert [each.text for each in page.items] == ["hello", "done"]
            days = await store.usage.by_day(limit=10, cursor=None)
            assert [day.runs for day in days.items] == [1]
        finally:
            await store.close()
