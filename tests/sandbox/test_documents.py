"""PDFs are read page by page and pictures made smaller where nothing else can be reached."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import anyio
import PIL.ExifTags
import PIL.Image
import pytest

from host.ports import SandboxFault
from host.sandbox.client import PROGRAM, Sandbox
from host.tools.files_and_commands import SandboxToolset
from shared.store.contract import asking
from tests.fakes.documents import pdf, png


async def read(tools: SandboxToolset, **arguments: object) -> str:
    return (await tools.call("read_file", arguments)).text


async def test_a_pdf_is_read_page_by_page(place: Path, tools: SandboxToolset) -> None:
    (place / "ws/report.pdf").write_bytes(pdf(["Alpha begins", "Beta goes on", "Gamma ends"]))
    whole = await read(tools, path="report.pdf")
    assert "3 pages; pages 1-3; end of file]" in whole
    assert [whole.index(word) for word in ("[page 1]\nAlpha begins", "[page 3]\nGamma")] != []
    second = await read(tools, path="report.pdf", pages="2")
    assert 'pages 2-2; more follow (pages="3-")' in second
    assert "Beta goes on" in second
    assert not {"Alpha", "Gamma"} & set(second.split())
    assert "Gamma" in await read(tools, path="report.pdf", pages="3-")
    assert "nothing at page 9" in await read(tools, path="report.pdf", pages="9")
    for wrong in ("0", "x", "3-2x", "-2", ""):
        assert "3, 2-5 or 4-" in await read(tools, path="report.pdf", pages=wrong)


async def test_more_pages_than_fit_are_read_by_doing_what_the_header_says(
    place: Path, tools: SandboxToolset
) -> None:
    (place / "ws/long.pdf").write_bytes(pdf([f"{number:03} " + "word " * 900 for number in range(1, 31)]))
    seen, asked = "", "1-"
    while asked:
        shown = await read(tools, path="long.pdf", pages=asked)
        assert len(shown) < 60_000
        seen += shown
        _, marker, rest = shown.partition('more follow (pages="')
        asked = rest.partition('"')[0] if marker else ""
    assert [seen.count(f"[page {number}]\n{number:03} word") for number in range(1, 31)] == [1] * 30


async def test_what_is_no_whole_pdf_is_named_with_the_reason(place: Path, tools: SandboxToolset) -> None:
    (place / "ws/closed.pdf").write_bytes(pdf(["secret"], password="hunter2"))
    (place / "ws/cut.pdf").write_bytes(pdf(["whole"])[:100])
    (place / "ws/not.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(5000))
    assert "can't be shown: it is encrypted" in await read(tools, path="closed.pdf")
    for name in ("cut.pdf", "not.pdf"):
        told = await read(tools, path=name)
        assert "its text can't be shown" in told or "0 pages" in told, told
    assert "fine" in await read(tools, path="ok.txt")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
async def test_a_picture_is_made_smaller(sandbox: Sandbox, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large"
    PIL.Image.new("RGB", (8200, 500), (250, 10, 10)).save(path, kind)
    with path.open("rb") as file:
        found = await sandbox.view(file.fileno(), "picture", most=100_000)
    with PIL.Image.open(io.BytesIO(base64.b64decode(found["data"]))) as made:
        assert max(made.size) == 1568
        red, green, blue = made.convert("RGB").getpixel((700, 40))  # type: ignore[misc]
    assert (red > 230, green < 40, blue < 40) == (True, True, True)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_a_picture_is_turned_as_its_camera_was_held(
    sandbox: Sandbox, tmp_path: Path, kind: str
) -> None:
    path, held = tmp_path / "photo", PIL.Image.Exif()
    held[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.new("RGB", (40, 20)).save(path, kind, exif=held)
    with path.open("rb") as file:
        found = await sandbox.view(file.fileno(), "picture", most=100_000)
    with PIL.Image.open(io.BytesIO(base64.b64decode(found["data"]))) as made:
        assert made.size == (20, 40)


async def test_what_unpacks_to_more_than_there_is_room_for_is_refused(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(12_000, 9_000))
    with path.open("rb") as file:
        assert "pixels" in (await sandbox.view(file.fileno(), "picture", most=100_000))["fault"]


async def test_the_viewer_reaches_no_path_and_no_network(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "view.py"
    program.write_text(
        """
import os, socket
def view(descriptor, kind):
    tried = {
        "own": lambda: os.read(descriptor, 5).decode(),
        "path": lambda: open("/etc/passwd").read(),
        "list": lambda: os.listdir("/"),
        "network": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "process": lambda: os.fork(),
    }
    found = {}
    for name, attempt in tried.items():
        try:
            found[name] = str(attempt())
        except OSError as error:
            found[name] = type(error).__name__
    return found
"""
    )
    monkeypatch.setattr("host.sandbox.client.PROGRAM", program)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"words")
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        found = await sandbox.view(file.fileno(), "any")
    assert found.pop("own") == "words"
    assert set(found.values()) <= {"PermissionError", "OSError"}, found


async def test_a_library_that_takes_too_much_or_dies_harms_nobody(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "view.py"
    program.write_text("def view(descriptor, kind):\n    x = 'a' * 700_000_000\n    return {'x': len(x)}\n")
    monkeypatch.setattr("host.sandbox.client.PROGRAM", program)
    with program.open("rb") as file:
        assert "memory" in (await sandbox.view(file.fileno(), "any"))["fault"]
    program.write_text("import os\ndef view(descriptor, kind):\n    os.abort()\n")
    with program.open("rb") as file, pytest.raises(SandboxFault):
        await sandbox.view(file.fileno(), "any")


async def test_a_picture_may_have_as_many_bytes_as_there_is_room_for(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "noise.png"
    PIL.Image.frombytes("RGB", (300, 300), os.urandom(270_000)).save(path)
    with path.open("rb") as file:
        whole = await sandbox.view(file.fileno(), "picture", most=10**6)
        room = len(base64.b64decode(whole["data"]))
        assert await sandbox.view(file.fileno(), "picture", most=room) == whole
        assert "fault" in await sandbox.view(file.fileno(), "picture", most=room - 1)


async def test_a_picture_may_have_as_many_pixels_as_there_is_room_for(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = tmp_path / "view.py", tmp_path / "picture.png"
    program.write_text(PROGRAM.read_text().replace("100_000_000", "6_000"))
    monkeypatch.setattr("host.sandbox.client.PROGRAM", program)
    for height, outcome in ((20, {"data"}), (21, {"fault"})):
        path.write_bytes(png(300, height))
        with path.open("rb") as file:
            assert set(await sandbox.view(file.fileno(), "picture", most=10**6)) == outcome


async def test_who_looks_at_much_holds_up_nobody_else(place: Path, sandbox: Sandbox) -> None:
    (place / "ws/a.png").write_bytes(png(600, 600))
    seen: list[str] = []

    async def look(who: str) -> None:
        asking.set(who)
        with (place / "ws/a.png").open("rb") as file:
            await sandbox.view(file.fileno(), "picture", most=10**6)
        seen.append(who)

    async with anyio.create_task_group() as tasks:
        for who in (*["ann"] * 8, "ben"):
            tasks.start_soon(look, who)
    assert seen.index("ben") <= 2
