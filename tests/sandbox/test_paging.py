"""All of a file is read exactly once by whoever does what the headers say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.sandbox.worker.files import reading
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.test_editing import Ask, workspace

HEADER = re.compile(r"\[f: \d+ bytes, lines (\d+)-(\d+)(?: from byte (\d+))?; (.*)\]")


def pages(ask: Ask, limit: int | None = None) -> list[tuple[re.Match[str], str]]:
    """Read ``f`` to its end by following the headers."""
    found: list[tuple[re.Match[str], str]] = []
    arguments: dict[str, int] = {}
    while True:
        header, _, text = ask("read_file", path="f", limit=limit, **arguments).partition("\n")
        told = HEADER.fullmatch(header)
        assert told is not None, header
        found.append((told, text))
        arguments = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", told[4])}
        if not arguments:
            assert told[4] == "end of file"
            return found


DATA = st.lists(
    st.sampled_from(
        [b"x" * 30, b"a", b"\n", b"\r", "é".encode(), "€".encode(), "😀".encode(), b"\x80", b"\xf0"]
    ),
    min_size=1,
    max_size=40,
).map(b"".join)


@given(DATA, st.none() | st.integers(1, 3), st.integers(4, 60))
def test_all_of_a_file_is_read_exactly_once(data: bytes, limit: int | None, page: int) -> None:
    with workspace() as (ws, ask), pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "READ_BYTES", page)
        patch.setattr(reading, "SCAN_BYTES", 100)
        (ws / "f").write_bytes(data)
        found = pages(ask, limit)
    assert "".join(text for _, text in found) == data.decode("utf-8", "replace")
    place = 0
    for told, text in found:
        size = len(text.encode()) if "\ufffd" not in text else None
        assert int(told[1]) == data[:place].count(b"\n") + 1
        if size is None:
            return  # what the bytes were can't be told from the text
        place += size
        assert int(told[2]) == data[: place - 1].count(b"\n") + 1


def test_rows_are_whole_and_numbered_as_grep_does(tmp_path: Path) -> None:
    rows = "".join(f"{n},{'x' * 190}\x0b\u2028\r\n" for n in range(1, 401))
    with workspace() as (ws, ask):
        (ws / "f").write_text(rows, newline="")
        found = pages(ask)
    assert len(found) > 1
    for told, text in found:
        assert text.endswith("\n")
        assert text.startswith(f"{told[1]},")


def test_a_long_line_is_read_to_its_end() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_text("first\n" + "é" * 200_000 + "\nlast")
        found = pages(ask)
        assert "".join(text for _, text in found) == (ws / "f").read_text()
        assert "offset" in ask("read_file", path="f", from_byte=7)
        assert "nothing at line 9 from byte 900001" in ask("read_file", path="f", offset=9, from_byte=900_001)
        assert "[f: 400011 bytes, 3 lines; nothing at line 4]" in ask("read_file", path="f", offset=4)


def test_lines_beyond_what_is_counted_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SCAN_BYTES", 300_000)
    with workspace() as (ws, ask):
        (ws / "f").write_text("12345678\n" * 100_000)
        told = ask("read_file", path="f", offset=90_000)
        assert told == "[f: 900000 bytes; line 90000 begins further on; try offset=58255, from_byte=524289]"
        assert "lines 58255-" in ask("read_file", path="f", offset=58_255, from_byte=524_289)


async def test_text_in_utf_16_is_decoded_and_known_formats_are_named(tools: SandboxToolset, ws: Path) -> None:
    async def read(data: bytes) -> str:
        (ws / "f").write_bytes(data)
        return (await tools.call("read_file", {"path": "f"})).text

    text = "\ufeffhällo\n"
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        data = text.encode(encoding)
        told = f"{len(data)} bytes of {encoding.upper()}, shown as 7 bytes of UTF-8, lines 1-1"
        assert await read(data) == f"[f: {told}; end of file]\nhällo\n"
    assert await read(b"%PDF-1.7\n%\xe2\xe3\n") == (
        "[f: PDF document, 13 bytes; its text can't be shown: it is damaged]"
    )
    assert "ZIP archive" in await read(b"PK\x03\x04\x14\0")
    assert "gzip archive" in await read(b"\x1f\x8b\x08")
    assert "SQLite database" in await read(b"SQLite format 3\0")
