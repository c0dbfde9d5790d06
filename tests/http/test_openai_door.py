"""The OpenAI-compatible door, by the official client and by what chat programs really send."""

from __future__ import annotations

import contextlib
import gzip
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from host.http.openai.answers import CompletionShape, ModelsShape, OpenAiErrorShape
from tests.examples import examples
from tests.fakes.documents import pdf, png
from tests.fakes.receiver import Answer, receiving
from tests.http.conftest import MakeHost, configure
from tests.json_schema import validator
from tests.running import TOKEN, HostProcess, ModelProcess, directive, new_host, plain_client, until

ASSISTANT = "picoclaw"


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def said(text: str) -> Any:
    return {"role": "assistant", "content": text}


def door(host: HostProcess, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host.url}/v1", api_key=TOKEN, http_client=plain_client(), **options)


@pytest.fixture
def gpt(host: HostProcess) -> Iterator[openai.OpenAI]:
    with door(host, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_gpt(host: HostProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.AsyncClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{host.url}/v1", api_key=TOKEN, max_retries=0, http_client=transport
    ) as client:
        yield client


def asked(model: ModelProcess) -> list[dict[str, Any]]:
    """The messages of the last request that the model got."""
    said = [one["body"]["messages"] for one in model.requests() if one["path"] == "/v1/messages"]
    return list(said[-1])


def test_an_answer_is_as_the_official_client_reads_it(gpt: openai.OpenAI) -> None:
    message = directive(text="hello there")
    answer = gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)])
    assert answer.choices[0].message.content == "hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.id.startswith("chatcmpl-run-")
    assert answer.model == ASSISTANT


def test_a_stream_carries_the_same_text_its_ending_and_the_usage(gpt: openai.OpenAI) -> None:
    message = directive(text="one two three", deltas=["one ", "two ", "three"])
    chunks = list(
        gpt.chat.completions.create(
            model=ASSISTANT,
            messages=[user(message)],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert "".join(filter(None, deltas)) == "one two three"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    plain = gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)], stream=True)
    assert {chunk.usage for chunk in plain} == {None}


async def test_the_asynchronous_client_is_served_too(async_gpt: openai.AsyncOpenAI) -> None:
    message = directive(text="async words")
    answer = await async_gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)])
    assert answer.choices[0].message.content == "async words"
    stream = await async_gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)], stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "async words"
    assert ASSISTANT in [model.id async for model in await async_gpt.models.list()]


def test_a_stream_ends_as_the_protocol_wants_and_begins_without_anything_else(client: httpx2.Client) -> None:
    body = {"model": ASSISTANT, "messages": [user("hi")], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_messages_said_on_the_way_are_paragraphs_of_the_answer(gpt: openai.OpenAI) -> None:
    say = {"name": "mcp__picoclaw__send_message", "input": {"text": "on my way"}}
    message = directive(steps=[{"tools": [say]}, {"text": "there"}])
    answer = gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)])
    assert answer.choices[0].message.content == "on my way\n\nthere"
    stream = gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "on my way\n\nthere"


def test_thinking_is_told_when_it_is_asked_for(gpt: openai.OpenAI) -> None:
    message = directive(text="so", thinking="let me see")
    answer = gpt.chat.completions.create(model=ASSISTANT, messages=[user(message)], reasoning_effort="high")
    extra = answer.choices[0].message.model_extra or {}
    assert extra["reasoning_content"] == "let me see"


# Which conversation


