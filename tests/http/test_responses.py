"""/v1/responses: what goes on where, what is kept and what isn't, by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.http.conftest import MakeHost, configure
from tests.running import TOKEN, HostProcess, ModelProcess, directive, until

LOOKUP: Any = {
    "type": "function",
    "name": "lookup",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}
CALL = {"name": "client__lookup", "input": {"q": "x"}}
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
GATED = {"name": "append_file", "input": {"path": "gated.txt", "content": "x"}}


@pytest.fixture
def gpt(host: HostProcess) -> Iterator[openai.OpenAI]:
    with door(host) as client:
        yield client


def door(host: HostProcess, key: str = TOKEN) -> openai.OpenAI:
    transport = httpx2.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{host.url}/v1", api_key=key, max_retries=0, http_client=transport)


def say(gpt: openai.OpenAI, words: Any, **more: Any) -> Any:
    return gpt.responses.create(model="picoclaw", input=words, **more)


def home(response: Any) -> str:
    return str(response.conversation.id)


def asked(model: ModelProcess, *, role: str = "") -> list[str]:
    """The texts of the messages (of one role) that the model got last."""
    messages = model.requests()[-1]["body"]["messages"]
    of = [message for message in messages if role in ("", message["role"])]
    return [block.get("text", "") for message in of for block in message["content"]]


def output(call_id: str, text: str = "42") -> list[Any]:
    return [{"type": "function_call_output", "call_id": call_id, "output": text}]


def test_a_response_goes_on_and_an_older_one_forks(gpt: openai.OpenAI, model: ModelProcess) -> None:
    first = say(gpt, "one")
    second = say(gpt, "two", previous_response_id=first.id)
    assert (home(second), second.previous_response_id) == (home(first), first.id)
    forked = say(gpt, "three", previous_response_id=first.id)
    assert home(forked) != home(first)
    assert forked.metadata == {"forked": "true"}
    said = " ".join(asked(model))
    assert ("one" in said, "two" in said, "three" in said) == (True, False, True)
    assert home(say(gpt, "four", previous_response_id=forked.id)) == home(forked)
    assert home(say(gpt, "five", conversation=home(first))) == home(first)
    # Continued elsewhere, the last response of the door is an older one.
    assert home(say(gpt, "six", previous_response_id=second.id)) != home(first)


def test_a_fork_is_made_with_its_run_or_not_at_all(gpt: openai.OpenAI, client: httpx2.Client) -> None:
    first = say(gpt, "one")
    say(gpt, "two", previous_response_id=first.id)

    def asked(key: str, words: str, **more: Any) -> httpx2.Response:
        body = {"input": words, "previous_response_id": first.id, **more}
        return client.post("/v1/responses", json=body, headers={"Idempotency-Key": key})

    forked, again = asked(first.id, "three").json(), asked(first.id, "three").json()
    assert forked["metadata"]["forked"] == "true"
    assert forked["conversation"]["id"] != home(first)
    assert (again["id"], again["output"]) == (forked["id"], forked["output"])
    newest = client.get("/chat?limit=1").json()["conversations"]
    assert [each["conversation_id"] for each in newest] == [forked["conversation"]["id"]]
    assert asked(first.id, "four").status_code == 409
    assert asked(f"{first.id}-wrong", "three", tool_choice="required").status_code == 400
    assert client.get("/chat?limit=1").json()["conversations"] == newest


def test_outputs_that_are_sent_again_have_their_answer_after_the_conversation_went_on(
    gpt: openai.OpenAI,
) -> None:
    called = say(gpt, directive(steps=[{"tools": [CALL]}, {"text": "then"}]), tools=[LOOKUP])
    outputs = output(called.output[-1].call_id)
    answer = say(gpt, outputs, previous_response_id=called.id)
    say(gpt, "and now?", previous_response_id=answer.id)
    assert say(gpt, outputs, previous_response_id=called.id).id == answer.id
    with pytest.raises(openai.BadRequestError, match=r"input: the call appr-\S+ is of another conversation"):
        say(gpt, outputs, previous_response_id=say(gpt, "hi").id)


def test_of_two_that_go_on_at_once_one_forks(gpt: openai.OpenAI) -> None:
    first = say(gpt, "one")
    with ThreadPoolExecutor(4) as pool:
        went = list(pool.map(lambda n: say(gpt, f"at once {n}", previous_response_id=first.id), range(4)))
    assert [each.status for each in went] == ["completed"] * 4
    homes = [home(each) for each in went]
    assert homes.count(home(first)) <= 1
    assert len(set(homes)) == 4


def test_one_that_waited_for_its_place_forks_where_the_conversation_went_on_meanwhile(
    make_host: MakeHost,
) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1", "QUEUE_MS": "60000"}).start()
    with door(host) as gpt, ThreadPoolExecutor(2) as pool, host.client() as client:
        first = say(gpt, "one")
        holds = say(gpt, directive(hang=True), background=True)
        asked = [pool.submit(say, gpt, text, previous_response_id=first.id) for text in ("two", "three")]
        until(lambda: "picoclaw_waiting_runs 2" in client.get("/metrics").text)
        gpt.responses.cancel(holds.id)
        went = [each.result() for each in asked]
        assert sorted(each.metadata.get("forked", "") for each in went) == ["", "true"]
        assert len({home(each) for each in went}) == 2


def test_the_items_of_a_response_are_listed_in_pages_the_last_first(gpt: openai.OpenAI) -> None:
    said = [{"role": "user", "content": f"part {number}"} for number in range(25)]
    response = say(gpt, said)
    listed: Any = gpt.responses.input_items.list
    everything = [item.content[0].text for item in listed(response.id)]
    assert everything == [f"part {number}" for number in reversed(range(25))]
    assert [item.content[0].text for item in listed(response.id, order="asc", limit=7)] == everything[::-1]
    page = listed(response.id)
    assert [len(page.data), page.has_more] == [20, True]
    rest = listed(response.id, after=page.data[-1].id)
    assert [len(rest.data), rest.has_more] == [5, False]
    assert listed(response.id, order="asc", after=page.data[0].id).data == []
    for asked in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "in-elsewhere-0"}):
        with pytest.raises(openai.BadRequestError) as refused:
            listed(response.id, **asked)
        assert f"{next(iter(asked))}: " in refused.value.message


def test_what_is_deleted_is_gone_once_and_nothing_goes_on_from_it(
    host: HostProcess, gpt: openai.OpenAI
) -> None:
    first = say(gpt, "one")
    second = say(gpt, "two", previous_response_id=first.id)
    items = [item.model_dump() for item in gpt.responses.input_items.list(second.id).data]
    assert [item["content"][0]["text"] for item in items] == ["two"]
    gpt.responses.delete(first.id)
    with host.client() as client:
        assert client.get(f"/chat/{home(first)}").status_code == 200
        gpt.responses.delete(second.id)
        assert client.get(f"/chat/{home(first)}").status_code == 404
    for call in (
        lambda: gpt.responses.delete(first.id),
        lambda: gpt.responses.retrieve(first.id),
        lambda: gpt.responses.cancel(first.id),
        lambda: gpt.responses.input_items.list(first.id),
        lambda: say(gpt, "three", previous_response_id=first.id),
    ):
        with pytest.raises(openai.NotFoundError) as refused:
            call()
        assert refused.value.code == "previous_response_not_found"


def test_what_is_not_stored_leaves_nothing_but_what_it_used(host: HostProcess, gpt: openai.OpenAI) -> None:
    with host.client() as client:

        def conversations() -> int:
            listed = client.get("/chat?include_temporary=true&limit=1000").json()["conversations"]
            return len(listed)

        before = conversations()
        made = say(gpt, directive(text="no trace"), store=False)
        assert (made.output_text, made.store) == ("no trace", False)
        assert [event.type for event in say(gpt, "streamed", store=False, stream=True)][-1] == (
            "response.completed"
        )
        until(lambda: conversations() == before)
        assert client.get(f"/runs/run-{made.id.removeprefix('resp-')}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve(made.id)


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_not_stored_is_not_asked_again_by_its_key(gpt: openai.OpenAI, stream: bool) -> None:
    key = {"Idempotency-Key": f"{stream}"}
    asked: dict[str, Any] = {"store": False, "stream": stream, "extra_headers": key}
    made = say(gpt, "once", **asked)
    assert not stream or [event.type for event in made][-1] == "response.completed"
    with pytest.raises(openai.NotFoundError, match="Idempotency-Key: its run is over and was not kept"):
        until(lambda: say(gpt, "once", **asked) is None)
    steps = [{"tools": [CALL]}, {"text": "got $results"}]
    call = say(gpt, directive(steps=steps), tools=[LOOKUP], store=False)
    (made_call,) = [item for item in call.output if item.type == "function_call"]
    told = [{"role": "user", "content": "q"}, made_call.model_dump(), *output(made_call.call_id, "it is 42")]
    assert "it is 42" in say(gpt, told, tools=[LOOKUP], store=False).output_text


def test_calls_of_what_is_not_stored_wait_for_their_outputs_where_they_were_made(
    host: HostProcess, gpt: openai.OpenAI, model: ModelProcess
) -> None:
    steps = [{"tools": [CALL, {"name": "client__lookup", "input": {"q": "y"}}]}, {"text": "got $results"}]
    asked_for = directive(steps=steps)
    called = say(gpt, asked_for, tools=[LOOKUP], store=False)
    one, other = [item for item in called.output if item.type == "function_call"]
    again = [{"role": "user", "content": asked_for}, one.model_dump()]
    with pytest.raises(openai.BadRequestError, match=other.call_id):
        say(gpt, [*again, *output(one.call_id)], tools=[LOOKUP], store=False)
    told = [*again, *output(one.call_id, "first"), other.model_dump(), *output(other.call_id, "second")]
    went = say(gpt, told, tools=[LOOKUP], store=False)
    assert (went.status, home(went)) == ("completed", home(called))
    assert ("first" in went.output_text, "second" in went.output_text) == (True, True)
    results = [
        block["type"] for message in model.requests()[-1]["body"]["messages"] for block in message["content"]
    ]
    assert results.count("tool_result") == 2
    with host.client() as client:
        until(lambda: client.get(f"/chat/{home(went)}").status_code == 404)
    # Their conversation is gone: the items alone are what is known.
    assert home(say(gpt, told, tools=[LOOKUP], store=False)) != home(called)


def test_a_gated_call_of_what_is_not_stored_is_refused_with_its_reason(make_host: MakeHost) -> None:
    rules = [{"tool": name, "do": "ask"} for name in ("append_file", "client__lookup")]
    host = configure(make_host(), permissions=rules).start()
    with door(host) as gpt:
        steps = [{"tools": [GATED, CALL]}, {"text": "told: $results"}]
        told = say(gpt, directive(steps=steps), store=False, tools=[LOOKUP])
        assert (told.status, told.output_text.count("needs a stored conversation")) == ("completed", 2)
        assert "picoclaw:approval_request" not in [item.type for item in told.output]
        asking = [{"name": "ask_person", "input": {"question": "may I?"}}]
        alone = say(gpt, directive(steps=[{"tools": asking}, {"text": "told: $results"}]), store=False)
        assert (alone.status, "no tool named ask_person" in alone.output_text) == ("completed", True)
        with host.client() as client:
            assert client.get("/approvals").json()["approvals"] == []


def test_a_reference_stands_for_its_item(gpt: openai.OpenAI, model: ModelProcess) -> None:
    first = say(gpt, "my name is Ann")
    second = say(gpt, "hello again", previous_response_id=first.id)
    (item,) = second.output
    for reference in (
        {"type": "item_reference", "id": item.id},
        {"id": item.id, "type": None},
        {"id": item.id},
    ):
        resent = [{"role": "user", "content": "hello again"}, reference, {"role": "user", "content": "and?"}]
        went = say(gpt, resent)
        assert (home(went) == home(first), went.metadata == {"forked": "true"}) in [
            (True, False),
            (False, True),
        ]
        said = " ".join(asked(model, role="user"))
        assert [said.count(words) for words in ("my name is Ann", "hello again", "and?")] == [1, 1, 1]
    # Named otherwise, it is the words that count; in its own conversation they are known.
    here = say(
        gpt,
        [{"type": "item_reference", "id": item.id}, {"role": "user", "content": "here"}],
        previous_response_id=second.id,
    )
    assert here.metadata == {"forked": "true"}
    apart = [{"type": "item_reference", "id": f"in-{first.id}-0"}, {"role": "user", "content": "what is it?"}]
    for more in ({"store": False}, {"conversation": home(say(gpt, "elsewhere"))}, {"user": "ann"}):
        say(gpt, apart, **more)
        assert " ".join(asked(model, role="user")).count("my name is Ann") == 1
    items: list[Any] = gpt.responses.input_items.list(went.id).data
    assert [each.content[0].text for each in items if each.role == "assistant"] == [second.output_text]


def test_what_the_model_or_a_tool_said_can_be_sent_again(gpt: openai.OpenAI) -> None:
    run = {"name": "exec", "input": {"command": "printf 'a\\0b'"}}
    first = say(gpt, directive(steps=[{"tools": [run]}, {"text": "a\0b"}]))
    assert first.output_text == "a\ufffdb"
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    assert home(say(gpt, [*references, {"role": "user", "content": "two"}])) == home(first)
    again = [{"role": "user", "content": "x"}, {"role": "assistant", "content": first.output_text}]
    asked: Any = [*again, {"role": "user", "content": directive(text="c\0d")}]
    answer = gpt.chat.completions.create(model="picoclaw", messages=asked)
    assert answer.choices[0].message.content == "c\ufffdd"


def test_ids_of_items_that_are_there_themselves_mean_nothing(gpt: openai.OpenAI) -> None:
    item = {"type": "message", "role": "user", "content": directive(text="taken"), "id": "x" * 500}
    assert [say(gpt, [{**item, "id": each}]).output_text for each in ("x" * 500, None, 7)] == ["taken"] * 3


def test_a_reference_to_a_call_goes_on_with_its_output(gpt: openai.OpenAI) -> None:
    called = say(gpt, directive(steps=[{"tools": [CALL]}, {"text": "got $results"}]), tools=[LOOKUP])
    (call,) = [item for item in called.output if item.type == "function_call"]
    reference = {"type": "item_reference", "id": call.id}
    went = say(gpt, [{"role": "user", "content": "q"}, reference, *output(call.call_id)], tools=[LOOKUP])
    assert (home(went), went.output_text) == (home(called), "got 42")


def test_an_item_that_is_not_the_callers_is_refused_by_its_place(make_host: MakeHost) -> None:
    host = make_host(settings={"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}).start()
    with host.client() as client, door(host) as gpt:
        ann = client.post("/principals", json={"name": "ann"}).json()["id"]
        token = client.post(f"/principals/{ann}/tokens", json={"scopes": ["chat"]}).json()["token"]
        known = say(gpt, "mine").output[0].id
        with door(host, token) as other:
            for reference in (known, "msg-none", "msg-resp-none-0", f"{known}9", "x" * 200):
                with pytest.raises(openai.BadRequestError, match=r"input\.0: there is no item"):
                    say(
                        other, [{"type": "item_reference", "id": reference}, {"role": "user", "content": "?"}]
                    )
        with pytest.raises(openai.BadRequestError, match=r"input\.0: there is no item"):
            say(gpt, [{"type": "item_reference", "id": f"{known}9"}, {"role": "user", "content": "?"}])


def test_responses_are_counted_by_their_status(make_host: MakeHost) -> None:
    host = make_host().start()
    with door(host) as gpt:
        say(gpt, "hi")
        say(gpt, directive(text="later"), background=True)
        say(gpt, directive(status=400, error_type="invalid_request_error"))
    with host.client() as client:
        told = client.get("/metrics").text
    for status in ("completed", "in_progress", "failed"):
        assert f'picoclaw_responses_total{{status="{status}"}} 1.0' in told


def test_calls_of_functions_wait_for_all_their_outputs(gpt: openai.OpenAI) -> None:
    steps = [{"tools": [CALL, {"name": "client__lookup", "input": {"q": "y"}}]}, {"text": "got $results"}]
    called = say(gpt, directive(steps=steps), tools=[LOOKUP])
    assert called.status == "completed"
    one, other = [item.call_id for item in called.output if item.type == "function_call"]
    for wrong in (output(one), "and?", output("appr-none")):
        with pytest.raises(openai.BadRequestError):
            say(gpt, wrong, previous_response_id=called.id)
    went = say(gpt, [*output(one, "first"), *output(other, "second")], previous_response_id=called.id)
    assert ("first" in went.output_text, "second" in went.output_text) == (True, True)
    assert (went.previous_response_id, home(went)) == (called.id, home(called))
    assert gpt.responses.retrieve(called.id).status == "completed"


def test_a_response_in_the_background_is_read_followed_and_cancelled(gpt: openai.OpenAI) -> None:
    begun = say(gpt, directive(text="done later"), background=True)
    assert begun.status == "in_progress"
    until(lambda: gpt.responses.retrieve(begun.id).status == "completed")
    assert gpt.responses.retrieve(begun.id).output_text == "done later"
    told = list(gpt.responses.retrieve(begun.id, stream=True))
    again = list(gpt.responses.retrieve(begun.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in told] == list(range(len(told)))
    assert [event.type for event in again] == [event.type for event in told[4:]]
    beyond = list(gpt.responses.retrieve(begun.id, stream=True, starting_after=999))
    assert [event.type for event in beyond] == ["response.completed"]
    hanging = say(gpt, directive(hang=True), background=True)
    for _ in range(2):
        assert gpt.responses.cancel(hanging.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        gpt.responses.cancel(say(gpt, "hi").id)


def test_a_response_in_the_background_that_is_asked_for_again_is_told_at_once_as_it_stands(
    gpt: openai.OpenAI,
) -> None:
    asked: dict[str, Any] = {"background": True, "extra_headers": {"Idempotency-Key": "hangs"}}
    begun = say(gpt, directive(hang=True), **asked)
    again = say(gpt, directive(hang=True), **asked)
    assert (again.id, again.status) == (begun.id, "in_progress")
    gpt.responses.cancel(begun.id)
    assert say(gpt, directive(hang=True), **asked).status == "cancelled"


def test_a_response_in_the_background_is_there_after_a_kill(make_host: MakeHost) -> None:
    host = make_host().start()
    with door(host) as gpt:
        begun = say(gpt, directive(text="after all", delay_ms=1000), background=True)
        host.kill()
        host.start()
        assert gpt.responses.retrieve(begun.id).status in ("in_progress", "completed")
        events = list(gpt.responses.retrieve(begun.id, stream=True))
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == gpt.responses.retrieve(begun.id).output_text == "after all"


def test_a_call_that_waits_for_a_person_is_an_item_and_not_a_function_call(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=[{"tool": "append_file", "do": "ask"}]).start()
    with door(host) as gpt:
        paused = say(gpt, directive(steps=[{"tools": [GATED]}, {"text": "done"}]))
        assert (paused.status, paused.incomplete_details.reason) == ("incomplete", "approval_required")
        assert [item.type for item in paused.output][-1] == "picoclaw:approval_request"
        assert "function_call" not in [item.type for item in paused.output]
        with pytest.raises(openai.BadRequestError) as refused:
            say(gpt, "go on", previous_response_id=paused.id)
        assert refused.value.code == "approval_pending"


def test_a_response_in_the_background_goes_on_with_its_items_when_a_person_has_answered(
    make_host: MakeHost,
) -> None:
    host = configure(make_host(), permissions=[{"tool": "append_file", "do": "ask"}]).start()
    with door(host) as gpt, host.client() as client:
        steps = [{"text": "first", "tools": [GATED]}, {"text": "done"}]
        begun = say(gpt, directive(steps=steps), background=True)
        until(lambda: gpt.responses.retrieve(begun.id).status == "incomplete")
        before: list[Any] = gpt.responses.retrieve(begun.id).output
        (request,) = client.get("/approvals?status=pending").json()["approvals"]
        allow = {"decision": "allow", "input_sha256": request["input_sha256"]}
        assert client.post(f"/approvals/{request['id']}", json=allow).status_code == 200
        until(lambda: gpt.responses.retrieve(begun.id).status == "completed")
        ended: list[Any] = gpt.responses.retrieve(begun.id).output
        assert [item.id for item in ended[: len(before)]] == [item.id for item in before]
        called = next(item for item in ended if item.type == "picoclaw:append_file")
        assert (called.status, ended[-1].content[0].text) == ("completed", "done")
        told: list[Any] = list(gpt.responses.retrieve(begun.id, stream=True))
        assert told[-1].response.output == ended


def test_pictures_and_files_of_the_message_reach_the_model(gpt: openai.OpenAI, model: ModelProcess) -> None:
    parts: Any = [
        {"type": "input_text", "text": "what is it?"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{DOT}", "detail": "auto"},
        {"type": "input_file", "filename": "notes.txt", "file_data": "data:text/plain;base64,aGVsbG8="},
    ]
    assert say(gpt, [{"role": "user", "content": parts}]).status == "completed"
    blocks = model.requests()[-1]["body"]["messages"][-1]["content"]
    assert "image" in [block["type"] for block in blocks]
    assert "notes.txt" in " ".join(block.get("text", "") for block in blocks)


def test_endings_are_told_as_the_document_has_them(gpt: openai.OpenAI) -> None:
    cut = say(gpt, directive(text="as far as", stop_reason="max_tokens"))
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    failed = say(gpt, directive(status=400, error_type="invalid_request_error"))
    assert (failed.status, failed.error.code) == ("failed", "model_error")
    events = list(say(gpt, directive(status=400, error_type="invalid_request_error"), stream=True))
    assert events[-1].type == "response.failed"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "hi", "background": True, "stream": True}, "stream"),
        ({"input": "hi", "background": True, "store": False}, "background"),
        ({"input": "hi", "conversation": "conv-x", "previous_response_id": "resp-x"}, "conversation"),
        ({"input": []}, "input"),
        ({}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg-1"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"no": "type"}]}]}, "input"),
        ({"input": [{"role": "assistant", "content": "hi"}]}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": " "}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "hi", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
        ({"input": "hi", "tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"input": "hi", "conversation": {}}, "conversation"),
        ({"input": "hi", "include": ["message.output_text.logprobs"]}, "include.0"),
        ({"input": "hi", "prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": "hi", "metadata": {str(number): "" for number in range(17)}}, "metadata: dictionary"),
        ({"input": output("appr-nobody")}, "input"),
        ({"input": "hi", "top_logprobs": 3}, "top_logprobs"),
        ({"input": "hi", "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    client: httpx2.Client, body: dict[str, Any], field: str
) -> None:
    answer = client.post("/v1/responses", json={"model": "picoclaw", **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(field), answer.text


def test_what_has_no_effect_is_named_whether_it_is_told_again_or_not(client: httpx2.Client) -> None:
    usual = {"truncation": "auto", "service_tier": "default"}
    idle = {"truncation": "disabled", "service_tier": "flex", "prompt_cache_key": "k", "temperature": 0.1}
    told = [client.post("/v1/responses", json={"input": "hi", **more}).json() for more in (usual, idle)]
    assert "warnings" not in told[0]
    assert sorted(told[1]["warnings"]) == sorted(f"{name} has no effect." for name in idle)
    assert {name: told[1][name] for name in idle} == idle
    style = {"text": {"verbosity": "high"}, "reasoning": {"effort": "none", "summary": "auto"}}
    shown = client.post("/v1/responses", json={"input": "hi", **style}).json()
    assert shown["warnings"] == ["text.verbosity has no effect.", "reasoning.summary has no effect."]


def test_an_unknown_model_or_conversation_is_not_found(gpt: openai.OpenAI, client: httpx2.Client) -> None:
    for wrong in ({"model": "gpt-none", "input": "hi"}, {"input": "hi", "conversation": "conv-none"}):
        assert client.post("/v1/responses", json=wrong).status_code == 404
    assert "conv-…" in client.post("/v1/conversations", json={}).json()["error"]["message"]


def test_another_principals_responses_are_not_there(make_host: MakeHost) -> None:
    host = make_host(settings={"PICOCLAW_PRINCIPALS_ISOLATION": "weak"}).start()
    with host.client() as operator:
        keys = []
        for name in ("a", "b"):
            principal = operator.post("/principals", json={"name": name}).json()
            made = operator.post(f"/principals/{principal['id']}/tokens", json={"scopes": ["chat"]})
            keys.append(made.json()["token"])
    with door(host, keys[0]) as mine, door(host, keys[1]) as yours:
        response = say(mine, "hello")
        assert mine.responses.retrieve(response.id).id == response.id
        for call in (
            lambda: yours.responses.retrieve(response.id),
            lambda: yours.responses.delete(response.id),
            lambda: say(yours, "x", previous_response_id=response.id),
            lambda: say(yours, "x", conversation=home(response)),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
