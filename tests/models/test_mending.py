"""A block that the model's API refuses never ends a conversation: it is left out, once, and that is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from host.agent.compactor import Compactor
from host.agent.history import Loaded, to_messages
from host.agent.window import Windows
from host.models.access import Credential, KeyedModel, Route
from host.models.api_errors import status_error
from host.models.mending import suspects
from host.ports import Delta, ModelError, OnDelta, Reply, Target
from shared.settings.sections import History
from shared.store.sqlite.store import SqliteStore
from shared.usage_values import Usage
from shared.values import Block, Compaction, HistoryEntry
from tests.contract.store.making import T0
from tests.contract.store.test_tasks_contract import a_run

PICTURE: Block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aa"}}
DOCUMENT: Block = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}
THINKING: Block = {"type": "thinking", "thinking": "hm", "signature": "s"}
SEARCH: Block = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
CITED: Block = {"type": "text", "text": "found", "citations": [{"type": "web_search_result_location"}]}
CALL: Block = {"type": "tool_use", "id": "call_0", "name": "read_file", "input": {"path": "a.png"}}


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def history() -> list[dict[str, Any]]:
    result = {"type": "tool_result", "tool_use_id": "call_0", "content": [text("a.png"), PICTURE]}
    return [
        {"role": "user", "content": [text("look"), DOCUMENT]},
        {"role": "assistant", "content": [THINKING, SEARCH, CITED, CALL]},
        {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]},
    ]


def request(**more: Any) -> dict[str, Any]:
    return {"max_tokens": 10, "messages": history(), **more}


def refusal(said: str, status: int = 400) -> ModelError:
    answer = httpx2.Response(status, request=httpx2.Request("POST", "http://a"))
    return status_error(answer, {"error": {"message": said}})


class Picky:
    """A model that refuses requests with certain words in them."""

    def __init__(self, *words: str, said: str = "Bad request", status: int = 400) -> None:
        self.words, self.said, self.status = words, said, status
        self.asked: list[Mapping[str, Any]] = []
        self.blocks: list[Block] = [text("fine")]

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        self.asked.append(request)
        if any(word in str(request) for word in self.words):
            raise refusal(self.said, self.status)
        return Reply(self.blocks, "end_turn", Usage(), "m")

    async def aclose(self) -> None: ...


def keyed(model: Picky, warnings: list[str]) -> KeyedModel:
    return KeyedModel([Route(Target("m"), Credential(model.reply))], warn=warnings.append)


async def ask(model: KeyedModel, body: Mapping[str, Any]) -> Reply:
    def hear(delta: Delta) -> None: ...

    return await model.reply(body, hear)


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("image input is not supported", {"picture"}),
        ("This model does not support vision", {"picture"}),
        ("messages.2.content.0.tool_result.content.1.image.source: Could not process image", {"picture"}),
        ("messages.2.content.0.content.1: Input tag does not match: 'text', 'thinking'", {"picture"}),
        ("messages.0.content.1: Input should be a valid string", {"document"}),
        ("PDF files are not supported", {"document"}),
        ("messages.1.content.0: Invalid `signature` in `thinking` block", {"thinking"}),
        ("messages.1.content.0.thinking.signature: Field required", {"thinking"}),
        (
            "`thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified",
            {"thinking"},
        ),
        ("Expected `thinking` or `redacted_thinking`, but found `text`", {"thinking"}),
        ("reasoning_content in the input is not supported", {"thinking"}),
        ("messages.1.content.1: Input tag 'server_tool_use' found using 'type'", {"unknown"}),
        ("messages.1.content.2.citations: Extra inputs are not permitted", {"unknown"}),
        ("Unsupported content type in messages", {"unknown"}),
        ("messages.1.content.3.tool_use.name: String should match pattern", {"call"}),
        ("tool_use ids must be unique", {"call"}),
        ("unexpected `tool_use_id` found in `tool_result` blocks", {"call"}),
        ("tool_result content: images are not supported here", {"picture"}),
        ("reasoning_content is missing in assistant tool call message at index 2", {"thinking"}),
        ("Value is not callable: null in the jinja template", {"call"}),
        ("Bad Request", {"picture", "document", "thinking", "unknown"}),
        ("", {"picture", "document", "thinking", "unknown"}),
    ],
)
def test_a_refusal_is_about_what_it_names_or_else_about_anything_but_calls(
    said: str, kinds: set[str]
) -> None:
    for status in (400, 415, 422):
        assert suspects(refusal(said, status), request(), ()) == kinds


@pytest.mark.parametrize("status", [404, 500, 501])
def test_other_statuses_count_when_they_name_a_block(status: int) -> None:
    assert suspects(refusal("No endpoints found that support image input", status), request(), ()) == {
        "picture"
    }
    assert suspects(refusal("Internal error", status), request(), ()) == frozenset()


@pytest.mark.parametrize(("said", "status"), [("image", 401), ("image", 429), ("prompt is too long", 400)])
def test_credentials_rates_and_sizes_are_about_no_block(said: str, status: int) -> None:
    assert suspects(refusal(said, status), request(), ()) == frozenset()


def test_too_large_a_request_is_about_its_pictures_and_documents_while_it_has_some() -> None:
    assert suspects(refusal("Request exceeds the maximum size", 413), request(), ()) == {
        "picture",
        "document",
    }
    assert suspects(refusal("", 413), request(), {"picture", "document"}) == frozenset()


def test_thinking_that_is_asked_for_is_left_out_when_there_is_none_in_the_history() -> None:
    plain = {"messages": [{"role": "user", "content": [text("hi")]}], "thinking": {"type": "adaptive"}}
    said = refusal("adaptive thinking is not supported on this model")
    assert suspects(said, plain, ()) == {"thinking_mode"}
    assert suspects(said, request(thinking={"type": "adaptive"}), {"thinking"}) == {"thinking_mode"}


@pytest.mark.parametrize(
    ("word", "said", "left"),
    [
        ("'type': 'image'", "image input is not supported", ("picture",)),
        ("'type': 'thinking'", "thinking is not supported", ("thinking",)),
        ("'type': 'tool_use'", "tool_use ids must be unique", ("call",)),
        ("srvtoolu_1", "unknown block", ("unknown",)),
    ],
)
async def test_what_is_refused_is_left_out_at_once_and_told(
    word: str, said: str, left: tuple[str, ...]
) -> None:
    warnings: list[str] = []
    model = Picky(word, said=said)
    reply = await ask(keyed(model, warnings), request())
    assert (reply.text, reply.left_out, len(model.asked)) == ("fine", left, 2)
    assert len(warnings) == 1
    assert said in warnings[0]


async def test_a_refusal_without_a_reason_costs_first_what_can_be_spared_then_the_calls() -> None:
    model = Picky("'tool_use'")
    reply = await ask(keyed(model, []), request())
    assert reply.left_out == ("call", "document", "picture", "thinking", "unknown")
    assert [sorted(block["type"] for block in one["content"]) for one in model.asked[-1]["messages"]] == [
        ["text", "text"],
        ["text", "text", "text"],
        ["text", "text", "text"],
    ]
    assert model.asked[-1]["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}


async def test_a_refusal_for_another_reason_stays_what_it_was() -> None:
    warnings: list[str] = []
    model = Picky("max_tokens", said="Invalid model name passed in model=m")
    one = keyed(model, warnings)
    with pytest.raises(ModelError, match="refused"):
        await ask(one, request())
    model.words = ()
    assert (await ask(one, request())).left_out == ()
    assert warnings == []
    assert model.asked[-1]["messages"] == history(), "nothing is left out in vain"


async def test_what_is_refused_twice_is_left_out_to_the_end_of_the_run_and_told_once() -> None:
    warnings: list[str] = []
    model = Picky("'type': 'thinking'", said="thinking is not supported")
    one = keyed(model, warnings)
    for _ in range(5):
        await ask(one, request())
    assert len(model.asked) == 2 + 2 + 1 + 1 + 1
    assert len(warnings) == 1


async def test_ids_of_calls_that_come_again_are_made_unique() -> None:
    model = Picky()
    model.blocks = [CALL, {**CALL, "id": "call_1"}]
    reply = await ask(keyed(model, []), request())
    assert [block["id"] for block in reply.blocks] == ["call_0_2", "call_1"]


def test_stored_messages_are_sent_without_what_was_refused() -> None:
    entries = [
        HistoryEntry("user" if seq % 2 else "assistant", message["content"], seq, None)
        for seq, message in enumerate(history(), start=1)
    ]
    sent = str(to_messages(entries, Compaction("cut", left_out={"picture": 2, "document": 2, "unknown": 3})))
    assert "'image'" in sent
    assert "'document'" not in sent
    assert "server_tool_use'" not in sent
    assert "'citations'" not in sent
    assert "'image'" not in str(to_messages(entries, Compaction("cut", left_out={"picture": 3})))


async def test_a_conversation_is_told_of_what_was_refused_only_where_that_changes_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    try:
        lease = await store.runs.begin(a_run(conversation_id="c"))
        told: list[Compaction] = []

        async def compacted(compaction: Compaction) -> Compaction:
            told.append(compaction)
            return await store.compactions.add(lease, compaction, T0)

        recorder = cast(Any, SimpleNamespace(compacted=compacted))
        window = Compactor(store, Windows(History()), None, lease, Loaded([], 0, None, fresh=True), recorder)
        await window.mended([], ["thinking_mode"])
        assert told == []
        for _ in range(2):
            await window.mended([], ["thinking"])
        assert [each.thinking_through_seq for each in told] == [1]
    finally:
        await store.close()
