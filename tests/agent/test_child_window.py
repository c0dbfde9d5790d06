"""What a subagent does when the API refuses its request for a size: its messages are stored nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from host.agent.endings import TooLong
from host.agent.subagents import ChildWindow
from host.agent.window import Windows
from host.models.api_errors import status_error
from host.ports import ModelError, OnDelta, Reply, Target
from shared.settings.sections import History
from tests.agent.test_history import text

REQUEST = {"max_tokens": 1000, "system": [], "tools": []}
LESS_OUTPUT = "max_tokens: 9000 > 512, which is the maximum allowed number of output tokens"
NO_SIZE = "Input is too long for requested model."


class Small:
    """Who is asked: only who it is matters here."""

    ids = ("m",)
    targets = (Target("m"),)

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        raise NotImplementedError


def refusal(message: str) -> ModelError:
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    return status_error(httpx2.Response(400, request=httpx2.Request("POST", "http://a")), body)


def conversation(size: int) -> list[dict[str, Any]]:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "r " * size}]}
    call = {"type": "tool_use", "id": "t", "name": "exec", "input": {}}
    steps = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return [{"role": "user", "content": [text("do it")]}, *steps, *steps]


async def test_a_refusal_for_its_output_is_tried_again_although_nothing_can_be_cut() -> None:
    window, messages = ChildWindow(Windows(History())), conversation(1)
    assert await window.refused(messages, REQUEST, Small(), refusal(LESS_OUTPUT)) is True
    assert messages == conversation(1)
    assert window.sizes(messages, REQUEST, Small()).output == 512


async def test_a_refusal_that_names_no_size_is_a_guess_that_later_ones_do_not_take_back() -> None:
    window, messages = ChildWindow(Windows(History())), conversation(30_000)
    before = window.sizes(messages, REQUEST, Small()).estimate
    assert await window.refused(messages, REQUEST, Small(), refusal(NO_SIZE)) is True
    after = window.sizes(messages, REQUEST, Small())
    assert after.window == before > after.estimate
    assert await window.refused(messages, REQUEST, Small(), refusal(LESS_OUTPUT)) is True
    assert window.sizes(messages, REQUEST, Small()).window == before


async def test_what_has_nothing_to_cut_is_not_tried_again() -> None:
    window = ChildWindow(Windows(History()))
    assert await window.refused(conversation(1), REQUEST, Small(), refusal(NO_SIZE)) is False
    assert await window.refused(conversation(1), REQUEST, Small(), refusal("something else")) is False


async def test_what_is_too_large_after_all_was_cut_is_said() -> None:
    window, messages = ChildWindow(Windows(History(window=4_000))), conversation(1)
    messages[0]["content"] = [text("words " * 20_000)]
    with pytest.raises(TooLong, match="hand it on in smaller parts"):
        await window.fit(messages, REQUEST, Small())


@pytest.mark.parametrize("kind", ["adaptive", "enabled"])
@pytest.mark.parametrize("size", [1, 30_000])
async def test_thinking_goes_with_what_is_cut_unless_it_has_a_budget(kind: str, size: int) -> None:
    window, messages = ChildWindow(Windows(History(window=50_000))), conversation(size)
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    messages[1:3] = [
        {**messages[1], "content": [thought, *messages[1]["content"]]},
        messages[2],
        {"role": "assistant", "content": [thought]},
        {"role": "user", "content": [text("go on")]},
    ]
    await window.fit(messages, {**REQUEST, "thinking": {"type": kind}}, Small())
    kept = kind == "enabled" or size == 1
    assert [block["type"] for block in messages[1]["content"]] == (["thinking"] if kept else []) + [
        "tool_use"
    ]
    # A message may not be left without content.
    assert messages[3]["content"] == [thought]


async def test_what_fits_once_the_older_results_are_cut_goes_on() -> None:
    window, messages = ChildWindow(Windows(History(window=50_000))), conversation(30_000)
    assert window.sizes(messages, REQUEST, Small()).messages > 50_000 * 0.8
    sizes = await window.fit(messages, REQUEST, Small())
    assert 0 < sizes.messages < sizes.room
    assert messages[-1] == conversation(30_000)[-1]
