"""History as the model gets it: always valid, whatever was cut off, and never a byte different."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from host.agent.asking import with_breakpoints
from host.agent.history import to_messages
from host.ports import Message
from host.runs.prompt import person_message
from shared.values import Block, HistoryEntry


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def call(number: int) -> Block:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "exec", "input": {}}


def result(number: int) -> Block:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "x", "is_error": False}


CALLS = st.lists(st.integers(0, 5), max_size=3, unique=True)
ENTRIES = st.lists(
    st.one_of(
        st.builds(lambda words: ("user", [text(words)]), st.text("ab", min_size=1, max_size=3)),
        st.builds(lambda calls: ("assistant", [text("t"), *map(call, calls)]), CALLS),
        st.builds(lambda calls: ("user", [*map(result, calls)]), CALLS),
        st.just(("assistant", [])),
    ),
    max_size=10,
)


def entries(rows: list[tuple[Any, list[Block]]]) -> list[HistoryEntry]:
    return [HistoryEntry(role, blocks, seq, None) for seq, (role, blocks) in enumerate(rows, 1)]


def is_valid(messages: list[Message]) -> bool:
    open_calls: list[str] = []
    for message in messages:
        results = [block["tool_use_id"] for block in message["content"] if block["type"] == "tool_result"]
        if not message["content"] or results != open_calls:
            return False
        open_calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
    return not open_calls


@given(rows=ENTRIES)
def test_every_tool_use_is_answered_right_after_and_no_result_stands_alone(rows: list[Any]) -> None:
    assert is_valid(to_messages(entries(rows)))


@given(rows=ENTRIES)
def test_the_text_of_everyone_is_kept_in_order(rows: list[Any]) -> None:
    said = [block["text"] for _, blocks in rows for block in blocks if block["type"] == "text"]
    kept = [
        block["text"]
        for message in to_messages(entries(rows))
        for block in message["content"]
        if block["type"] == "text"
    ]
    assert kept == said


@given(rows=ENTRIES)
def test_breakpoints_are_set_on_copies_and_at_most_two(rows: list[Any]) -> None:
    messages = to_messages(entries(rows))
    before = copy.deepcopy(messages)
    marked = with_breakpoints(messages)
    assert messages == before
    set_on = [block for message in marked for block in message["content"] if "cache_control" in block]
    assert len(set_on) == min(2, sum(message["role"] == "user" for message in messages))


@given(words=st.text(), sender=st.text())
def test_nobody_can_close_the_tag_around_their_words(words: str, sender: str) -> None:
    tag = person_message(words, sender=sender, time="2026-01-01T00:00:00.000Z")[0]["text"]
    assert tag.count("<message ") == 1
    assert tag.count("</message>") == 1
    assert tag.endswith("</message>")
    head = tag[: tag.index(">") + 1]
    assert head.startswith("<message sender=")
    assert head.endswith('time="2026-01-01T00:00:00.000Z">')


def test_a_call_whose_result_was_never_stored_has_failed() -> None:
    rows = [
        ("user", [text("a")]),
        ("assistant", [call(1), call(2)]),
        ("user", [result(2)]),
        ("user", [text("b")]),
    ]
    answers = [b for b in to_messages(entries(rows))[2]["content"] if b["type"] == "tool_result"]
    assert [(b["tool_use_id"], b["is_error"]) for b in answers] == [("toolu_1", True), ("toolu_2", False)]
