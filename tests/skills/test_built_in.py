"""The skills that come with the program, by doing what they say in the real sandbox."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from host.skills.catalogue import SHIPPED, BadSkill, body, parsed
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset

TABLE = "tabular-data/table.py"
CHECK = "make-a-skill/check.py"
NAMES = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())


@pytest.fixture
async def tools(ws: Path, place: Path) -> AsyncIterator[SandboxToolset]:
    # Not where the tests run from: that may be closed to the sandbox's own uid.
    shelf = place / "built_in"
    shutil.copytree(SHIPPED, shelf)
    async with Sandbox(SandboxPolicy(workspace=ws, skill_paths=(shelf,))) as running:
        yield toolset(running, "conv-skills")


async def run(tools: SandboxToolset, place: Path, command: str, *, fails: bool = False) -> str:
    line = command.replace("$SKILL/", f"{place}/built_in/")
    with anyio.fail_after(60):
        result = await tools.call("exec", {"command": line})
    assert result.is_error is fails, result.text
    return result.text


def test_there_are_some_and_all_are_well_formed() -> None:
    assert NAMES == ["make-a-skill", "tabular-data"]
    for name in NAMES:
        text = (SHIPPED / name / "SKILL.md").read_text()
        assert parsed(name, text).name == name
        assert body(text).startswith("# ")
        assert text.count("\n") < 500


ORDERS = "date;city;amount\n2026-01-02;Bern;10\n2026-01-03;Bern;20.5\n2026-02-01;Zürich;7\n2026-02-02;;\n"


async def test_a_table_is_described(tools: SandboxToolset, ws: Path, place: Path) -> None:
    (ws / "2026 orders.csv").write_bytes(ORDERS.encode("cp1252"))
    said = await run(tools, place, f"python3 $SKILL/{TABLE} describe '2026 orders.csv'")
    assert "table t2026_orders, 4 rows, 3 columns" in said
    assert "| amount | real | 1 | 3 | 7 | 20.5 | 10 |" in said
    assert "| city | text | 1 | 2 | Bern | Zürich | Bern |" in said


async def test_a_question_is_answered_and_the_answer_written(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    (ws / "orders.csv").write_text(ORDERS)
    (ws / "people.json").write_text(json.dumps([{"city": "Bern", "tags": ["x"]}, {"city": "Zürich", "n": 1}]))
    sql = (
        "select o.city, count(*) as orders, round(sum(amount), 2) as total, median(amount) as m "
        "from orders o join people p on p.city = o.city group by o.city order by total desc"
    )
    said = await run(tools, place, f'python3 $SKILL/{TABLE} query "{sql}" orders.csv people.json')
    assert "| Bern | 2 | 30.5 | 15.25 |\n| Zürich | 1 | 7 | 7 |" in said
    said = await run(
        tools, place, f'python3 $SKILL/{TABLE} query "{sql}" orders.csv people.json --out r.jsonl'
    )
    assert "2 rows written to r.jsonl" in said
    first = json.loads((ws / "r.jsonl").read_text().splitlines()[0])
    assert first == {"city": "Bern", "orders": 2, "total": 30.5, "m": 15.25}


async def test_codes_keep_their_zeros_and_odd_tables_are_read(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    (ws / "odd.tsv").write_text("zip\tA\ta\t\n007\t1\t2\t3\t4\n100\t5\n\n")
    said = await run(tools, place, f'python3 $SKILL/{TABLE} query "select * from odd" odd.tsv')
    assert "| zip | A | a_2 | column_4 | column_5 |" in said
    assert "| 007 | 1 | 2 | 3 | 4 |\n| 100 | 5 |  |  |  |" in said


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ('query "select nothing from" a.csv', "table.py: near"),
        ('query "drop table a" a.csv', "the SQL has no answer"),
        ("describe missing.csv", "No such file"),
        ("describe empty.csv", "the file is empty"),
        ("describe bad.json", "table.py: Expecting"),
    ],
)
async def test_mistakes_are_a_sentence(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
    command: str,
    said: str,
) -> None:
    for name, text in (("a.csv", "x\n1\n"), ("empty.csv", ""), ("bad.json", "{")):
        (ws / name).write_text(text)
    answer = await run(tools, place, f"python3 $SKILL/{TABLE} {command}", fails=True)
    assert said in answer
    assert "Traceback" not in answer


async def test_the_example_of_a_skill_passes_its_own_check(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    [example] = re.findall(
        r"```markdown\n(.*?)```", (SHIPPED / "make-a-skill" / "SKILL.md").read_text(), re.DOTALL
    )
    text = "\n".join(line[3:] for line in example.splitlines())
    await tools.call("write_file", {"path": "skills/weekly-report/SKILL.md", "content": text})
    said = await run(tools, place, f"python3 $SKILL/{CHECK} skills/weekly-report")
    assert "ok: the skill can be loaded" in said
    assert parsed("weekly-report", text).name == "weekly-report"


BROKEN = [
    ("no-head", "just text"),
    ("wrong-name", "---\nname: other\ndescription: does many things, use it whenever you like to\n---\nx"),
    ("Upper", "---\nname: Upper\ndescription: does many things, use it whenever you like to\n---\nx"),
    ("nothing", "---\nname: nothing\n---\nx"),
    ("too-long", f"---\nname: too-long\ndescription: {'x' * 1025}\n---\nx"),
    ("huge-head", f"---\nname: huge-head\ndescription: {'y' * 100}\nmore: {'x' * 9000}\n---\nx"),
]


async def test_what_the_host_would_not_load_the_check_refuses(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    for name, text in BROKEN:
        await tools.call("write_file", {"path": f"skills/{name}/SKILL.md", "content": text})
        with pytest.raises(BadSkill):
            parsed(name, text)
        assert "- " in await run(tools, place, f"python3 $SKILL/{CHECK} skills/{name}", fails=True)


async def test_a_description_with_a_colon_passes_the_check_once_it_is_quoted(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    said = "Write the report: use it when somebody asks in #sales, or on #support"
    written = {"quoted": f'"{said}"', "block": f">-\n  {said}", "plain": said}
    for name, description in written.items():
        text = f"---\nname: {name}\ndescription: {description}\n---\nWrite it."
        await tools.call("write_file", {"path": f"skills/{name}/SKILL.md", "content": text})
        answer = await run(tools, place, f"python3 $SKILL/{CHECK} skills/{name}", fails=name == "plain")
        assert ("put the whole text in double quotes" in answer) is (name == "plain")
        assert parsed(name, text).description == said


async def test_the_check_finds_files_that_are_not_there(
    tools: SandboxToolset,
    ws: Path,
    place: Path,
) -> None:
    text = (
        "---\nname: linked\ndescription: does many things, use it whenever you like to\n---\n"
        "Read [this](reference.md), see https://example.com and [that](https://example.com/x)."
    )
    await tools.call("write_file", {"path": "skills/linked/SKILL.md", "content": text})
    answer = await run(tools, place, f"python3 $SKILL/{CHECK} skills/linked", fails=True)
    assert "it names reference.md, which does not exist" in answer
    assert answer.count("\n- ") == 0
