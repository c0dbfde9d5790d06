from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.cli.runs import BAR_WIDTH, bar
from tests.cli.running import TOKEN, ContractServer, contract_server, picoclaw


def row(day: str, tokens: int, conversation_id: str | None = None) -> dict[str, Any]:
    return {"day": day, "conversation_id": conversation_id, "runs": 2, "tokens": tokens, "dollars": 1.5}


@pytest.fixture
def server() -> Iterator[ContractServer]:
    with contract_server() as state:
        yield state


def shown(server: ContractServer, home: Path, path: str, rows: list[Any], *options: str) -> str:
    server.answers["GET", path] = (200, {"usage": rows, "next_cursor": None})
    ended = picoclaw(home, "usage", *options, PICOCLAW_URL=server.url, API_TOKEN=TOKEN)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_each_day_has_a_bar_in_proportion(server: ContractServer, tmp_path: Path) -> None:
    rows = [row("2026-02-02", 4000), row("2026-02-01", 1000)]
    text = shown(server, tmp_path, "/usage?by=day&limit=14", rows)
    first, second = text.splitlines()[1:3]
    assert first.split() == ["2026-02-02", "█" * BAR_WIDTH, "4,000", "$1.50", "2"]
    assert second.count("█") == BAR_WIDTH // 4


def test_conversations_are_named(server: ContractServer, tmp_path: Path) -> None:
    path = "/usage?by=conversation&limit=3&conversation_id=conv-1"
    options = ("--by", "conversation", "--last", "3", "--conversation", "conv-1")
    assert "conv-1" in shown(server, tmp_path, path, [row("2026-02-02", 5, "conv-1")], *options)


def test_json_is_what_the_host_said(server: ContractServer, tmp_path: Path) -> None:
    rows = [row("2026-02-02", 5)]
    assert json.loads(shown(server, tmp_path, "/usage?by=day&limit=14", rows, "--json")) == rows


def test_nothing_used_is_a_sentence(server: ContractServer, tmp_path: Path) -> None:
    assert shown(server, tmp_path, "/usage?by=day&limit=14", []).strip() == "Nothing used yet."


@pytest.mark.parametrize(
    ("value", "most", "width"), [(0, 10, 0), (1, 10**9, 1), (10, 10, BAR_WIDTH), (5, 10, BAR_WIDTH // 2)]
)
def test_a_bar_is_as_long_as_its_share(value: int, most: int, width: int) -> None:
    assert len(bar(value, most)) == width
