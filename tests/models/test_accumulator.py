"""What a stream may bring that no request and no store could hold: halves of characters, endless nesting."""

from __future__ import annotations

from typing import Any

import pytest

from host.models.accumulator import LONGEST, Accumulator
from host.ports import Delta, ModelError, Reply, TextDelta, ThinkingDelta, ToolUseStart
from shared import jsons

HIGH, LOW = "\ud83d", "\ude00"


def take(
    start: dict[str, Any], *deltas: dict[str, Any], is_stopped: bool = True
) -> tuple[Reply, list[Delta]]:
    """Return what comes of one block."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"model": f"m{HIGH}", "usage": {}}},
        {"type": "content_block_start", "index": 0, "content_block": start},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
    ]
    if is_stopped:
        events.append({"type": "content_block_stop", "index": 0})
    events += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]
    answer = Accumulator()
    told = [delta for event in events if (delta := answer.feed(event)) is not None]
    return answer.reply(), told


def text(*pieces: str, is_stopped: bool = True) -> tuple[str, list[str]]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    reply, told = take({"type": "text", "text": ""}, *deltas, is_stopped=is_stopped)
    return reply.blocks[0]["text"], [delta.text for delta in told if isinstance(delta, TextDelta)]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ((f"a {HIGH}", f"{LOW} b"), ["a ", "😀 b"]),
        ((f"a {HIGH}{LOW} b",), ["a 😀 b"]),
        ((HIGH, LOW), ["😀"]),
        (("a", HIGH, f"{LOW}{HIGH}", LOW), ["a", "😀", "😀"]),
        ((f"a {HIGH}", " b"), ["a ", "\ufffd b"]),
        ((f"a {LOW}",), ["a \ufffd"]),
        ((f"a {HIGH}",), ["a ", "\ufffd"]),
        ((f"{HIGH}{HIGH}{LOW}",), ["\ufffd😀"]),
        (("é 😀", "ü"), ["é 😀", "ü"]),
    ],
)
def test_halves_of_characters_are_joined_and_those_alone_replaced(
    pieces: tuple[str, ...], shown: list[str]
) -> None:
    kept, told = text(*pieces)
    assert told == shown
    assert kept == "".join(shown)
    assert jsons.fits(kept)


def test_a_half_at_the_end_of_a_block_that_nobody_stops_is_replaced_too() -> None:
    assert text(f"a {HIGH}", is_stopped=False)[0] == "a \ufffd"


def test_thinking_is_mended_like_text() -> None:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in (f"a {HIGH}", f"{LOW} b")]
    reply, told = take({"type": "thinking", "thinking": "", "signature": "s"}, *deltas)
    assert told == [ThinkingDelta("a "), ThinkingDelta("😀 b")]
    assert reply.blocks[0]["thinking"] == "a 😀 b"


def test_names_and_results_of_server_tools_are_mended() -> None:
    reply, told = take({"type": "tool_use", "id": f"t{LOW}", "name": f"n{HIGH}", "input": {}})
    assert told == [ToolUseStart("t_", "n_")]
    assert (reply.blocks[0]["id"], reply.blocks[0]["name"], reply.model) == ("t_", "n_", "m\ufffd")
    found = {"type": "web_search_tool_result", "tool_use_id": "x", "content": [{f"k{HIGH}{LOW}": HIGH}]}
    assert take(found)[0].blocks[0]["content"] == [{"k😀": "\ufffd"}]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (("toolu_1", "exec"), ("toolu_1", "exec")),
        (("call:1.2", "functions.exec"), ("call_1_2", "functions_exec")),
        (("", ""), ("_", "_")),
        (("a", "x" * 300), ("a", "x" * 128)),
    ],
)
def test_a_call_is_named_so_that_the_api_takes_it_back(given: tuple[str, str], kept: tuple[str, str]) -> None:
    reply, told = take({"type": "tool_use", "id": given[0], "name": given[1], "input": {}})
    assert told == [ToolUseStart(*kept)]
    assert (reply.blocks[0]["id"], reply.blocks[0]["name"]) == kept


def test_two_calls_of_one_id_get_two() -> None:
    answer = Accumulator()
    call = {"type": "tool_use", "id": "same", "name": "n", "input": {}}
    for index in range(3):
        answer.feed({"type": "content_block_start", "index": index, "content_block": call})
    answer.feed({"type": "message_delta", "delta": {"stop_reason": "tool_use"}})
    answer.feed({"type": "message_stop"})
    assert [block["id"] for block in answer.reply().blocks] == ["same", "same_", "same__"]


@pytest.mark.parametrize("broken", [{"id": ["t"]}, {"id": 5}, {"name": 7}, {"name": None}])
def test_a_call_without_a_name_or_an_id_breaks_the_protocol(broken: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="broke the Messages protocol"):
        take({"type": "tool_use", "id": "t", "name": "n", "input": {}, **broken})


def input_of(json: str) -> Reply:
    start = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    return take(start, {"type": "input_json_delta", "partial_json": json})[0]


def nested(levels: int) -> str:
    return '{"a":' * levels + "{}" + "}" * levels


def test_input_that_is_nested_deeper_than_a_request_can_hold_is_kept_apart() -> None:
    fine = input_of(nested(200))
    assert fine.malformed == {}
    assert jsons.fits(fine.blocks)
    for levels in (245, 253, 300, 1000, 5000):
        reply = input_of(nested(levels))
        assert reply.malformed["t"].startswith('{"a":')
        assert reply.blocks[0]["input"] == {}


def test_halves_in_an_input_are_joined() -> None:
    assert input_of(f'{{"a": "{HIGH}{LOW}", "b": "{HIGH}"}}').blocks[0]["input"] == {"a": "😀", "b": "\ufffd"}
    assert input_of('{"a": "\\ud83d\\ude00"}').blocks[0]["input"] == {"a": "😀"}
    assert "t" in input_of('{"a": "\\ud83d"}').malformed


@pytest.mark.parametrize("count", [-1, 10**30, None, 2.5, "7"])
def test_a_count_that_is_none_is_left_out(count: object) -> None:
    answer = Accumulator()
    for event in (
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 7}}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": count}},
        {"type": "message_stop"},
    ):
        answer.feed(event)
    assert answer.reply().usage.input_tokens == 7


def test_a_reply_without_end_is_given_up() -> None:
    piece = "x" * (1 << 20)
    for start, name, kind in (("text", "text", "text_delta"), ("thinking", "thinking", "thinking_delta")):
        with pytest.raises(ModelError, match="longer than") as failed:
            take({"type": start, name: ""}, *[{"type": kind, name: piece}] * 17)
        assert not failed.value.retryable
    assert len(text(*[piece] * 16)[0]) == LONGEST


def test_a_result_that_is_nested_without_end_breaks_the_protocol() -> None:
    deep: Any = "end"
    for _ in range(2000):
        deep = [deep]
    for content in (deep, [[HIGH, deep]]):
        with pytest.raises(ModelError, match="broke the Messages protocol"):
            take({"type": "web_search_tool_result", "tool_use_id": "x", "content": content})
