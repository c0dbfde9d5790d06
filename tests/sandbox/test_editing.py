"""What an edit does to bytes, encodings and line ends, and what it does not."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.sandbox.client import Sandbox
from host.sandbox.worker.files import files, reading
from host.sandbox.worker.files.paths import RootPath, Roots
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset

Ask = Callable[..., str]


@contextmanager
def workspace() -> Iterator[tuple[Path, Ask]]:
    """A directory, and the file tools in this process on it; an error stands behind ``refused:``."""
    reading.settle_clock()
    with TemporaryDirectory(dir="/dev/shm") as name:

        def ask(tool: str, **arguments: Any) -> str:
            answer = files.answer({"tool": tool, "arguments": arguments}, Roots([RootPath(name, True)]))
            return str(answer["ok"]["text"]) if "ok" in answer else f"refused: {answer['error']}"

        yield Path(name), ask


PIECES = st.lists(
    st.sampled_from([b"a", b"b", b"\n", b"\xe9", b"\xff", "é".encode(), "\u2028".encode()]), max_size=40
)
WORDS = st.sampled_from(["a", "b", "ab", "a\n", "\nb", "é", "\u2028", "a\nb\n"])


@given(PIECES, WORDS, WORDS | st.just(""))
def test_edits_are_exact_to_the_byte_beside_any_encoding(pieces: list[bytes], old: str, new: str) -> None:
    data = b"".join(pieces)
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(data)
        told = ask("edit_file", path="f", old_text=old, new_text=new, replace_all=True)
        expected = data.replace(old.encode(), new.encode())
        count = data.count(old.encode())
        assert (ws / "f").read_bytes() == expected
        assert f"replaced {count} occ" in told if count else "occurs 0 times" in told
        assert os.listdir(ws) == ["f"]


@given(st.binary(max_size=60), st.text(max_size=3), st.text(max_size=3))
def test_a_file_of_any_bytes_is_edited_exactly_or_not_at_all(data: bytes, old: str, new: str) -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(data)
        told = ask("edit_file", path="f", old_text=old, new_text=new)
        unchanged = (ws / "f").read_bytes() == data
        assert (
            unchanged if told.startswith("refused: ") else told.startswith("ok: replaced 1 occurrence in f")
        )


@given(
    st.sampled_from(["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]),
    st.lists(st.sampled_from(["a", "b", "\n", "ä", "😀"]), max_size=30),
    WORDS,
    WORDS,
)
def test_text_with_a_byte_order_mark_keeps_its_encoding(
    encoding: str, letters: list[str], old: str, new: str
) -> None:
    text = "\ufeff" + "".join(letters)
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(text.encode(encoding))
        ask("edit_file", path="f", old_text=old, new_text=new, replace_all=True)
        after = text.replace(old, new)
        ask("append_file", path="f", content="ü\n")
        assert (ws / "f").read_bytes() == (after + "ü\n").encode(encoding)
        assert ask("read_file", path="f").partition("\n")[2] == after[1:] + "ü\n"


LINES = st.lists(
    st.tuples(st.sampled_from(["one", "two", "", "\r", "x\ry"]), st.sampled_from(["\n", "\r\n"])),
    min_size=1,
    max_size=8,
)


@given(LINES, st.data(), st.lists(st.sampled_from(["new", "two", ""]), min_size=1, max_size=4))
def test_lines_match_whatever_their_ends_and_what_is_around_keeps_them(
    lines: list[tuple[str, str]], data: st.DataObject, new: list[str]
) -> None:
    first = data.draw(st.integers(0, len(lines) - 1))
    last = data.draw(st.integers(first + 1, len(lines)))
    text = "".join(line + end for line, end in lines)
    old = "".join(line + "\n" for line, _ in lines[first:last])
    before = "".join(line + end for line, end in lines[:first])
    behind = "".join(line + end for line, end in lines[last:])
    alike = text.replace("\r\n", "\n")
    if "\r" in old or alike.find(old) != alike.rfind(old):
        return
    with workspace() as (ws, ask):
        (ws / "f").write_text(text, newline="")
        told = ask("edit_file", path="f", old_text=old, new_text="".join(line + "\n" for line in new))
        assert told.startswith("ok")
        after = (ws / "f").read_bytes().decode()
    assert after.startswith(before)
    assert after.endswith(behind)
    middle = after[len(before) : len(after) - len(behind)]
    assert middle.replace("\r\n", "\n") == "".join(line + "\n" for line in new)
    ends = {end for _, end in lines[first:last]}
    assert {"\r\n" if part.endswith("\r") else "\n" for part in middle.split("\n")[:-1]} <= ends


def test_a_line_put_behind_another_ends_as_that_one() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(b"one\ntwo\r\n")
        ask("edit_file", path="f", old_text="one\n", new_text="one\nnew\n")
        ask("edit_file", path="f", old_text="two\n", new_text="two\nlast\n")
        assert (ws / "f").read_bytes() == b"one\nnew\ntwo\r\nlast\r\n"


def test_who_names_carriage_returns_means_them() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(b"a\r\nb\r\nc\r\n")
        assert "replaced 3" in ask("edit_file", path="f", old_text="\r\n", new_text="\n", replace_all=True)
        assert (ws / "f").read_bytes() == b"a\nb\nc\n"
        assert "replaced 1" in ask("edit_file", path="f", old_text="a\r\nb", new_text="x\r\ny")
        assert (ws / "f").read_bytes() == b"x\ny\nc\n"


@pytest.mark.parametrize(
    ("before", "added"), [(b"a\r\n", b"b\r\nc\r\n"), (b"a\n", b"b\nc\n"), (b"a\r\nb\n", b"b\nc\n")]
)
def test_what_is_appended_ends_its_lines_as_the_file_does(before: bytes, added: bytes) -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_bytes(before)
        ask("append_file", path="f", content="b\nc\n")
        assert (ws / "f").read_bytes() == before + added


async def test_an_edit_beside_bytes_that_are_no_text_is_told_as_done(tools: SandboxToolset, ws: Path) -> None:
    (ws / "latin").write_bytes(b"caf\xe9 rest\n")
    done = await tools.call("edit_file", {"path": "latin", "old_text": "rest", "new_text": "resting"})
    assert (
        done.text == "ok: replaced 1 occurrence in latin\n@@ line 1 @@\n-caf\ufffd rest\n+caf\ufffd resting"
    )
    assert (ws / "latin").read_bytes() == b"caf\xe9 resting\n"


def test_why_letters_of_another_encoding_do_not_match_is_told() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_bytes("é".encode("latin-1"))
        assert "not UTF-8" in ask("edit_file", path="f", old_text="é", new_text="e")
        assert "white space" in ask("edit_file", path="f", old_text="e", new_text="e")


# --- bounds


@pytest.mark.parametrize("line", [b"ab\n", b"ab\r\n", b"ab\r\nab\n"])
def test_many_replacements_are_told_in_few_lines(line: bytes) -> None:
    count = 100_000 * 3 // len(line)
    with workspace() as (ws, ask):
        (ws / "many").write_bytes(line * count)
        told = ask("edit_file", path="many", old_text="b\n", new_text="c\n", replace_all=True)
        assert told.startswith(f"ok: replaced {count * line.count(b'ab')} occurrences")
        assert "more changes" in told
        assert len(told) < 10_000
        assert (ws / "many").read_bytes() == line.replace(b"ab", b"ac") * count


async def test_a_result_that_would_be_too_large_is_refused_before_it_is_made(
    tools: SandboxToolset, ws: Path
) -> None:
    (ws / "f").write_text("ab" * 35_000)
    arguments = {"path": "f", "old_text": "a", "new_text": "x" * 25_000, "replace_all": True}
    refused = await tools.call("edit_file", arguments)
    assert refused.text == "f would become too large (875035000 characters, the limit is 8388608)"
    assert (ws / "f").read_text() == "ab" * 35_000


def test_a_result_of_too_many_bytes_is_refused_before_it_is_written() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_text("a" * 5_000_000)
        told = ask("edit_file", path="f", old_text="a", new_text="é", replace_all=True)
        assert told == "refused: f would become too large (10000000 bytes, the limit is 8388608)"
        assert (ws / "f").stat().st_size == 5_000_000


def test_long_lines_are_shown_around_the_change() -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_text("x" * 100_000 + "old" + "y" * 100_000)
        told = ask("edit_file", path="f", old_text="old", new_text="new")
    assert "xnewy" in told
    assert len(told) < 2000


@pytest.mark.parametrize("limit", ["PROCESSOR_S", "ELAPSED_S"])
def test_a_tool_that_takes_too_long_is_stopped(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(roots: Roots, arguments: Any) -> Any:
        begun = time.process_time()
        while time.process_time() < begun + 3:
            pass
        return {"text": "never stopped"}

    monkeypatch.setattr(reading, limit, 0.05)
    monkeypatch.setitem(files.TOOLS, "spin", spin)
    with workspace() as (_, ask):
        assert ask("spin") == "refused: stopped: it took too long; nothing was changed"


def test_what_happened_is_told_as_done_though_the_disk_does_not_confirm_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_text("start\n")
        monkeypatch.setattr("host.sandbox.worker.files.writing.os.fsync", failing)
        told = ask("append_file", path="f", content="x")
        assert told.startswith("ok: appended 1 bytes to f (now 7 bytes); the disk did not confirm it")


def test_an_append_that_does_not_fit_adds_nothing() -> None:
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with workspace() as (ws, ask):
        (ws / "f").write_text("start\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            told = ask("append_file", path="f", content="x" * 20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        assert told == "refused: f: the file would be larger than the limit; nothing was added"
        assert (ws / "f").read_text() == "start\n"


def failing(descriptor: int) -> None:
    raise OSError(errno.EIO, "")


# --- several at once


async def test_of_many_edits_of_one_file_none_is_lost(sandbox: Sandbox, ws: Path) -> None:
    (ws / "shared").write_text("".join(f"line {n}.\n" for n in range(40)))

    async def edit(editor: int) -> None:
        tools = toolset(sandbox, f"editor-{editor}")
        for number in range(editor, 40, 4):
            arguments = {"path": "shared", "old_text": f"line {number}.", "new_text": f"done {number}."}
            assert not (await tools.call("edit_file", arguments)).is_error
            assert not (
                await tools.call("append_file", {"path": "shared", "content": f"+{number}\n"})
            ).is_error

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for editor in range(4):
                group.start_soon(edit, editor)
    lines = (ws / "shared").read_text().splitlines()
    assert lines[:40] == [f"done {n}." for n in range(40)]
    assert sorted(lines[40:]) == sorted(f"+{n}" for n in range(40))


def test_what_a_command_writes_during_an_edit_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with workspace() as (ws, ask):
        (ws / "f").write_text("a\n")
        writes = iter([True, False, False])

        def fsync(descriptor: int) -> None:
            if next(writes, False):
                with (ws / "f").open("a") as file:
                    file.write("from a command\n")

        monkeypatch.setattr("host.sandbox.worker.files.writing.os.fsync", fsync)
        assert ask("edit_file", path="f", old_text="a\n", new_text="b\n").startswith("ok")
        assert (ws / "f").read_text() == "b\nfrom a command\n"
        assert os.listdir(ws) == ["f"]
