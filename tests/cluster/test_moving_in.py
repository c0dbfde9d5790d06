"""Moving in from elsewhere into a database: the same rows as in a store of one's own, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import process
from tests.moving_in import homes
from tests.postgres import fresh_database

VOLATILE = {"session_id", "number", "seq_number"}
"""What each store gives out by itself."""


@pytest.fixture
def fresh() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def run(home: Path, url: str, *arguments: str, code: int = 0) -> str:
    extra = {"DATABASE_URL": url} if url else {}
    done = process(home, *arguments, TZ="Europe/Berlin", **extra)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def moved(home: Path, url: str, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(home, url, "import", *arguments, "--json"))
    return found


def lines_of(home: Path, url: str) -> list[str]:
    """What is stored; a database is copied to a volume first."""
    if not url:
        return run(home, "", "store", "export").splitlines()
    copy = ("--store-dir", str(home / f"copy-{len(list(home.glob('copy-*')))}"))
    run(home, url, "store", "migrate", "--to", "sqlite", *copy)
    return run(home, url, "store", "export", *copy).splitlines()


def exported(home: Path, url: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines_of(home, url):
        row = {name: value for name, value in json.loads(line).items() if name not in VOLATILE}
        table = row.pop("table")
        if table == "scheduled_tasks":  # a task that tells no time was made when it moved in
            del row["created_at"], row["updated_at"]
        rows.setdefault(table, []).append(row)
    return {table: sorted(each, key=json.dumps) for table, each in rows.items()}


MOVED = ("messages", "scheduled_tasks", "task_runs", "channel_chats")


@pytest.mark.parametrize("system", ["breakcafe", "sipeed"])
def test_a_home_moves_in_as_into_a_store_of_ones_own_and_a_second_run_takes_what_is_new(
    fresh: str, tmp_path: Path, system: str
) -> None:
    old = getattr(homes, system)(tmp_path / "old")
    first = moved(tmp_path / "shared", fresh, system, str(old))
    assert first["new"] == moved(tmp_path / "alone", "", system, str(old))["new"]
    shared, alone = exported(tmp_path / "shared", fresh), exported(tmp_path / "alone", "")
    for table in MOVED:
        assert shared.get(table) == alone.get(table), table
    assert moved(tmp_path / "shared", fresh, system, str(old))["new"] == {"files": 0}
    if system == "breakcafe":
        homes.say(old, 5, "user", "and a fish", "anna")
        assert moved(tmp_path / "shared", fresh, system, str(old))["new"] == {"messages": 1, "files": 0}
        (conversation,) = (
            row for row in exported(tmp_path / "shared", fresh)["conversations"] if row["id"] == "conv-1"
        )
        assert conversation["message_count"] == 6


def test_an_export_of_a_store_moves_into_a_database_and_back(fresh: str, tmp_path: Path) -> None:
    old = homes.breakcafe(tmp_path / "old")
    moved(tmp_path / "alone", "", "breakcafe", str(old))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines_of(tmp_path / "alone", "")))
    moved(tmp_path / "shared", fresh, "picoclaw", str(file))
    assert moved(tmp_path / "shared", fresh, "picoclaw", str(file))["new"] == {"files": 0}
    file.write_text("\n".join(lines_of(tmp_path / "shared", fresh)))
    moved(tmp_path / "back", "", "picoclaw", str(file))
    before, after = exported(tmp_path / "alone", ""), exported(tmp_path / "back", "")
    for table in MOVED:
        assert before.get(table) == after.get(table), table


@pytest.mark.parametrize("change", ["prompt = x'00ff'", "last_run = 'never'", "created_at = '9'"])
def test_a_broken_record_leaves_nothing_half_there(fresh: str, tmp_path: Path, change: str) -> None:
    old = homes.breakcafe(tmp_path / "old")
    homes.execute(old, f"UPDATE scheduled_tasks SET {change} WHERE id = 't-cron'")
    said = run(tmp_path / "shared", fresh, "import", "breakcafe", str(old), code=1)
    assert "picoclaw: " in said
    assert "conversations" not in exported(tmp_path / "shared", fresh)


def test_a_row_that_the_database_refuses_leaves_nothing_half_there(fresh: str, tmp_path: Path) -> None:
    moved(tmp_path / "alone", "", "breakcafe", str(homes.breakcafe(tmp_path / "old")))
    rows = lines_of(tmp_path / "alone", "")
    file = tmp_path / "rows.jsonl"
    for table, column, value in (
        ("messages", "created_at", "soon"),
        ("messages", "conversation_id", "conv-of-nobody"),
        ("scheduled_tasks", "no_such_column", 1),
    ):
        lines = [json.loads(row) for row in rows]
        next(line for line in lines if line["table"] == table)[column] = value
        file.write_text("\n".join(map(json.dumps, lines)))
        run(tmp_path / "shared", fresh, "import", "picoclaw", str(file), code=1)
        assert "conversations" not in exported(tmp_path / "shared", fresh), column
