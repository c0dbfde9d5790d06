"""Answers of servers that speak the Messages API in their own way, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from host.models import anthropic_model
from host.models.anthropic_model import AnthropicModel, make_client
from host.models.process import ModelConfig
from host.ports import Reply, TextDelta
from tests.fakes.model_server import FakeModel, fake_model
from tests.models.test_models import ask, failure, request

Model = AnthropicModel
SSE, JSON = "text/event-stream", "application/json"
TEXT = {"type": "text", "text": "done"}
CALL = {"type": "tool_use", "id": "call_0", "name": "exec", "input": {"command": "true"}}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[FakeModel]:
    async with fake_model() as fake:
        yield fake


@pytest.fixture(scope="module")
async def model(server: FakeModel) -> AsyncIterator[AnthropicModel]:
    one = AnthropicModel(make_client(ModelConfig(api_key="key", base_url=server.url)))
    yield one
    await one.aclose()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def stream(*events: dict[str, Any], named: bool = True, end: str = "") -> str:
    lines = [f"event: {event['type']}\n" if named else "" for event in events]
    return (
        "".join(f"{line}data: {json.dumps(event)}\n\n" for line, event in zip(lines, events, strict=True))
        + end
    )


def events(*blocks: dict[str, Any], indexes: list[Any] | None = None, **message: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = [{"type": "message_start", "message": {"role": "assistant", **message}}]
    for index, block in zip(indexes or range(len(blocks)), blocks, strict=True):
        told += [
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_stop", "index": index},
        ]
    stop = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
    return [*told, {"type": "message_delta", "delta": {"stop_reason": stop}}, {"type": "message_stop"}]


async def reply_to(model: Model, server: FakeModel, body: str, kind: str = SSE) -> Reply:
    server.queue({"raw": body, "content_type": kind})
    return (await ask(model, request()))[0]


@pytest.mark.parametrize("end", ["", "data: [DONE]\n\n"])
async def test_events_without_an_event_line_are_read(model: Model, server: FakeModel, end: str) -> None:
    reply = await reply_to(model, server, stream(*events(TEXT), named=False, end=end))
    assert (reply.text, reply.model, reply.stop_reason) == ("done", "", "end_turn")


@pytest.mark.parametrize("kind", ["", "text/plain; charset=utf-8", "application/octet-stream"])
async def test_a_stream_of_another_content_type_is_read(model: Model, server: FakeModel, kind: str) -> None:
    assert (await reply_to(model, server, stream(*events(TEXT)), kind)).text == "done"


@pytest.mark.parametrize("reason", [7, ["end_turn"], {"type": "end_turn"}, True])
async def test_a_reason_to_stop_that_is_no_text_is_none(model: Model, server: FakeModel, reason: Any) -> None:
    told = events(TEXT)
    told[-2]["delta"]["stop_reason"] = reason
    reply = await reply_to(model, server, stream(*told))
    assert (reply.text, reply.stop_reason) == ("done", "end_turn")


@pytest.mark.parametrize("indexes", [[0, 0], [1, 1], [None, None]])
async def test_two_blocks_of_one_index_are_both_kept(
    model: Model, server: FakeModel, indexes: list[Any]
) -> None:
    reply = await reply_to(model, server, stream(*events(TEXT, CALL, indexes=indexes)))
    assert reply.blocks == [TEXT, CALL]


async def test_pieces_go_to_the_block_of_their_kind_where_two_share_an_index(
    model: Model, server: FakeModel
) -> None:
    head, *_ = events()
    text = {"type": "text_delta", "text": "done"}
    arguments = {"type": "input_json_delta", "partial_json": '{"command":"true"}'}
    body = stream(
        head,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_start", "index": 0, "content_block": {**CALL, "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": text},
        {"type": "content_block_delta", "index": 0, "delta": arguments},
        *events()[1:],
    )
    reply = await reply_to(model, server, body)
    assert reply.blocks == [TEXT, CALL]


async def test_text_that_no_block_was_begun_for_is_kept(model: Model, server: FakeModel) -> None:
    head, *end = events()
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "done"}}
    assert (await reply_to(model, server, stream(head, delta, *end))).text == "done"


@pytest.mark.parametrize("name", ["id", None])
async def test_a_call_without_an_id_gets_one(model: Model, server: FakeModel, name: str | None) -> None:
    call = {**CALL, "id": None} if name else {key: value for key, value in CALL.items() if key != "id"}
    reply = await reply_to(model, server, stream(*events(call, call)))
    first, second = (block["id"] for block in reply.blocks)
    assert first.startswith("toolu_")
    assert first != second


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        ({"path": "a"}, []),
        ('{"path": "a"}', []),
        ({"path": "a"}, [""]),
        ({}, [{"path": "a"}]),
        (None, ['{"path": ', '"a"}']),
    ],
)
async def test_an_input_may_come_whole_as_an_object_or_as_its_text(
    model: Model, server: FakeModel, given: Any, pieces: list[Any]
) -> None:
    start, begin, *end = events({**CALL, "input": given})
    deltas = [
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": piece},
        }
        for piece in pieces
    ]
    reply = await reply_to(model, server, stream(start, begin, *deltas, *end))
    assert (reply.blocks[0]["input"], reply.malformed) == ({"path": "a"}, {})


@pytest.mark.parametrize("given", [[1], "no JSON", "[1]", 7])
async def test_an_input_that_is_no_object_is_malformed(model: Model, server: FakeModel, given: Any) -> None:
    reply = await reply_to(model, server, stream(*events({**CALL, "input": given})))
    assert (reply.blocks[0]["input"], list(reply.malformed)) == ({}, [CALL["id"]])


async def test_a_call_without_an_input_has_an_empty_one(model: Model, server: FakeModel) -> None:
    call = {key: value for key, value in CALL.items() if key != "input"}
    assert (await reply_to(model, server, stream(*events(call)))).blocks[0]["input"] == {}


async def test_what_an_event_leaves_out_is_as_if_it_were_null(model: Model, server: FakeModel) -> None:
    _, begin, *end = events({**TEXT, "text": None})
    nothing = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": None}}
    words = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
    odd = stream({"type": "message_start"}, begin, nothing, words, {"type": "message_delta"}, *end)
    assert (await reply_to(model, server, odd)).text == "hi"


@pytest.mark.parametrize("ending", ["hang", "cut", "chunks"])
async def test_a_reason_that_does_not_end_is_taken_as_far_as_it_came(
    monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(anthropic_model, "_REASON_S", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        size = b"transfer-encoding: chunked" if ending == "chunks" else b"content-length: 500"
        reason = b"6\r\nno way\r\n" if ending == "chunks" else b"no way"
        writer.write(b"HTTP/1.1 422 No\r\ncontent-type: text/plain\r\n" + size + b"\r\n\r\n" + reason)
        if ending != "cut":
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        one = AnthropicModel(make_client(ModelConfig(api_key="key", base_url=url)))
        error = await failure(one, request())
        await one.aclose()
    assert (error.status, error.said) == (422, "no way")


@pytest.mark.parametrize("left_out", ["message_delta", "message_stop"])
async def test_one_of_the_two_events_that_end_a_reply_is_enough(
    model: Model, server: FakeModel, left_out: str
) -> None:
    told = [event for event in events(CALL) if event["type"] != left_out]
    reply = await reply_to(model, server, stream(*told))
    assert (reply.blocks, reply.stop_reason) == ([CALL], "tool_use")


async def test_a_whole_message_instead_of_a_stream_is_read(model: Model, server: FakeModel) -> None:
    usage = {"input_tokens": 7, "output_tokens": 3}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    message = {"content": [thinking, TEXT, CALL], "stop_reason": "tool_use", "model": "m", "usage": usage}
    server.queue({"raw": json.dumps(message), "content_type": JSON})
    reply, deltas = await ask(model, request())
    assert (reply.blocks, reply.model) == ([thinking, TEXT, CALL], "m")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (7, 3)
    assert TextDelta("done") in deltas


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        ("<html>hello</html>", "text/html; charset=utf-8", "text/html"),
        ('{"choices": []}', JSON, "application/json without content blocks"),
        ("[]", JSON, "application/json without content blocks"),
        (
            'data: {"object": "chat.completion.chunk", "choices": []}\n\n',
            SSE,
            "no answer of the",
        ),
        ('data: ["x"]\n\n', SSE, "no answer of the Messages API"),
    ],
)
async def test_what_is_no_messages_answer_is_named_at_once(
    model: Model, server: FakeModel, body: str, kind: str, named: str
) -> None:
    server.queue({"raw": body, "content_type": kind})
    error = await failure(model, request())
    assert named in error.message
    assert not error.retryable


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (
            'data: {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}\n\n',
            SSE,
        ),
        ('data: {"error": {"message": "busy", "code": 529}}\n\n', SSE),
        ('{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}', JSON),
        ('{"error": {"message": "busy", "code": 529}}', JSON),
    ],
)
async def test_an_error_behind_a_200_is_an_error(
    model: Model, server: FakeModel, body: str, kind: str
) -> None:
    server.queue({"raw": body, "content_type": kind})
    error = await failure(model, request())
    assert (error.status, error.retryable, error.said) == (529, True, "busy")


@pytest.mark.parametrize("body", ["data: {\n\n", "", "<p>"])
async def test_a_stream_that_breaks_off_before_its_first_event_may_be_asked_again(
    model: Model, server: FakeModel, body: str
) -> None:
    server.queue({"raw": body})
    assert (await failure(model, request())).retryable


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"error": {"message": "bad\n model", "type": "BadRequestError"}},
            "bad model",
        ),
        ({"error": "no such model"}, "no such model"),
        ({"detail": [{"loc": ["body"], "msg": "wrong"}]}, '[{"loc": ["body"], "msg": "wrong"}]'),
        ({"message": "x" * 900}, "x" * 500),
        ({"odd": 1}, '{"odd": 1}'),
        ([{"error": {"message": "no such region", "status": "INVALID_ARGUMENT"}}], "no such region"),
    ],
)
async def test_the_reason_is_kept_in_one_line(model: Model, server: FakeModel, body: Any, said: str) -> None:
    server.queue({"status": 400, "body": body})
    error = await failure(model, request())
    assert error.said == said
    assert error.sentence.startswith("The model API refused the request (400")
    assert error.sentence.endswith(f": {said}")
