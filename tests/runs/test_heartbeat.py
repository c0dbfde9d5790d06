"""The heartbeat's task and its prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.runs.scheduler import PROMPT, TASK_ID, Heartbeat
from shared.clock import now_ms
from shared.errors import NotFound
from shared.principals import EVERYTHING, Reach
from shared.store.sqlite.store import SqliteStore
from shared.task_values import Task
from shared.tasks import TaskService

MAIN = "main"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store.db")
    await opened.conversations.create(MAIN, now_ms())
    yield opened
    await opened.close()


@pytest.fixture
async def tasks(store: SqliteStore) -> TaskService:
    return TaskService(store, default_timezone="UTC")


def beating(tasks: TaskService, minutes: int = 30, file: str | None = None) -> Heartbeat:
    async def read(name: str) -> str | None:
        assert name == "HEARTBEAT.md"
        return file

    return Heartbeat(tasks, read, conversation_id=MAIN, minutes=minutes)


async def arranged(store: SqliteStore, tasks: TaskService) -> tuple[Heartbeat, Task]:
    heartbeat = beating(tasks)
    await heartbeat.arrange(enabled=True)
    return heartbeat, await tasks.get(TASK_ID, Reach(MAIN))


async def test_it_is_an_isolated_task_of_the_main_conversation(
    store: SqliteStore, tasks: TaskService
) -> None:
    _, task = await arranged(store, tasks)

    assert (task.conversation_id, task.context_mode, task.catch_up) == (MAIN, "isolated", "skip")
    assert (task.schedule_type, task.schedule_value) == ("interval", "1800000")


async def test_a_restart_is_no_extra_heartbeat(store: SqliteStore, tasks: TaskService) -> None:
    heartbeat, task = await arranged(store, tasks)

    await heartbeat.arrange(enabled=True)

    assert await tasks.get(TASK_ID, Reach(MAIN)) == task


async def test_a_new_interval_is_taken_over(store: SqliteStore, tasks: TaskService) -> None:
    await arranged(store, tasks)

    await beating(tasks, minutes=5).arrange(enabled=True)

    assert (await tasks.get(TASK_ID, Reach(MAIN))).schedule_value == "300000"


async def test_switched_off_it_is_gone(store: SqliteStore, tasks: TaskService) -> None:
    heartbeat, _ = await arranged(store, tasks)

    await heartbeat.arrange(enabled=False)
    await heartbeat.arrange(enabled=False)

    with pytest.raises(NotFound):
        await tasks.get(TASK_ID, Reach(MAIN))


async def test_its_prompt_is_the_file_as_it_is_now(store: SqliteStore, tasks: TaskService) -> None:
    _, task = await arranged(store, tasks)

    assert await beating(tasks, file="Water the plants").prompt(task) == f"{PROMPT}\n\nWater the plants"


@pytest.mark.parametrize(
    ("file", "asks"),
    [
        (None, False),
        ("", False),
        (" \n\ufeff\n", False),
        ("# Heartbeat\n\n<!-- Write here what\nto look at. -->\n---\n- [ ]\n* \n1.\n", False),
        ("\ufeff<!-- never closed\nCheck the mail", False),
        ("[//]: # (a note)\n// another\n```\n```\n> \n====", False),
        ("# Heartbeat\n- [ ] Check the mail", True),
        ("<!-- old --> Check the mail <!-- new -->", True),
        ("1. Water the plants", True),
        ("植物に水", True),
        ("?", True),
    ],
)
async def test_a_file_without_words_is_answered_without_the_model(
    store: SqliteStore, tasks: TaskService, file: str | None, asks: bool
) -> None:
    _, task = await arranged(store, tasks)
    heartbeat = beating(tasks, file=file)
    prompt = await heartbeat.prompt(task)
    assert heartbeat.answer(task, prompt) == (None if asks else "HEARTBEAT_OK")


async def test_other_tasks_are_left_alone(store: SqliteStore, tasks: TaskService) -> None:
    heartbeat, _ = await arranged(store, tasks)
    other = await tasks.schedule(
        reach=EVERYTHING, conversation_id=MAIN, prompt="p", schedule_type="interval", schedule_value="60000"
    )

    assert await heartbeat.prompt(other) == "p"
    assert heartbeat.answer(other, "p") is None
