"""The fake model itself: what it promises to the tests and benchmarks that rely on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import anthropic
import anyio
import httpx2
import pytest
from anthropic import AsyncAnthropic, BadRequestError

from tests.fakes.model_server import FakeModel, fake_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def server() -> AsyncIterator[FakeModel]:
    async with fake_model(minimum_cached_tokens=1) as fake:
        yield fake


@pytest.fixture
async def client(server: FakeModel) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(api_key="key", base_url=server.url, max_retries=0) as one:
        yield one


@pytest.fixture
async def http(server: FakeModel) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as one:
        yield one


def user(words: str) -> dict[str, Any]:
    return {"role": "user", "content": words}


async def text_of(client: AsyncAnthropic, *messages: Any, **more: Any) -> str:
    body: dict[str, Any] = {"model": "claude-test", "max_tokens": 100, "messages": list(messages), **more}
    with anyio.fail_after(60):
        async with client.messages.stream(**body) as stream:
            return "".join([text async for text in stream.text_stream])


async def test_without_a_script_it_echoes_the_persons_words_unescaped(client: AsyncAnthropic) -> None:
    wrapped = f'<message sender="Ann" time="2026-01-31T09:30:00.000Z">{escape("1 < 2 & 3")}</message>'
    blocks = [{"type": "text", "text": wrapped}, {"type": "text", "text": "a fact"}]

    assert await text_of(client, {"role": "user", "content": blocks}) == "echo: 1 < 2 & 3"
    assert await text_of(client, user("plain")) == "echo: plain"


async def test_a_whole_answer_and_a_streamed_one_say_the_same(client: AsyncAnthropic) -> None:
    whole = await client.messages.create(
        model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
    )

    assert whole.content[0].to_dict() == {"type": "text", "text": "echo: hi"}
    assert whole.stop_reason == "end_turn"


async def test_a_directive_survives_escaping_inside_a_message(client: AsyncAnthropic) -> None:
    directive = "please @@model " + json.dumps({"text": 'a "quoted" <b> & c'}) + " thanks"

    assert (
        await text_of(client, user(f'<message sender="x">{escape(directive)}</message>'))
        == 'a "quoted" <b> & c'
    )


async def test_steps_follow_the_assistants_turns_since_the_persons_words(client: AsyncAnthropic) -> None:
    steps = [{"tools": [{"name": "look", "id": "t1"}]}, {"text": "saw: $results"}]
    messages: list[Any] = [user("earlier"), {"role": "assistant", "content": "yes"}]
    messages.append(user(f"@@model {json.dumps({'steps': steps})}"))
    assert await text_of(client, *messages) == ""

    messages.append(
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]}
    )
    messages.append(
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a cat"}]}
    )
    assert await text_of(client, *messages) == "saw: a cat"

    messages += [{"role": "assistant", "content": "saw"}, user("and now")]
    assert await text_of(client, *messages) == "echo: and now"


async def test_the_queue_serves_requests_without_a_directive_in_turn(
    client: AsyncAnthropic, http: httpx2.AsyncClient
) -> None:
    await http.post("/_script", json=[{"status": 500, "times": 1, "text": "first"}, {"text": "second"}])

    with pytest.raises(anthropic.InternalServerError):
        await text_of(client, user("a"))
    said = [await text_of(client, user(words)) for words in ("a", '@@model {"text": "own"}', "b", "c")]
    assert said == ["first", "own", "second", "echo: c"]


async def test_the_same_directive_in_two_messages_fails_for_each_of_them(client: AsyncAnthropic) -> None:
    directive = escape('@@model {"status": 529, "times": 1, "text": "ok"}')
    for minute in (1, 2):
        message = user(f'<message sender="x" time="2026-01-31T09:0{minute}:00.000Z">{directive}</message>')
        with pytest.raises(anthropic.OverloadedError):
            await text_of(client, message)
        assert await text_of(client, message) == "ok"


async def test_requests_are_recorded_and_forgotten(client: AsyncAnthropic, http: httpx2.AsyncClient) -> None:
    await text_of(client, user("hi"))
    (seen,) = (await http.get("/_requests")).json()["requests"]
    await http.delete("/_requests")

    assert (seen["method"], seen["path"]) == ("POST", "/v1/messages")
    assert seen["headers"]["authorization"] == "Bearer key"
    assert seen["body"]["messages"] == [user("hi")]
    assert (await http.get("/_requests")).json()["requests"] == []


async def test_bad_requests_bad_directives_and_unknown_paths_get_the_apis_errors(
    client: AsyncAnthropic, http: httpx2.AsyncClient
) -> None:
    for words in (" ", "@@model {not json", "@@model [1]"):
        with pytest.raises(anthropic.BadRequestError):
            await text_of(client, user(words))
    missing = await http.get("/v1/unknown")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


async def test_tokens_are_counted(client: AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(
        model="m", messages=[{"role": "user", "content": "x" * 4_000}]
    )

    assert 1_000 <= counted.input_tokens < 1_050


def marked(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


async def usage(client: AsyncAnthropic, **body: Any) -> tuple[int, int]:
    made = await client.messages.create(model=body.pop("model", "m"), max_tokens=9, **body)
    return made.usage.cache_creation_input_tokens or 0, made.usage.cache_read_input_tokens or 0


async def test_a_prefix_is_read_up_to_the_longest_breakpoint_seen_before(client: AsyncAnthropic) -> None:
    one = {"role": "user", "content": [marked("one " * 100)]}
    answer = {"role": "assistant", "content": "yes " * 100}
    two = {"role": "user", "content": [marked("two " * 100)]}
    system = [marked("rules " * 100)]
    first = await usage(client, system=system, messages=[one])
    second = await usage(client, system=system, messages=[one, answer, two])
    again = await usage(client, system=system, messages=[one, answer, two])

    assert first[1] == 0
    assert 170 <= second[0] <= 230
    assert second[1] == first[0]
    assert again == (0, sum(second))


async def test_a_changed_prefix_another_model_or_no_breakpoint_reads_nothing(client: AsyncAnthropic) -> None:
    messages = [user("hello")]
    written, _ = await usage(client, system=[marked("rules " * 100)], messages=messages)

    assert written > 100
    assert await usage(client, system=[marked("Rules " * 100)], messages=messages) == (written, 0)
    assert await usage(client, system=[marked("rules " * 100)], messages=messages, model="n") == (written, 0)
    assert await usage(client, system="rules " * 100, messages=messages) == (0, 0)


async def test_a_breakpoint_finds_an_entry_at_most_twenty_blocks_before_it(client: AsyncAnthropic) -> None:
    start = "start " * 50

    def followed_by(blocks: int) -> list[dict[str, Any]]:
        plain = [{"type": "text", "text": text} for text in (start, *["more"] * (blocks - 1))]
        return [{"role": "user", "content": [*plain, marked(f"the last of {blocks}")]}]

    written, _ = await usage(client, messages=[{"role": "user", "content": [marked(start)]}])
    far = await usage(client, messages=followed_by(21))
    near = await usage(client, messages=followed_by(20))

    assert far[1] == 0
    assert near[1] == written


async def test_a_prefix_below_the_minimum_is_not_cached() -> None:
    async with fake_model() as fresh, AsyncAnthropic(api_key="k", base_url=fresh.url) as client:
        assert await usage(client, system=[marked("rules " * 100)], messages=[user("hi")]) == (0, 0)


async def test_a_fifth_breakpoint_is_refused(client: AsyncAnthropic) -> None:
    with pytest.raises(BadRequestError, match="maximum of 4"):
        await usage(client, messages=[{"role": "user", "content": [marked("x")] * 5}])


def test_as_a_program_it_says_where_it_listens_and_stops_on_sigterm() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.model_server", "--port", "0"], stdout=subprocess.PIPE, cwd=ROOT
    ) as program:
        assert program.stdout is not None
        place = json.loads(program.stdout.readline())
        answer = httpx2.get(f"{place['url']}/_requests", trust_env=False)
        program.send_signal(signal.SIGTERM)

        assert program.wait(60) == 0
    assert answer.json()["requests"] == []
    assert place["url"] == f"http://127.0.0.1:{place['port']}"
