"""Names that are odd, too long, or only look like one that is there."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from host.tools.files_and_commands import SandboxToolset


async def told(tools: SandboxToolset, name: str, **arguments: object) -> str:
    result = await tools.call(name, arguments)
    return f"{'refused: ' if result.is_error else ''}{result.text}"


async def test_the_home_directory_is_the_same_for_all_tools(tools: SandboxToolset, ws: Path) -> None:
    await told(tools, "write_file", path="~/notes/x.txt", content="mine\n")
    assert "mine" in await told(tools, "exec", command="cat ~/notes/x.txt")
    assert "mine" in await told(tools, "exec", command="cat x.txt", cwd="~/notes")
    assert "mine" in await told(tools, "read_file", path="~/notes/x.txt")
    assert "x.txt  5" in await told(tools, "list_dir", path="~/notes")
    assert sorted(path.name for path in ws.iterdir()) == ["ok.txt", "sub"]


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (unicodedata.normalize("NFD", "café.txt"), "café.txt"),
        ("café.txt", unicodedata.normalize("NFD", "café.txt")),
        ("Shot 3.04\u202fPM.txt", "Shot 3.04 PM.txt"),
        ("a\u00a0b.txt", "a b.txt"),
        ("zero\u200bwidth.txt", "zerowidth.txt"),
        ("README.txt", "readme.txt"),
        ("Anna\u2019s \u201cplan\u201d.txt", 'Anna\'s "plan".txt'),
        ("2024\u20132025.txt", "2024-2025.txt"),
    ],
)
async def test_a_name_that_only_looks_alike_is_offered(
    tools: SandboxToolset, ws: Path, there: str, asked: str
) -> None:
    (ws / there).mkdir()
    (ws / there / there).write_text("x")
    for name, more in (
        ("read_file", {}),
        ("edit_file", {"old_text": "x", "new_text": "y"}),
        ("list_dir", {}),
    ):
        for path in (f"{asked}/{there}", f"{there}/{asked}"):
            answer = await told(tools, name, path=path, **more)
            assert "no such" in answer
            assert "; there is " in answer
            assert there in answer or there.encode("ascii", "backslashreplace").decode() in answer.replace(
                r"\u00", r"\x"
            )
    assert "there is" not in await told(tools, "read_file", path="absent")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("newdir/", "names a directory"),
        ("sub/", "names a directory"),
        ("a\\b.txt", "can't contain a backslash"),
        ("new\\dir/b.txt", "can't contain a backslash"),
        ("two\nlines", "can't contain line ends"),
        ("tab\there/x", "can't contain line ends"),
        ("~root/x", "is outside the workspace"),
        ("x" * 256, "the name is too long"),
        ("x" * 256 + "/y", "the name is too long"),
        ("x/" * 3000 + "y", "the name is too long"),
    ],
)
@pytest.mark.parametrize("name", ["write_file", "append_file"])
async def test_a_new_name_that_nobody_would_choose_is_refused_in_one_line(
    tools: SandboxToolset, ws: Path, name: str, path: str, why: str
) -> None:
    before = sorted(ws.rglob("*"))
    answer = await told(tools, name, path=path, content="x")
    assert answer.startswith("refused: ")
    assert why in answer
    assert "Errno" not in answer
    assert "\n" not in answer
    assert sorted(ws.rglob("*")) == before


@pytest.mark.parametrize("path", ["x/" * 2000 + "y", "/" * 3000 + "y", "./" * 2000 + "y"])
async def test_a_path_of_very_many_parts_is_only_missing(tools: SandboxToolset, path: str) -> None:
    answer = await told(tools, "read_file", path=path)
    assert answer.startswith("refused: ")
    assert "died" not in answer


async def test_a_new_name_beside_one_that_looks_alike_is_told(tools: SandboxToolset, ws: Path) -> None:
    (ws / "a\u00a0b").write_text("x")
    for name in ("write_file", "append_file"):
        path = "A b" if name == "write_file" else "a\u2009b"
        assert 'there is "a\\u00a0b"' in await told(tools, name, path=path, content="x")
        (ws / path).unlink()
    assert "there is" not in await told(tools, "append_file", path="a\u00a0b", content="x")


async def test_odd_names_that_are_there_can_be_used_and_fill_one_line(
    tools: SandboxToolset, ws: Path
) -> None:
    for name in ("two\nlines", "back\\slash", "trailing ", 'quo"te', "plain ü"):
        (ws / name).write_text("x")
        assert "replaced" in await told(tools, "edit_file", path=name, old_text="x", new_text="y")
        assert "end of file" in (await told(tools, "read_file", path=name)).splitlines()[0]
    listed = (await told(tools, "list_dir")).splitlines()[1:]
    assert listed == [
        '"back\\\\slash"  1',
        "ok.txt  5",
        "plain ü  1",
        '"quo\\"te"  1',
        "sub/",
        '"trailing "  1',
        '"two\\nlines"  1',
    ]


@pytest.mark.parametrize("name", ["read_file", "list_dir", "edit_file"])
@pytest.mark.parametrize("path", ["x" * 300, "loop", "ok.txt/below", "a\0b", "", "x" * 100_000])
async def test_a_path_that_leads_nowhere_is_a_sentence(
    tools: SandboxToolset, ws: Path, name: str, path: str
) -> None:
    (ws / "loop").symlink_to("loop")
    more = {"old_text": "a", "new_text": "b"} if name == "edit_file" else {}
    answer = await told(tools, name, path=path, **more)
    if (name, path) != ("list_dir", ""):
        assert answer.startswith("refused: ")
    assert "Errno" not in answer
    assert "Error" not in answer
    assert len(answer) < 5000