def test_the_same_user_goes_on_in_the_same_conversation(
    gpt: openai.OpenAI, client: httpx2.Client, model: ModelProcess
) -> None:
    create = gpt.chat.completions.with_raw_response.create
    first = create(model=ASSISTANT, messages=[user("my cat is called Miso")], user="alice@door")
    second = create(model=ASSISTANT, messages=[user("what is it called?")], user=" alice@door ")
    other = create(model=ASSISTANT, messages=[user("and mine?")], user="bob@door")
    ids = [answer.headers["x-conversation-id"] for answer in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
    stored = client.get(f"/chat/{ids[0]}/messages").json()["messages"]
    assert [item["content"] for item in stored if item["role"] == "user"] == [
        "my cat is called Miso",
        "what is it called?",
    ]
    assert {item["sender"] for item in stored if item["role"] == "user"} == {"alice@door"}
    assert "Miso" not in json.dumps(asked(model))


def test_a_header_picks_a_conversation_by_its_id_or_by_a_name(
    gpt: openai.OpenAI, client: httpx2.Client
) -> None:
    made = client.post("/chat", json={"message": "by the API"}).json()["conversation_id"]

    def at(**headers: str) -> str:
        raw = gpt.chat.completions.with_raw_response.create(
            model=ASSISTANT, messages=[user("go on")], extra_headers=headers
        )
        return str(raw.headers["x-conversation-id"])

    assert at(**{"X-Conversation-ID": made}) == made
    assert at(**{"X-Conversation-ID": "main"}) == "main"
    named = at(**{"X-OpenWebUI-Chat-Id": "8f1c2c1e-0000"})
    assert named == at(**{"X-Conversation-ID": "8f1c2c1e-0000"})
    with pytest.raises(openai.NotFoundError, match="conversation_id not found"):
        at(**{"X-Conversation-ID": "conv-none"})
    with pytest.raises(openai.BadRequestError, match="at most 200"):
        at(**{"X-Conversation-ID": "x" * 201})


def test_a_user_s_name_never_reaches_a_conversation_that_it_could_guess(gpt: openai.OpenAI) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model=ASSISTANT, messages=[user("let me in")], user="main"
    )
    assert raw.headers["x-conversation-id"] != "main"


def test_a_client_that_resends_everything_goes_on_in_its_conversation(
    gpt: openai.OpenAI, client: httpx2.Client
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("stateless: my dog is Rex")]
    ids = []
    for question in ("what is he called?", "and how old?"):
        raw = gpt.chat.completions.with_raw_response.create(model=ASSISTANT, messages=messages)
        ids.append(raw.headers["x-conversation-id"])
        messages += [said(str(raw.parse().choices[0].message.content)), user(question)]
    assert ids[0] == ids[1]
    stored = client.get(f"/chat/{ids[0]}/messages").json()["messages"]
    assert [item["content"] for item in stored if item["role"] == "user"] == [
        "stateless: my dog is Rex",
        "what is he called?",
    ]


def test_an_edited_or_regenerated_answer_branches_off_with_what_was_said_before(
    gpt: openai.OpenAI, model: ModelProcess, client: httpx2.Client
) -> None:
    create = gpt.chat.completions.with_raw_response.create
    first = create(model=ASSISTANT, messages=[user("branch: my bird is Kiwi")])
    answer = str(first.parse().choices[0].message.content)
    question = [user("branch: my bird is Kiwi"), said(answer), user("sing <b>")]
    second = create(model=ASSISTANT, messages=question)
    again = create(model=ASSISTANT, messages=question)
    ids = [raw.headers["x-conversation-id"] for raw in (first, second, again)]
    assert ids[0] == ids[1] != ids[2]
    told = json.dumps(asked(model))
    assert "<earlier_messages>" in told
    assert "my bird is Kiwi" in told
    shown = client.get(f"/chat/{ids[2]}/messages").json()["messages"]
    assert shown[0]["content"] == "sing <b>"


def test_two_conversations_that_read_alike_are_never_taken_for_each_other(gpt: openai.OpenAI) -> None:
    create = gpt.chat.completions.with_raw_response.create
    start = [user("alike: hello")]
    ids = {create(model=ASSISTANT, messages=start).headers["x-conversation-id"] for _ in range(2)}
    assert len(ids) == 2
    third = create(
        model=ASSISTANT, messages=[*start, said("echo: alike: hello"), user("what did I show you?")]
    )
    assert third.headers["x-conversation-id"] not in ids


