"""The model port over the real SDK, a real socket and a server that can be told to fail."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anthropic import APIStatusError, AsyncStream
from hypothesis import given
from hypothesis import strategies as st

from host.models.accumulator import Accumulator
from host.models.anthropic_model import UNSENDABLE, AnthropicModel, make_client
from host.models.process import ModelConfig
from host.ports import Ask, Delta, ModelError, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared.clock import at, now_ms
from shared.errors import Misconfigured
from shared.jsons import dump_bytes
from tests.fakes.model_server import FakeModel, fake_model

KEY = "sk-ant-very-secret-0123456789"


@pytest.fixture
async def server() -> AsyncIterator[FakeModel]:
    async with fake_model(minimum_cached_tokens=1) as fake:
        yield fake


@pytest.fixture
async def model(server: FakeModel) -> AsyncIterator[AnthropicModel]:
    one = AnthropicModel(make_client(ModelConfig(api_key=KEY, base_url=server.url)))
    yield one
    await one.aclose()


def request(words: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"type": "text", "text": words}]}]
    return {"model": "claude-test", "max_tokens": 1000, "messages": messages, **more}


def directive(**step: Any) -> dict[str, Any]:
    return request(f"@@model {json.dumps(step)}")


async def ask(model: Ask | AnthropicModel, body: dict[str, Any]) -> tuple[Reply, list[Delta]]:
    deltas: list[Delta] = []

    def hear(delta: Delta) -> None:
        deltas.append(delta)

    with anyio.fail_after(60):
        reply = model.reply if isinstance(model, AnthropicModel) else model
        return await reply(body, hear), deltas


async def failure(model: AnthropicModel, body: dict[str, Any]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await ask(model, body)
    return caught.value


async def test_a_reply_comes_piece_by_piece_and_then_whole_with_its_whitespace_kept(
    model: AnthropicModel,
) -> None:
    reply, deltas = await ask(model, directive(deltas=[" one\n", "\n  two ", " "]))

    assert deltas == [TextDelta(" one\n"), TextDelta("\n  two "), TextDelta(" ")]
    assert reply.blocks == [{"type": "text", "text": " one\n\n  two  "}]
    assert (reply.text, reply.stop_reason, reply.model) == (" one\n\n  two  ", "end_turn", "claude-test")
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens > 0


async def test_blocks_of_a_reply_are_accepted_as_the_assistants_next_message(
    model: AnthropicModel, server: FakeModel
) -> None:
    tools = [{"name": "exec", "input": {"command": "echo ß 'a' \"b\""}}, {"name": "list_tasks", "input": {}}]
    step = {"steps": [{"thinking": "hm", "text": "I look.", "tools": tools}, {"text": "seen"}]}
    first = directive(**step)
    reply, deltas = await ask(model, first)

    assert [block["type"] for block in reply.blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert reply.blocks[0] == {"type": "thinking", "thinking": "hm", "signature": "signed-by-the-fake"}
    assert [(use["name"], use["input"]) for use in reply.tool_uses] == [
        (t["name"], t["input"]) for t in tools
    ]
    assert reply.stop_reason == "tool_use"
    assert ThinkingDelta("hm") in deltas
    assert [delta.name for delta in deltas if isinstance(delta, ToolUseStart)] == ["exec", "list_tasks"]

    results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "ok"} for use in reply.tool_uses]
    answered = [{"role": "assistant", "content": reply.blocks}, {"role": "user", "content": results}]
    last, _ = await ask(model, {**first, "messages": [*first["messages"], *answered]})

    assert last.text == "seen"
    assert server.requests[-1].body["messages"][1]["content"] == reply.blocks


async def test_tool_input_that_is_no_json_object_is_kept_apart_and_the_block_stays_valid(
    model: AnthropicModel,
) -> None:
    tools = [
        {"name": "a", "id": "t1", "input_json": '{"command": "ls'},
        {"name": "b", "id": "t2", "input_json": "[1]"},
        {"name": "c", "id": "t3", "input": {"fine": True}},
    ]
    reply, _ = await ask(model, directive(tools=tools))

    assert [use["input"] for use in reply.tool_uses] == [{}, {}, {"fine": True}]
    assert reply.malformed == {"t1": '{"command": "ls', "t2": "[1]"}


async def test_a_blank_text_block_is_neither_shown_nor_kept(model: AnthropicModel) -> None:
    reply, deltas = await ask(model, directive(deltas=[" ", "\n\n"], tools=[{"name": "a"}]))

    assert [block["type"] for block in reply.blocks] == ["tool_use"]
    assert [type(delta) for delta in deltas] == [ToolUseStart]


async def test_whitespace_before_the_first_word_is_held_and_then_shown_with_it(model: AnthropicModel) -> None:
    reply, deltas = await ask(model, directive(deltas=["\n", " ", "word"]))

    assert deltas == [TextDelta("\n word")]
    assert reply.text == "\n word"


async def test_usage_tells_what_the_cache_gave(model: AnthropicModel) -> None:
    system = [{"type": "text", "text": "rules " * 100, "cache_control": {"type": "ephemeral"}}]
    first, _ = await ask(model, request("one", system=system))
    second, _ = await ask(model, request("two", system=system))

    assert first.usage.cache_creation_input_tokens > 100
    assert first.usage.cache_read_input_tokens == 0
    assert second.usage.cache_read_input_tokens == first.usage.cache_creation_input_tokens
    assert second.usage.cache_creation_input_tokens == 0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_status_that_may_pass_is_retryable(model: AnthropicModel, status: int) -> None:
    error = await failure(model, directive(status=status))

    assert (error.retryable, error.status) == (True, status)


@pytest.mark.parametrize("status", [302, 400, 401, 402, 403, 404, 413, 422])
async def test_a_status_that_stays_is_not_retryable(model: AnthropicModel, status: int) -> None:
    error = await failure(model, directive(status=status))

    assert (error.retryable, error.status) == (False, status)


@pytest.mark.parametrize(("word", "status", "retryable"), [("false", 429, False), ("true", 400, True)])
async def test_the_apis_own_word_on_retrying_counts_more_than_the_status(
    model: AnthropicModel, word: str, status: int, retryable: bool
) -> None:
    error = await failure(model, directive(status=status, headers={"x-should-retry": word}))

    assert error.retryable is retryable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
async def test_the_time_to_wait_is_taken_from_the_answer(
    model: AnthropicModel, headers: dict[str, str], seconds: float | None
) -> None:
    error = await failure(model, directive(status=429, headers=headers))

    assert error.retry_after_s == seconds


@pytest.fixture
def in_kolkata() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]
)
async def test_the_time_to_wait_may_be_a_date_in_utc_wherever_the_host_is(
    model: AnthropicModel, in_kolkata: None, form: str
) -> None:
    date = at(now_ms() + 60_000).strftime(form)
    error = await failure(model, directive(status=503, retry_after=date))

    assert error.retry_after_s is not None
    assert 50 < error.retry_after_s <= 60


async def test_a_failure_says_nothing_that_the_api_or_the_settings_said(
    model: AnthropicModel, server: FakeModel
) -> None:
    leaky = {"status": 401, "message": f"key {KEY} is bad", "error_type": f"evil {KEY}"}
    said = [
        await failure(model, directive(**leaky)),
        await failure(model, directive(error_after_deltas=0, **leaky)),
    ]

    assert str(said[0]) == "The model API refused the credential (401)."
    for error in said:
        assert KEY not in repr(error)
        assert server.url not in str(error)


async def test_the_configuration_does_not_show_its_credentials() -> None:
    assert KEY not in repr(ModelConfig(api_key=KEY, auth_token=KEY))


async def test_a_request_is_sent_once_even_when_it_fails(model: AnthropicModel, server: FakeModel) -> None:
    await failure(model, directive(status=529))

    assert len(server.requests) == 1


async def test_a_failure_that_passes_leaves_the_same_request_to_succeed(model: AnthropicModel) -> None:
    body = directive(status=529, times=2, text="back again")

    assert (await failure(model, body)).status == 529
    assert (await failure(model, body)).status == 529
    reply, _ = await ask(model, body)
    assert reply.text == "back again"


async def test_a_server_that_is_not_there_is_retryable() -> None:
    async with fake_model() as gone:
        url = gone.url
    model = AnthropicModel(make_client(ModelConfig(api_key=KEY, base_url=url)))
    error = await failure(model, request())
    await model.aclose()

    assert (error.retryable, error.status) == (True, None)
    assert str(error) == "The model API could not be reached."


async def test_a_key_that_no_request_can_carry_is_told_as_such(server: FakeModel) -> None:
    model = AnthropicModel(make_client(ModelConfig(api_key=f"{KEY}\n{KEY}", base_url=server.url)))
    error = await failure(model, request())
    await model.aclose()

    assert not error.retryable
    assert str(error) == UNSENDABLE


@pytest.mark.parametrize("cut", ["drop_after_deltas", "truncate_after_deltas"])
@pytest.mark.parametrize("after", [0, 2])
async def test_an_answer_that_breaks_off_or_ends_early_is_a_retryable_failure(
    model: AnthropicModel, cut: str, after: int
) -> None:
    error = await failure(model, directive(deltas=["a", "b", "c"], **{cut: after}))

    assert (error.retryable, error.status) == (True, None)


async def test_pieces_before_the_break_have_been_heard(model: AnthropicModel) -> None:
    heard: list[Delta] = []

    def hear(delta: Delta) -> None:
        heard.append(delta)

    with pytest.raises(ModelError), anyio.fail_after(60):
        await model.reply(directive(deltas=["a", "b", "c"], drop_after_deltas=2), hear)
    assert heard == [TextDelta("a"), TextDelta("b")]


@pytest.mark.parametrize(
    ("kind", "status", "retryable"),
    [
        ("overloaded_error", 529, True),
        ("rate_limit_error", 429, True),
        ("api_error", 500, True),
        ("a_new_error", 500, True),
        ("invalid_request_error", 400, False),
    ],
)
async def test_an_error_inside_the_stream_stands_for_a_status(
    model: AnthropicModel, kind: str, status: int, retryable: bool
) -> None:
    error = await failure(model, directive(deltas=["a", "b"], error_after_deltas=1, error_type=kind))

    assert (error.status, error.retryable) == (status, retryable)


@pytest.mark.parametrize("step", [{"hang": True}, {"deltas": ["a", "b"], "hang_after_deltas": 1}])
async def test_silence_longer_than_the_timeout_is_a_retryable_failure(
    server: FakeModel, step: dict[str, Any]
) -> None:
    model = AnthropicModel(
        make_client(ModelConfig(api_key=KEY, base_url=server.url, timeout_s=0.1)), silence_s=0.1
    )
    error = await failure(model, directive(**step))
    await model.aclose()

    assert error.retryable


async def test_a_cancelled_request_gives_its_connection_up(model: AnthropicModel, server: FakeModel) -> None:
    started = anyio.Event()

    def hear(delta: Delta) -> None:
        started.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.reply, directive(deltas=["a", "b"], hang_after_deltas=1), hear)
            await started.wait()
            tasks.cancel_scope.cancel()
        await server.idle()

    reply, _ = await ask(model, request("still there?"))
    assert reply.text == "echo: still there?"


async def test_what_the_listener_raises_passes_through_as_it_is(model: AnthropicModel) -> None:
    def hear(delta: Delta) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await model.reply(directive(deltas=["a", "b"]), hear)


async def test_one_connection_serves_reply_after_reply(model: AnthropicModel, server: FakeModel) -> None:
    for _ in range(5):
        await ask(model, request())

    assert len(server.connections) == 1


async def test_each_request_is_the_one_that_the_sdk_itself_would_send(server: FakeModel) -> None:
    for config in (
        ModelConfig(api_key=KEY, base_url=server.url),
        ModelConfig(auth_token=KEY, base_url=f"{server.url}/?version=1", timeout_s=7.5),
    ):
        client = make_client(config)
        model = AnthropicModel(client)
        for _ in range(2):
            with suppress(ModelError):  # of a path with a query the fake knows nothing
                await ask(model, request())
        with suppress(APIStatusError):
            content = dump_bytes({**request(), "stream": True})
            async with await client.post(
                "/v1/messages", cast_to=object, content=content, stream=True, stream_cls=AsyncStream[object]
            ) as stream:
                await anext(stream)
        await model.aclose()
        sent = [(one.method, one.path, one.headers, one.raw) for one in server.requests]
        assert len(sent) == 3
        assert all(one == sent[0] for one in sent)
        server.clear()


async def test_nothing_is_taken_from_the_environment(
    server: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_WEBHOOK_SIGNING_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer from-the-environment")
    for config in (
        ModelConfig(api_key=KEY, base_url=server.url),
        ModelConfig(auth_token=KEY, base_url=server.url),
        ModelConfig(base_url=server.url),
    ):
        model = AnthropicModel(make_client(config))
        await ask(model, request())
        await model.aclose()

    assert "from-the-environment" not in json.dumps([one.headers for one in server.requests])
    assert str(make_client(ModelConfig(api_key=KEY)).base_url) == "https://api.anthropic.com"


async def test_a_key_goes_to_a_compatible_server_in_both_headers_and_a_token_in_one(
    server: FakeModel,
) -> None:
    for config in (
        ModelConfig(api_key=KEY, base_url=server.url),
        ModelConfig(auth_token="token", base_url=server.url),
    ):
        model = AnthropicModel(make_client(config))
        await ask(model, request())
        await model.aclose()
    key, token = (one.headers for one in server.requests)

    assert (key["authorization"], key["x-api-key"]) == (f"Bearer {KEY}", KEY)
    assert (token["authorization"], token.get("x-api-key")) == ("Bearer token", None)


def test_the_api_without_a_credential_is_a_matter_for_the_operator() -> None:
    with pytest.raises(Misconfigured, match="ANTHROPIC_API_KEY"):
        make_client(ModelConfig())


events: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["message_start", "content_block_start", "content_block_delta", "message_delta"]
        )
    },
    optional={
        "index": st.integers(0, 2),
        "message": st.none() | st.fixed_dictionaries({"model": st.text(), "usage": st.none() | st.just({})}),
        "content_block": st.sampled_from(
            [None, {}, {"type": "text"}, {"type": "tool_use", "id": "t", "name": "n"}, {"type": "new_thing"}]
        ),
        "delta": st.sampled_from(
            [
                None,
                {},
                {"type": "text_delta"},
                {"type": "text_delta", "text": "a"},
                {"type": "text_delta", "text": 3},
                {"type": "input_json_delta", "partial_json": 3},
                {"type": "new_delta"},
            ]
        ),
    },
)


@given(st.lists(events | st.none() | st.integers() | st.text()))
def test_events_of_any_shape_end_as_a_reply_or_as_a_model_error(stream: list[Any]) -> None:
    answer = Accumulator()
    with suppress(ModelError):
        for event in stream:
            answer.feed(event)
        answer.feed({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
        answer.feed({"type": "message_stop"})
        assert answer.reply().stop_reason == "end_turn"
