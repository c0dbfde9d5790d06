"""Pictures are looked at before they are sent: what the API would refuse becomes a line that says why."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.agent.toolbox import Toolbox, result_block
from host.ports import Image, ToolResult, ToolSpec
from host.tools.pictures_and_documents import MOST_PARTS, Picture, Unfit, picture_of
from shared.redact import Redactor

# 3 x 2 pixels, each made by Pillow.
FILES = {
    "png": "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAFUlEQVR4nGM8IafBwMDAwMDAxAADABPYARJY7Kp/AA"
    "AAAElFTkSuQmCC",
    "jpeg": "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIx"
    "wcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wgARCAACAAMDASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xA"
    "AVAQEBAAAAAAAAAAAAAAAAAAAEBv/aAAwDAQACEAMQAAABkAlL/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQAB"
    "BQJ//8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAgBAwEBPwF//8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAgBAgEBPw"
    "F//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQAGPwJ//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABPyF/"
    "/9oADAMBAAIAAwAAABAP/8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAgBAwEBPxB//8QAFBEBAAAAAAAAAAAAAAAAAA"
    "AAAP/aAAgBAgEBPxB//8QAFBABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABPxB//9k=",
    "gif": "R0lGODdhAwACAIEAAAAeKAAAAAAAAAAAACwAAAAAAwACAAAIBgABCBwYEAAh+QQBAAABACwAAAAAAwACAIFkHigAAA"
    "AAAAAAAAAIBgABCBwYEAA7",
    "webp": "UklGRjoAAABXRUJQVlA4IC4AAACQAQCdASoDAAIAAUAmJaACdLoAA5gA/vFNr+LaR0KZD/7xn/9xn/9xn/yIAAAA",
    "webp lossless": "UklGRh4AAABXRUJQVlA4TBEAAAAvAkAAAAdQjyIXpf+BiOh/AAA=",
    "webp animated": "UklGRrIAAABXRUJQVlA4WAoAAAACAAAAAgAAAQAAQU5JTQYAAAAAAAAAAABBTk1GPgAAAAAAAAAAAAIA"
    "AAEAAAAAAAJWUDggJgAAADABAJ0BKgMAAgABQCYlAABuAAD++/8p/dJ+p8j//EXT3gDAAAAAQU5NRkAAAAAAAAAAAAACAAABAAAA"
    "AAAAVlA4ICgAAABUAQCdASoDAAIAAAAmJaAABGGAAP74tRf3uWikV//8Q5/W3/cprEAA",
}
DATA = {name: base64.b64decode(text) for name, text in FILES.items()}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Return a PNG of black pixels."""
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def fault(data: bytes) -> str:
    with pytest.raises(Unfit) as caught:
        picture_of(data)
    return str(caught.value)


@pytest.mark.parametrize("name", DATA)
def test_a_whole_picture_is_known_with_its_sides(name: str) -> None:
    assert picture_of(DATA[name]) == Picture(f"image/{name.split()[0]}", 3, 2)
    assert picture_of(DATA[name] + b"\n") == Picture(f"image/{name.split()[0]}", 3, 2)


@pytest.mark.parametrize("name", DATA)
def test_a_picture_that_is_cut_anywhere_is_none(name: str) -> None:
    for end in range(len(DATA[name])):
        assert fault(DATA[name][:end])


def test_sides_and_bytes_have_the_apis_limits() -> None:
    assert picture_of(png(8000, 10)).width == 8000
    assert "12000 x 9000 pixels" in fault(png(12000, 9000))
    assert "8001" in fault(png(1, 8001))
    assert "no pixels" in fault(png(0, 3))
    assert "bytes" in fault(png(3, 3, chunk(b"tEXt", bytes(4_000_000))))
    assert fault(png(3, 3, *[chunk(b"tEXt", b"")] * (MOST_PARTS + 1))) == "it has too many parts"


def test_a_picture_with_a_wrong_checksum_is_damaged() -> None:
    data = bytearray(DATA["png"])
    data[50] ^= 1
    assert fault(bytes(data)) == "it is damaged"


@given(st.sampled_from(sorted(DATA)), st.integers(0), st.binary(max_size=20))
def test_any_file_is_a_picture_with_sides_or_unfit(name: str, at: int, junk: bytes) -> None:
    data = DATA[name]
    at %= len(data)
    with suppress(Unfit):
        picture = picture_of(data[:at] + junk + data[at + len(junk) :])
        assert 0 < max(picture.width, picture.height) <= 8000


class Pictures:
    """A toolset that shows some pictures."""

    def __init__(self, result: ToolResult) -> None:
        self.result = result
        self.specs = [ToolSpec("show", "", {})]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return self.result


async def shown(*images: Image, is_error: bool = False) -> ToolResult:
    tools = Pictures(ToolResult("seen", is_error, images))
    return await Toolbox([tools], Redactor(())).call("show", {})


async def test_a_tool_s_pictures_are_sent_as_what_they_are_and_the_others_become_lines() -> None:
    result = await shown(
        Image("\n".join([FILES["gif"][:40], FILES["gif"][40:]]), "image/png"),
        Image(FILES["png"][:12], "image/png"),
        Image("????", "image/png"),
        Image(base64.b64encode(b"<svg/>").decode(), "image/svg+xml"),
    )
    assert result.images == (Image(FILES["gif"], "image/gif"),)
    assert result.text.splitlines() == [
        "seen",
        "[a picture was left out: it is cut off]",
        "[a picture was left out: its data is not base64]",
        "[a picture was left out: it is no PNG, JPEG, GIF or WebP]",
    ]


async def test_an_error_has_text_alone_as_the_api_wants_it() -> None:
    result = await shown(Image(FILES["png"], "image/png"), is_error=True)
    block = result_block("toolu_1", result)
    assert [part["type"] for part in block["content"]] == ["text"]
    assert "left out" in block["content"][0]["text"]