def test_the_program_s_instructions_reach_the_model_once(gpt: openai.OpenAI, model: ModelProcess) -> None:
    create = gpt.chat.completions.create
    system: Any = {"role": "system", "content": "Speak like <a> pirate"}
    for text in ("ahoy", "ahoy again"):
        create(model=ASSISTANT, messages=[system, user(text)], user="pirate")
    told = json.dumps(asked(model))
    assert told.count("Speak like &lt;a&gt; pirate") == 1


def test_requests_for_a_new_name_at_once_make_one_conversation(host: HostProcess) -> None:
    def ask(number: int) -> str:
        with door(host, max_retries=8) as client:
            raw = client.chat.completions.with_raw_response.create(
                model=ASSISTANT, messages=[user(f"number {number}")], user="crowd"
            )
            return str(raw.headers["x-conversation-id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1


# What can go wrong


def test_a_wrong_key_and_an_unknown_model_are_errors_that_the_client_knows(
    host: HostProcess, gpt: openai.OpenAI
) -> None:
    with openai.OpenAI(base_url=f"{host.url}/v1", api_key="wrong", http_client=plain_client()) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as missing:
        gpt.chat.completions.create(model="gpt-4o", messages=[user("hi")])
    assert missing.value.code == "model_not_found"
    assert ASSISTANT in missing.value.message
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("some/other")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\x00"}]}, "messages.0.content"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    (
        {"messages": [{"role": "user", "content": [{"image_url": {"url": "https://a/b"}}]}]},
        "messages.0.content",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages.0.content"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"logprobs": True}, "logprobs"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True}}},
        "response_format.json_schema.schema",
    ),
    ({"messages": [{"role": "user", "content": [3]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, "tool_call_id"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
    ({"n": 2}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
    ({"stop": ""}, "stop.0"),
    ({"stop": [" "]}, "stop.0"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        "tools.0.function.parameters",
    ),
    ({"stream": "yes"}, "stream"),
    ({"user": "x" * 201}, "user"),
    ({"model": 4}, "model"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[json.dumps(fields)[:60] for fields, _ in BAD])
def test_bad_input_is_refused_naming_the_field_and_stores_nothing(
    client: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    before = client.get("/health").json()["database"]["conversations"]
    body = {"model": ASSISTANT, "messages": [user("hi")], **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    TypeAdapter(OpenAiErrorShape).validate_python(answer.json())
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"]["param"] == param
    assert client.get("/health").json()["database"]["conversations"] == before


def picture(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64encode(data).decode()}"}}


TEXT = {"type": "text", "text": "what is this?"}


@pytest.mark.parametrize(
    "part",
    [
        picture(b"")["image_url"] | {"type": "image_url"},
        picture(png(9, 9)[:40]),
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,***"}},
        {"type": "image_url"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "file", "file": "x"},
    ],
)
def test_what_can_not_be_taken_is_a_line_in_any_message_and_never_a_refusal(
    client: httpx2.Client, model: ModelProcess, part: dict[str, Any]
) -> None:
    for parts in ([part, TEXT], [part]):
        resent = [{"role": "user", "content": parts}, said("A cat."), user("thanks")]
        for messages in ([{"role": "user", "content": parts}], resent):
            answer = client.post("/v1/chat/completions", json={"model": ASSISTANT, "messages": messages})
            assert answer.status_code == 200, answer.text
            told = str(asked(model))
            assert "left out: " in told or "not shown: " in told or "[Attached: " in told


def test_a_picture_s_address_begins_in_any_case(client: httpx2.Client, model: ModelProcess) -> None:
    url = picture(png(9, 9))["image_url"]["url"].replace("data:image/png;base64", "DATA:Image/PNG;Base64")
    said = {"model": ASSISTANT, "messages": [by_address(url)]}
    assert client.post("/v1/chat/completions", json=said).status_code == 200
    assert "image" in [block["type"] for block in asked(model)[-1]["content"]]


@pytest.fixture(scope="module")
def fetching(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    allowed = {"PICOCLAW_FILES_PICTURE_HOSTS": "127.0.0.1"}
    process = new_host(tmp_path_factory.mktemp("fetching"), model.url, allowed)
    yield process.start()
    process.kill()


def by_address(url: Any) -> dict[str, Any]:
    return {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": url}}]}


def test_a_picture_is_fetched_from_a_host_that_is_named(fetching: HostProcess, model: ModelProcess) -> None:
    with receiving() as source, fetching.client() as client:
        source.answers += [Answer(body=png(9, 9)), Answer(body=png(8, 8))]
        body = {"model": ASSISTANT, "messages": [by_address(f"{source.url}/cat?size=9")]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert [block["type"] for block in asked(model)[0]["content"]] == ["text", "image"]
        parts = [{"type": "input_text", "text": "and?"}, {"type": "input_image", "image_url": source.url}]
        item = {"role": "user", "content": parts}
        answer = client.post("/v1/responses", json={"model": ASSISTANT, "input": [item]})
        assert answer.status_code == 200, answer.text
        assert [block["type"] for block in asked(model)[-1]["content"]] == ["text", "image"]
    assert [came.path for came in source.received] == ["/cat?size=9", "/"]
    assert "authorization" not in source.received[0].headers


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(404), "answered HTTP 404"),
        (Answer(302, {"Location": "/cat"}), "answered HTTP 302"),
        (Answer(body=b"<html>no</html>"), "leads to no picture"),
        (Answer(body=png(9, 9) + bytes(8 << 20)), "says too much"),
        (Answer(headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(9 << 20))), "says too much"),
        (Answer(headers={"Content-Encoding": "br"}, body=b"x"), "compressed"),
    ],
)
def test_what_is_no_picture_at_its_address_is_a_line(
    fetching: HostProcess, model: ModelProcess, answer: Answer, why: str
) -> None:
    with receiving() as source, fetching.client() as client:
        source.answers += [answer]
        body = {"model": ASSISTANT, "messages": [by_address(f"{source.url}/x")]}
        told = client.post("/v1/chat/completions", json=body)
        assert told.status_code == 200, told.text
        assert why in str(asked(model)), asked(model)
        assert len(source.received) == 1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://localhost/x", "not a public address"),
        ("http://localhost/x", "must begin with https://"),
        ("https://[::1]/x", "not a public address"),
        ("https://169.254.169.254/latest", "not a public address"),
        ("https://2130706433/x", "not a public address"),
        ("https://8.8.8.8/x", "does not name its host"),
        ("https://user:pass@127.0.0.1/x", "credentials"),
        ("http://127.0.0.1:22/x", "port 22"),
        ("https://", "must be an address"),
        ("ftp://127.0.0.1/x", "only data: addresses"),
        ("file:///etc/passwd", "only data: addresses"),
    ],
)
def test_an_address_that_may_not_be_fetched_is_a_line(
    fetching: HostProcess, model: ModelProcess, url: str, why: str
) -> None:
    with fetching.client() as client:
        body = {"model": ASSISTANT, "messages": [by_address(url)]}
        told = client.post("/v1/chat/completions", json=body)
        assert told.status_code == 200, told.text
        assert why in str(asked(model)), asked(model)


def test_a_picture_and_a_pdf_are_shown_and_found_again_when_the_history_is_sent_again(
    client: httpx2.Client, model: ModelProcess
) -> None:
    def post(messages: list[Any]) -> httpx2.Response:
        answer = client.post("/v1/chat/completions", json={"model": ASSISTANT, "messages": messages})
        assert answer.status_code == 200, answer.text
        return answer

    data = f"data:application/pdf;base64,{b64encode(pdf(['Alpha'])).decode()}"
    paper = {"filename": "p.pdf", "file_data": data}
    first = {"role": "user", "content": [TEXT, picture(png(9, 9)), {"type": "file", "file": paper}]}
    answer = post([first])
    blocks = asked(model)[0]["content"]
    assert [block["type"] for block in blocks] == ["text", "image", "text"]
    assert "what is this?" in blocks[0]["text"]
    assert "-p.pdf (application/pdf, " in blocks[0]["text"]
    assert "[page 1]\nAlpha" in blocks[2]["text"]
    history = [first, answer.json()["choices"][0]["message"], user("and now?")]
    again = post(history)
    assert again.headers["x-conversation-id"] == answer.headers["x-conversation-id"]
    assert asked(model)[0]["content"][1] == blocks[1]
    other = {"role": "user", "content": [TEXT, picture(png(8, 8)), {"type": "file", "file": paper}]}
    assert post([other, *history[1:]]).headers["x-conversation-id"] != answer.headers["x-conversation-id"]


def test_a_history_of_megabytes_is_taken_and_one_of_nine_is_not(client: httpx2.Client) -> None:
    def post(size: int) -> httpx2.Response:
        messages = [user("x" * size), said("yes"), user(directive(text="fine"))]
        body = {"model": ASSISTANT, "messages": messages, "user": f"megabytes-{size}"}
        return client.post("/v1/chat/completions", json=body)

    # That it's too much for the model's window is another matter, and told in another way.
    assert post(3 * 1024 * 1024).status_code != 413
    assert post(9 * 1024 * 1024).status_code == 413


def test_too_many_values_are_refused_before_they_are_made(client: httpx2.Client) -> None:
    head = b'{"model": "picoclaw", "messages": [{"role": "user", "content": "hi"}], "x": ['
    answer = client.post(
        "/v1/chat/completions",
        content=head + b"[]," * 2_500_000 + b"[]]}",
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"


@pytest.mark.parametrize(
    ("method", "path", "named"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("GET", "/models", "/v1/models"),
        ("POST", "/responses", "/v1/responses"),
        ("POST", "/embeddings", "/v1"),
        ("POST", "/v1/conversations", "conv-…"),
        ("POST", "/v1/completions", "/v1/chat/completions"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/v1/responses/compact", "use POST /v1/responses"),
        ("GET", "/v1", "/v1/chat/completions"),
    ],
)
def test_what_is_not_here_is_404_with_what_to_use(
    client: httpx2.Client, method: str, path: str, named: str
) -> None:
    answer = client.request(method, path, json={"model": ASSISTANT} if method == "POST" else None)
    assert answer.status_code == 404
    assert named in answer.text


def test_lengths_are_told_in_characters(client: httpx2.Client) -> None:
    body = {"model": ASSISTANT, "messages": [user("hi")], "user": "é" * 201}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.json()["error"]["message"] == "user: must have at most 200 characters"
    chat = client.post("/chat", json={"message": "hi", "sender": "é" * 201})
    assert chat.json()["error"] == "sender: must have at most 200 characters"


def test_the_session_end_marker_is_not_shown_however_it_is_split(gpt: openai.OpenAI) -> None:
    text = "Bye [[PICOCLAW_ now. [[PICOCLAW_SESSION_END]] [["
    for size in (1, 3, 7, 100):
        message = user(directive(deltas=[text[at : at + size] for at in range(0, len(text), size)]))
        whole = gpt.chat.completions.create(model=ASSISTANT, messages=[message])
        assert whole.choices[0].message.content == "Bye [[PICOCLAW_ now.  [["
        pieces = gpt.chat.completions.create(model=ASSISTANT, messages=[message], stream=True)
        shown = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert shown == "Bye [[PICOCLAW_ now.  [["


def test_every_error_below_v1_has_openai_s_shape(client: httpx2.Client, host: HostProcess) -> None:
    answers = [
        client.get("/v1/nothing"),
        client.get("/v1/chat/completions"),
        client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"}),
        client.post("/v1/chat/completions", content=b"x" * (8 * 1024 * 1024 + 1)),
    ]
    assert [answer.status_code for answer in answers] == [404, 405, 400, 413]
    with host.client(None) as stranger:
        answers.append(stranger.get("/v1/models"))
    for answer in answers:
        error = TypeAdapter(OpenAiErrorShape).validate_python(answer.json())["error"]
        assert error["message"]
        assert error["code"]
        assert answer.headers["x-request-id"]
    assert answers[-1].headers["www-authenticate"] == "Bearer"


def test_fields_that_mean_nothing_here_are_tolerated(client: httpx2.Client) -> None:
    body = {
        "model": ASSISTANT,
        "messages": [user("hi")],
        "temperature": 0.2,
        "top_p": 1,
        "max_tokens": 10,
        "presence_penalty": 0,
        "logit_bias": {},
        "stop": ["x"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "text"},
        "seed": 1,
        "function_call": "auto",
        "logprobs": False,
        "modalities": ["text"],
        "user": None,
        "stream": None,
        "stream_options": {"include_usage": True},
        "chat_id": "from Open WebUI",
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    without = ("temperature", "top_p", "presence_penalty", "seed", "chat_id", "stream_options")
    assert sorted(answer.json()["warnings"]) == sorted(f"{name} has no effect." for name in without)
    told = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    assert told.count("seed has no effect.") == 1


def test_earlier_tool_messages_are_passed_over(gpt: openai.OpenAI) -> None:
    messages: Any = [
        user("what time is it?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "t", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "thanks,"}, {"type": "text", "text": "friend"}],
        },
    ]
    answer = gpt.chat.completions.create(model=ASSISTANT, messages=messages)
    assert answer.choices[0].message.content == "echo: thanks,\nfriend"


def test_a_failed_run_is_an_error_that_the_client_does_not_send_again(
    host: HostProcess, client: httpx2.Client
) -> None:
    message = user(directive("failing once", status=400, message="no"))
    with door(host, max_retries=3) as patient:
        with pytest.raises(openai.InternalServerError) as failed:
            patient.chat.completions.create(model=ASSISTANT, messages=[message], user="failing")
        assert failed.value.code == "model_error"
        conversation = failed.value.response.headers["x-conversation-id"]
        stored = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert [item["role"] for item in stored] == ["user"]
        with pytest.raises(openai.APIError) as broken:
            list(patient.chat.completions.create(model=ASSISTANT, messages=[message], stream=True))
        assert broken.value.code == "model_error"


def test_a_busy_conversation_is_a_conflict(host: HostProcess, gpt: openai.OpenAI) -> None:
    stream = gpt.chat.completions.create(
        model=ASSISTANT, messages=[user(directive(hang=True))], user="busy", stream=True
    )
    next(iter(stream))
    with pytest.raises(openai.ConflictError) as busy:
        gpt.chat.completions.create(model=ASSISTANT, messages=[user("me too")], user="busy")
    assert busy.value.code == "conversation_busy"
    stream.close()


def test_closing_a_stream_stops_the_run(gpt: openai.OpenAI, client: httpx2.Client) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model=ASSISTANT, messages=[user(directive(hang=True))], stream=True
    )
    conversation, run = raw.headers["x-conversation-id"], raw.headers["x-run-id"]
    stream = raw.parse()
    next(iter(stream))
    stream.close()
    until(lambda: client.get(f"/chat/{conversation}/runs/{run}").json()["status"] == "cancelled")


def test_a_run_out_of_time_gives_what_it_had_as_cut_short(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_EXECUTION_MS": "4000"}).start()
    words = "so far so good " * 20
    message = user(directive(text=words, deltas=[words, "never said"], hang_after_deltas=1))
    with door(host, max_retries=0) as client:
        with contextlib.suppress(openai.APIError):
            # The first run may spend its time on loading the SDK.
            client.chat.completions.create(model=ASSISTANT, messages=[user("wake up")])
        answer = client.chat.completions.create(model=ASSISTANT, messages=[message])
        assert answer.choices[0].finish_reason == "length"
        assert str(answer.choices[0].message.content).startswith("so far so good")


def test_a_spent_budget_is_an_insufficient_quota(make_host: MakeHost) -> None:
    host = configure(make_host(), budgets={"run": {"tokens": 1}}).start()
    with door(host, max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as spent:
            client.chat.completions.create(model=ASSISTANT, messages=[user("hi")], user="poor")
        assert spent.value.code == "insufficient_quota"
        assert len(list(client.models.list())) >= 1


def test_the_models_are_the_assistant_and_those_of_the_list(make_host: MakeHost) -> None:
    listed = [{"model_name": "small", "model": "claude-small"}]
    host = configure(make_host(), model_list=listed).start()
    with door(host, max_retries=0) as client, host.client() as plain:
        assert [model.id for model in client.models.list()] == [ASSISTANT, "small"]
        assert client.models.retrieve("small").owned_by == "picoclaw"
        answer = client.chat.completions.create(model="small", messages=[user("hi")])
        assert answer.model == "small"
        TypeAdapter(ModelsShape).validate_python(plain.get("/v1/models").json())


def test_a_secret_that_the_model_repeats_never_leaves(gpt: openai.OpenAI) -> None:
    message = user(directive(text=f"it is {TOKEN}!", deltas=["it is ", TOKEN[:9], TOKEN[9:], "!"]))
    answer = gpt.chat.completions.create(model=ASSISTANT, messages=[message])
    assert TOKEN not in answer.model_dump_json()
    stream = gpt.chat.completions.create(model=ASSISTANT, messages=[message], stream=True)
    assert TOKEN not in "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_after_a_crash_the_conversation_goes_on(make_host: MakeHost) -> None:
    host = make_host().start()
    with door(host, max_retries=0) as client:
        create = client.chat.completions.with_raw_response.create
        before = create(model=ASSISTANT, messages=[user("before")], user="survivor")
        hanging = user(directive(hang=True))
        stream = client.chat.completions.create(
            model=ASSISTANT, messages=[hanging], user="survivor", stream=True
        )
        next(iter(stream))
        host.kill()
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            list(stream)
        host.start()
        after = create(model=ASSISTANT, messages=[user("after")], user="survivor")
    assert after.headers["x-conversation-id"] == before.headers["x-conversation-id"]
    assert after.parse().choices[0].message.content == "echo: after"


SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["model", "messages", "stream", "stream_options", "user", "n", "reasoning_effort"])


@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(st.dictionaries(FIELDS, SCRAPS, min_size=1))
def test_no_rubbish_is_more_than_a_bad_request(client: httpx2.Client, fields: dict[str, Any]) -> None:
    body = {"model": ASSISTANT, "messages": [{"role": "user", "content": ""}], **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code in (400, 404), answer.text
    TypeAdapter(OpenAiErrorShape).validate_python(answer.json())


def test_the_same_key_is_the_same_request(client: httpx2.Client) -> None:
    body = {"model": ASSISTANT, "messages": [user("only once, please")], "user": "keyed"}
    headers = {"Idempotency-Key": "door-1"}
    first, again = (client.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    assert first.json()["choices"] == again.json()["choices"]
    conversation = first.headers["x-conversation-id"]
    assert client.get(f"/chat/{conversation}").json()["message_count"] == 2
    streamed = client.post("/v1/chat/completions", json={**body, "user": "other"}, headers=headers)
    assert streamed.status_code == 409
    assert streamed.json()["error"]["code"] == "idempotency_mismatch"


def test_the_door_is_described_in_the_contract(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    answer = client.post("/v1/chat/completions", json={"model": ASSISTANT, "messages": [user("hi")]})
    TypeAdapter(CompletionShape).validate_python(answer.json())
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    answers = validator({**schema, "components": document["components"]})
    assert list(answers.iter_errors(answer.json())) == []
