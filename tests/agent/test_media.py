"""Pictures and documents that one request can't hold: the oldest go, many at a time."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from host.agent.media import Media, beyond

PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
PAPER = {"type": "document", "source": {"type": "kept", "size": 1, "pages": 1}}


def shown(block: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return blocks of which each is one of its own."""
    return [dict(block) for _ in range(count)]


@pytest.mark.parametrize("block", [PICTURE, PAPER], ids=["pictures", "pages"])
@pytest.mark.parametrize(
    ("counts", "gone"),
    [((60, 40), 0), ((60, 41), 51), ((10, 60, 31), 51), ((5, 101), 6), ((60, 41, 59), 101)],
)
def test_of_too_many_the_oldest_go_until_half_is_left(
    block: dict[str, Any], counts: tuple[int, ...], gone: int
) -> None:
    messages = [{"role": "user", "content": shown(block, count)} for count in counts]
    everything = [id(each) for message in messages for each in message["content"]]
    assert beyond(messages) == set(everything[:gone])


def test_those_of_a_tool_s_result_count_as_well() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": shown(PICTURE, 101)}
    assert beyond([{"role": "user", "content": [result]}]) == {id(result["content"][0])}


@pytest.mark.anyio
async def test_what_is_kept_is_sent_with_its_content_in_a_tool_s_result_too() -> None:
    async def read(name: str) -> bytes:
        return name.encode()

    source = {"type": "kept", "sha256": "abc", "media_type": "image/png", "size": 3}
    kept = {"type": "image", "source": source}
    words = {"type": "text", "text": "x"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [words, kept]}
    plain = {"type": "tool_result", "tool_use_id": "u", "content": "y"}
    sent = await Media(read).sent([{"role": "user", "content": [result, plain, kept]}], documents=True)
    data = base64.b64encode(b"abc").decode()
    whole = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    assert sent == [{"role": "user", "content": [{**result, "content": [words, whole]}, plain, whole]}]
