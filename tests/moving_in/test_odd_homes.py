"""Whatever a home holds: it moves in whole, or the file is named and nothing is there."""

from __future__ import annotations

import copy
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.cli.moving_in import place_settings
from host.moving_in import breakcafe, sipeed
from host.moving_in.arrivals import Arrivals, Broken, read_export
from shared.settings import load
from tests.moving_in import homes

NOW = 1_800_000_000_000
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59+00:00", "\x00", "telegram", "enc://x"]),
    st.lists(st.integers() | st.none(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers() | st.none(), max_size=2),
)
FILES = (
    "config.json",
    "workspace/cron/jobs.json",
    "workspace/sessions/sk_v1_aa.meta.json",
    "workspace/sessions/agent_main_main.json",
    "workspace/sessions/sk_v1_aa.jsonl",
)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    for key, child in (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield from places(child, (*above, key))


def with_odd(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    return tree


def whole_or_named(read: Callable[[], Arrivals], home: Path) -> None:
    """What moves in has its conversations, and settings that a start takes; what doesn't is named."""
    try:
        arrivals = read()
    except Broken as error:
        said = str(error)
        assert str(home) in said
        return
    known = {row["id"] for row in arrivals.rows.get("conversations", ())}
    for table in ("messages", "scheduled_tasks"):
        assert {row["conversation_id"] for row in arrivals.rows.get(table, ())} <= known
    own = {"HOME": str(home), "PICOCLAW_HOME": str(home / "own")}
    place_settings(arrivals, load(own))
    load(own)


@relaxed
@given(st.data())
def test_one_odd_value_anywhere_in_a_home_of_sipeed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = homes.sipeed(Path(folder) / "old")
        path = home / data.draw(st.sampled_from(FILES))
        whole = [json.loads(line) for line in path.read_text().splitlines()]
        tree = whole if path.suffix == ".jsonl" else whole[0]
        odd = with_odd(tree, data.draw(st.sampled_from(list(places(tree)))), data.draw(ODD))
        rows = odd if path.suffix == ".jsonl" and isinstance(odd, list) else [odd]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        whole_or_named(lambda: sipeed.read(home, "Europe/Berlin", "main", NOW), Path(folder))


CELLS = {
    "conversations": ("id", "created_at", "last_activity"),
    "messages": ("conversation_id", "role", "sender", "sender_name", "content", "created_at"),
    "outbound_messages": ("conversation_id", "text", "created_at", "delivered"),
    "scheduled_tasks": (
        "conversation_id", "prompt", "schedule_type", "schedule_value", "next_run", "last_run", "status",
        "created_at", "context_mode",
    ),
    "task_run_logs": ("task_id", "run_at", "duration_ms", "status", "result"),
}  # fmt: skip
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=4)
)


@relaxed
@given(st.sampled_from([(table, column) for table, names in CELLS.items() for column in names]), VALUES)
def test_one_odd_cell_anywhere_in_a_database_of_breakcafe(cell: tuple[str, str], value: Any) -> None:
    table, column = cell
    with tempfile.TemporaryDirectory() as folder:
        home = homes.breakcafe(Path(folder) / "old")
        try:
            homes.execute(home, f"UPDATE {table} SET {column} = ?", value)
        except (sqlite3.IntegrityError, UnicodeEncodeError):
            return
        whole_or_named(lambda: breakcafe.read(home, "Europe/Berlin", NOW), Path(folder))


@pytest.mark.parametrize("line", ['{"table": 7}', '{"table": {}}', "[]", '{"table": "messages", "a b": 1}'])
def test_an_export_with_an_odd_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(Broken, match=r"rows\.jsonl"):
        read_export(tmp_path / "rows.jsonl")


def test_the_workspace_may_lie_elsewhere(tmp_path: Path) -> None:
    home = homes.sipeed(tmp_path / "old")
    (home / "workspace").rename(tmp_path / "elsewhere")
    config = json.loads((home / "config.json").read_text())
    config["agents"]["defaults"]["workspace"] = str(tmp_path / "elsewhere")
    (home / "config.json").write_text(json.dumps(config))
    arrivals = sipeed.read(home, "UTC", "main", NOW)
    assert len(arrivals.rows["conversations"]) == 3
    assert "AGENT.md" in arrivals.files


def test_sealed_secrets_move_in_as_they_are(tmp_path: Path) -> None:
    home = homes.sipeed(tmp_path / "old")
    (home / ".security.yml").write_text(
        'model_list:\n  "sonnet:0":\n    api_keys: ["enc://AAAA"]\n'
        "channel_list:\n  telegram:\n    settings:\n      token: enc://BBBB\n"
    )
    arrivals = sipeed.read(home, "UTC", "main", NOW)
    assert arrivals.secrets["model_list"]["sonnet:0"]["api_keys"] == ["enc://AAAA"]
    assert arrivals.secrets["channels"]["telegram"]["token"] == "enc://BBBB"
