"""The five file tools, on a real file system."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import anyio
import pytest

from host.ports import ToolResult
from host.tools.files_and_commands import SandboxToolset

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def call(tools: SandboxToolset, name: str, **arguments: object) -> ToolResult:
    with anyio.fail_after(60):
        return await tools.call(name, arguments)


async def test_reading_tells_size_range_and_what_follows(tools: SandboxToolset, ws: Path) -> None:
    (ws / "long").write_text("".join(f"line {n}\n" for n in range(1, 101)))
    result = await call(tools, "read_file", path="long", offset=10, limit=2)
    assert (
        result.text
        == "[long: 792 bytes, lines 10-11; cut here, more follows (offset=12)]\nline 10\nline 11\n"
    )
    assert "end of file" in (await call(tools, "read_file", path="long", offset=100)).text
    assert "nothing at line 101" in (await call(tools, "read_file", path="long", offset=101)).text


async def test_a_huge_file_is_cut(tools: SandboxToolset, ws: Path) -> None:
    with (ws / "huge").open("wb") as file:
        file.truncate(100 << 30)
        file.write(b"start\n" * 10000)
    result = await call(tools, "read_file", path="huge")
    assert len(result.text) < 60_000
    assert "more follows" in result.text


async def test_binary_is_named_not_shown(tools: SandboxToolset, ws: Path) -> None:
    (ws / "bin").write_bytes(b"\x7fELF\0\0\0")
    assert (await call(tools, "read_file", path="bin")).text == "[bin: binary file, 7 bytes; not shown]"


async def test_an_image_comes_as_an_image(tools: SandboxToolset, ws: Path) -> None:
    (ws / "a.png").write_bytes(PNG)
    result = await call(tools, "read_file", path="a.png")
    [image] = result.images
    assert image.media_type == "image/png"
    assert base64.b64decode(image.data) == PNG


async def test_writing_makes_parents_and_refuses_to_overwrite(tools: SandboxToolset, ws: Path) -> None:
    assert not (await call(tools, "write_file", path="a/b/c.txt", content="one")).is_error
    refused = await call(tools, "write_file", path="a/b/c.txt", content="two")
    assert refused.is_error
    assert "overwrite=true" in refused.text
    assert (ws / "a/b/c.txt").read_text() == "one"
    await call(tools, "write_file", path="a/b/c.txt", content="two", overwrite=True)
    assert (ws / "a/b/c.txt").read_text() == "two"


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o444])
async def test_the_mode_of_a_replaced_file_is_kept(tools: SandboxToolset, ws: Path, mode: int) -> None:
    await call(tools, "write_file", path="script", content="one")
    (ws / "script").chmod(mode)
    await call(tools, "write_file", path="script", content="two", overwrite=True)
    await call(tools, "edit_file", path="script", old_text="two", new_text="three")
    assert (ws / "script").read_text() == "three"
    assert (ws / "script").stat().st_mode & 0o777 == mode


async def test_a_replaced_file_is_never_seen_half_written(tools: SandboxToolset, ws: Path) -> None:
    contents = {"a" * 200_000, "b" * 200_000}
    await call(tools, "write_file", path="f", content="a" * 200_000)
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            seen.add((ws / "f").read_text())
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        for turn in range(20):
            await call(tools, "write_file", path="f", content="ab"[turn % 2] * 200_000, overwrite=True)
        group.cancel_scope.cancel()
    assert seen <= contents
    assert os.listdir(ws).count("f") == 1
    assert not [name for name in os.listdir(ws) if name.endswith(".tmp")]


async def test_an_edit_needs_exactly_one_match_and_counts(tools: SandboxToolset, ws: Path) -> None:
    (ws / "e").write_text("x = 1\ny = 1\nz = 1\n")
    os.chown(ws / "e", *[ws.stat().st_uid] * 2)
    assert "occurs 3 times" in (await call(tools, "edit_file", path="e", old_text="= 1", new_text="= 2")).text
    assert "occurs 0 times" in (await call(tools, "edit_file", path="e", old_text="q", new_text="r")).text
    done = await call(tools, "edit_file", path="e", old_text="y = 1", new_text="y = 5")
    assert "-y = 1\n+y = 5" in done.text
    everywhere = await call(tools, "edit_file", path="e", old_text=" = 1", new_text=" = 7", replace_all=True)
    assert "replaced 2 occurrences" in everywhere.text
    assert (ws / "e").read_text() == "x = 7\ny = 5\nz = 7\n"


async def test_appending_adds_and_creates(tools: SandboxToolset, ws: Path) -> None:
    await call(tools, "append_file", path="log/new", content="one\n")
    await call(tools, "append_file", path="log/new", content="two\n")
    assert (ws / "log/new").read_text() == "one\ntwo\n"


async def test_a_listing_is_ordered_bounded_and_tells_kinds(tools: SandboxToolset, ws: Path) -> None:
    (ws / "link").symlink_to("/etc")
    os.mkfifo(ws / "pipe")
    result = await call(tools, "list_dir", depth=2)
    assert result.text.splitlines()[1:] == [
        "link  (link)",
        "ok.txt  5",
        "pipe  (fifo)",
        "sub/",
        "sub/inner.txt  6",
    ]
    cut = await call(tools, "list_dir", limit=2)
    assert "cut after 2" in cut.text
    assert len(cut.text.splitlines()) == 3


@pytest.mark.parametrize("name", ["read_file", "append_file", "write_file", "edit_file"])
async def test_special_files_are_refused_and_not_waited_for(
    tools: SandboxToolset, ws: Path, name: str
) -> None:
    os.mkfifo(ws / "pipe")
    (ws / "twin").hardlink_to(ws / "ok.txt")
    arguments: dict[str, dict[str, object]] = {
        "read_file": {},
        "append_file": {"content": "x"},
        "write_file": {"content": "x", "overwrite": True},
        "edit_file": {"old_text": "fine", "new_text": "x"},
    }
    more = arguments[name]
    for path in ("pipe", "twin", "sub"):
        assert (await call(tools, name, path=path, **more)).is_error, path
    assert (ws / "ok.txt").read_text() == "fine\n"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/urandom"])
async def test_safe_devices_are_open_to_the_file_tools(tools: SandboxToolset, path: str) -> None:
    assert not (await call(tools, "read_file", path=path)).is_error
    assert not (await call(tools, "write_file", path="/dev/null", content="gone")).is_error


async def test_names_that_are_no_text_are_listed_without_harm(tools: SandboxToolset, ws: Path) -> None:
    with open(os.fsencode(ws) + b"/\xff\xfe", "w"):
        pass
    result = await call(tools, "list_dir")
    assert not result.is_error
    assert r'"\xff\xfe"  0' in result.text
