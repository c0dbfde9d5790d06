"""Receivers that are told from another process: a real one, which may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import pytest

from host.egress.receivers import Answer, Telling
from shared.children import Child
from tests.fakes.receiver import Answer as Said
from tests.fakes.receiver import receiving

BODY = b'{"type":"run.ended"}'


class Client:
    """Tells from another process, and waits for what it hears of that."""

    def __init__(self) -> None:
        make = partial(Telling, self._heard, self._lost)
        self.elsewhere = Child("host.egress.receivers", make, "1", "127.0.0.1")
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def post(self, url: str, name: str = "evt-1") -> Answer:
        link, number = await self.elsewhere.link(), len(self._asked)
        self._asked[number] = asyncio.get_running_loop().create_future()
        link.post([(number, url, {"webhook-id": name}, BODY)])
        return await self._asked[number]

    async def until_told(self, url: str, name: str = "evt-1") -> None:
        while True:
            with suppress(ConnectionError):
                assert (await self.post(url, name)).status == 200
                return

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        pid = self.elsewhere.pid
        assert pid is not None
        os.kill(pid, number)
        return pid

    def _heard(self, number: int, answer: Answer) -> None:
        self._asked[number].set_result(answer)

    def _lost(self) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionError("the process has ended"))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.elsewhere.aclose()


async def test_requests_are_made_side_by_side_and_each_has_its_answer(client: Client) -> None:
    with receiving() as receiver:
        receiver.answers = [Said(status) for status in (200, 410, 500)]
        answers = await asyncio.gather(*(client.post(f"{receiver.url}/{number}") for number in range(3)))
    assert sorted(each.status or 0 for each in answers) == [200, 410, 500]
    assert {each.path for each in receiver.received} == {"/0", "/1", "/2"}
    assert {(each.body, each.id) for each in receiver.received} == {(BODY, "evt-1")}


async def test_a_process_that_ended_is_begun_anew(client: Client) -> None:
    with receiving() as receiver:
        for _ in range(2):
            await client.until_told(receiver.url)
            client.kill()
        await client.until_told(receiver.url)


async def test_what_was_under_way_as_the_process_ended_is_no_answer(client: Client) -> None:
    arrived = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        arrived.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        asked = asyncio.ensure_future(client.post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
        await arrived.wait()
        client.kill()
        with pytest.raises(ConnectionError, match="has ended"):
            await asked


async def test_no_process_is_begun_before_there_is_something_to_tell(client: Client) -> None:
    assert client.elsewhere.pid is None


async def test_a_process_that_is_stuck_is_ended_and_the_next_one_tells(client: Client) -> None:
    with receiving() as receiver:
        assert (await client.post(receiver.url)).status == 200
        stuck = client.kill(signal.SIGSTOP)
        asked = asyncio.ensure_future(client.post(receiver.url, "evt-2"))
        await asyncio.sleep(0)
        client.elsewhere.kill()
        with pytest.raises(ConnectionError):
            await asked
        await client.until_told(receiver.url, "evt-3")
        assert client.elsewhere.pid != stuck
    assert [each.id for each in receiver.received] == ["evt-1", "evt-3"]
