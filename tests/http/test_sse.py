"""The event stream as an ASGI response: frames, heartbeats, readers who are slow or go away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest
from starlette.types import Message, Receive

from host.http.runs import EventStreamResponse, frame
from host.runs.events import EventLog, follow, one_by_one, replayed
from shared.errors import NotFound
from shared.usage_values import Usage
from shared.values import Event, Run, RunState

SCOPE = {"type": "http", "method": "GET"}


async def still_there() -> Message:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


async def sent_by(
    response: EventStreamResponse, receive: Receive = still_there, path: str = "/chat"
) -> bytes:
    body = bytearray()

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))

    with anyio.fail_after(60):
        await response({**SCOPE, "path": path}, receive, send)
    return bytes(body)


def test_a_frame_has_an_id_an_event_and_one_line_of_data() -> None:
    told = frame(Event(7, "chunk", {"text": "a\nb"}))
    assert told == b'id: 7\nevent: chunk\ndata: {"text":"a\\nb"}\n\n'


async def test_a_silent_stream_sends_comments() -> None:
    silence = anyio.Event()
    beats = 0

    async def events() -> AsyncIterator[list[Event]]:
        await silence.wait()
        yield [Event(1, "done", {})]

    async def send(message: Message) -> None:
        nonlocal beats
        beats += message.get("body", b"").startswith(b":")
        if beats == 3:
            silence.set()

    with anyio.fail_after(60):
        await EventStreamResponse(events(), heartbeat_s=0.01)(dict(SCOPE), still_there, send)
    assert beats >= 3


async def test_who_asks_for_the_headers_alone_does_not_wait_for_the_events() -> None:
    async def send(message: Message) -> None:
        said.append(message)

    said: list[Message] = []
    with anyio.fail_after(60):
        await EventStreamResponse(never())({**SCOPE, "method": "HEAD"}, still_there, send)
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    assert not said[-1].get("more_body")


async def never() -> AsyncIterator[list[Event]]:
    await anyio.sleep_forever()
    yield []


async def test_a_reader_who_goes_away_ends_the_response_and_not_the_log() -> None:
    log = EventLog()
    log.emit("start", {})
    gone = anyio.Event()

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if b"event: start" in message.get("body", b""):
            gone.set()

    async def nothing_stored(after: int) -> list[Event]:
        return []

    with anyio.fail_after(60):
        await EventStreamResponse(follow(log, 0, nothing_stored))(dict(SCOPE), receive, send)
    assert log.emit("chunk", {"text": "x"}).seq == 2


async def test_a_late_reader_gets_old_events_from_the_store_and_new_ones_live() -> None:
    log = EventLog()
    stored: list[Event] = []
    for number in range(6000):
        log.emit("chunk", {"text": str(number)})
        if number % 100 == 99:
            events = log.unsaved()
            stored += events
            log.mark_saved(events)
    log.emit("done", {})
    log.close()

    async def read(after: int) -> list[Event]:
        return [event for event in stored if event.seq > after][:1000]

    assert log.after(0) is None
    seen = [event.seq async for event in one_by_one(follow(log, 0, read))]
    assert seen == list(range(1, 6002))


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_every_event_reaches_the_reader_in_order(count: int) -> None:
    async def events() -> AsyncIterator[list[Event]]:
        for number in range(count):
            yield [Event(number + 1, "chunk", {"n": number})]

    body = await sent_by(EventStreamResponse(events()))
    ids = [int(line[4:]) for line in body.split(b"\n") if line.startswith(b"id: ")]
    assert ids == list(range(1, count + 1))


@pytest.mark.parametrize("path", ["/chat/c/runs/r/events", "/v1/responses/resp-1"])
async def test_a_stream_of_what_goes_away_says_so_and_ends(path: str) -> None:
    async def events() -> AsyncIterator[list[Event]]:
        yield [Event(1, "chunk", {})]
        raise NotFound("It was deleted.")

    body = await sent_by(EventStreamResponse(events()), path=path)
    assert b"event: chunk" in body
    last = body.strip().split(b"\n\n")[-1]
    assert b"It was deleted." in last
    assert b"not_found" in last


async def test_stored_events_of_a_run_elsewhere_end_with_it() -> None:
    run = Run(
        id="run-1",
        conversation_id="c",
        state=RunState.RUNNING,
        fence=1,
        message_id="msg-1",
        created_at=0,
        finished_at=None,
        model="m",
        usage=Usage(),
        error=None,
        code=None,
        answer=None,
        root_run_id="run-1",
        previous_run_id=None,
        next_run_id=None,
        principal_id="operator",
        waits=False,
    )
    ended = replace(run, state=RunState.ERROR, answer={"status": "error"})

    async def nothing(_: int) -> list[Event]:
        return []

    async def look() -> Run:
        return ended

    with anyio.fail_after(60):
        told = [event async for event in one_by_one(replayed(run, 0, nothing, look))]
    assert [event.name for event in told] == ["done"]


def test_events_are_numbered_from_one() -> None:
    log = EventLog()
    assert [log.emit("x", {}).seq for _ in range(3)] == [1, 2, 3]
    assert log.last_seq == 3


def test_text_that_nobody_has_seen_yet_grows_in_one_event_and_seen_text_never_changes() -> None:
    log = EventLog()
    log.emit("start", {})
    for piece in ("a ", "b"):
        log.emit_text(piece)
    assert log.after(1) == [Event(2, "chunk", {"text": "a b"})]
    log.emit_text("c")
    log.emit_text("d")
    assert log.unsaved()[2:] == [Event(3, "chunk", {"text": "cd"})]
    log.emit_text("e")
    log.emit("tool_use", {})
    log.emit_text("f")
    assert [event.data.get("text") for event in log.after(2) or []] == ["cd", "e", None, "f"]


async def test_a_slow_reader_gets_no_comments_between_and_every_event() -> None:
    taken = anyio.Event()
    bodies: list[bytes] = []

    async def events() -> AsyncIterator[list[Event]]:
        yield [Event(1, "chunk", {})]
        yield [Event(2, "done", {})]

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))
        if b"id: 1" in bodies[-1]:
            await taken.wait()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            response = EventStreamResponse(events(), heartbeat_s=0.001)
            tasks.start_soon(response, dict(SCOPE), still_there, send)
            for _ in range(20):
                await anyio.sleep(0.002)
            before = list(bodies)
            taken.set()
    assert b"id: 1" in before[-1]
    assert b"id: 2" in b"".join(bodies)
