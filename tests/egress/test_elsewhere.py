"""Receivers that are told from another process: a real one, which may be killed at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from host.egress import elsewhere
from host.egress.elsewhere import ReceiversElsewhere
from host.egress.receivers import Answer
from tests.fakes.receiver import Answer as Said
from tests.fakes.receiver import Receiver, receiving

BODY = b'{"type":"run.ended"}'


@pytest.fixture
async def client() -> AsyncIterator[ReceiversElsewhere]:
    client = ReceiversElsewhere(frozenset({"127.0.0.1"}), "1")
    yield client
    await client.aclose()


def killed(client: ReceiversElsewhere) -> None:
    assert client._process is not None
    os.kill(client._process.pid, signal.SIGKILL)


async def test_requests_are_made_side_by_side_and_each_has_its_answer(client: ReceiversElsewhere) -> None:
    with receiving() as receiver:
        receiver.answers = [Said(status) for status in (200, 410, 500)]
        answers = await asyncio.gather(
            *(client.post(f"{receiver.url}/{number}", BODY, {"webhook-id": "evt-1"}) for number in range(3))
        )
    assert sorted(each.status or 0 for each in answers) == [200, 410, 500]
    assert {each.path for each in receiver.received} == {"/0", "/1", "/2"}
    assert {(each.body, each.id) for each in receiver.received} == {(BODY, "evt-1")}


async def test_a_process_that_ended_is_begun_anew(client: ReceiversElsewhere) -> None:
    async def told(receiver: Receiver) -> Answer:
        while True:
            with suppress(ConnectionError):
                return await client.post(receiver.url, BODY, {"webhook-id": "evt-1"})

    with receiving() as receiver:
        for _ in range(2):
            assert (await told(receiver)).status == 200
            killed(client)
        assert (await told(receiver)).status == 200


async def test_what_was_under_way_as_the_process_ended_is_no_answer(client: ReceiversElsewhere) -> None:
    arrived = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        arrived.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        asked = asyncio.ensure_future(client.post(url, BODY, {"webhook-id": "evt-1"}))
        await arrived.wait()
        killed(client)
        with pytest.raises(ConnectionError, match="has ended"):
            await asked


async def test_no_process_is_begun_before_there_is_something_to_tell(client: ReceiversElsewhere) -> None:
    assert client._process is None


async def test_a_process_that_is_stuck_is_ended_and_the_next_one_tells(
    client: ReceiversElsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        assert (await client.post(receiver.url, BODY, {"webhook-id": "evt-1"})).status == 200
        assert client._process is not None
        os.kill(client._process.pid, signal.SIGSTOP)
        with monkeypatch.context() as sooner:
            sooner.setattr(elsewhere, "STUCK_S", 0.1)
            with pytest.raises(TimeoutError):
                await client.post(receiver.url, BODY, {"webhook-id": "evt-2"})
        assert await client._process.wait() == -signal.SIGKILL
        while True:
            with suppress(ConnectionError):
                assert (await client.post(receiver.url, BODY, {"webhook-id": "evt-3"})).status == 200
                break
    assert [each.id for each in receiver.received] == ["evt-1", "evt-3"]
