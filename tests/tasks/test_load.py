"""The load promise in short: each slot once whoever claims it, and a claim that stays cheap."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tasks import behind_busy_conversations, many_processes, one_process


async def test_eight_callers_run_each_due_slot_once_and_cheaply(tmp_path: Path) -> None:
    figures = await one_process(tmp_path / "store.db", tasks=20_000, due=400, callers=8)

    assert figures["claim, 8 caller(s), one process, median ms"] < 1


@pytest.mark.processes
def test_several_processes_run_each_due_slot_once(tmp_path: Path) -> None:
    figures = many_processes(tmp_path / "store.db", tasks=2000, due=300, callers=3)

    assert len(figures) == 4


async def test_waiting_group_tasks_are_not_looked_at_again_and_again(tmp_path: Path) -> None:
    figures = await behind_busy_conversations(tmp_path / "store.db", tasks=5000, busy=20)

    assert figures["later claims behind 2,000 waiting group tasks, median ms"] < 1
