"""The heartbeat: every few minutes the agent looks at MEMORY_DIR/HEARTBEAT.md and speaks only if it must.

It is an ordinary isolated task of the main conversation under a fixed id, so slots, claims, sandbox, budget,
run log and what becomes of its answer are those of every task. One thing differs: its prompt is the file as
it is at that moment.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from host.ports import Sandbox, SandboxFault, Trust, Workspace
from host.sandbox.client import HOST
from shared.errors import Duplicate, NotFound
from shared.principals import OPERATOR, Reach
from shared.settings import Settings
from shared.store.sql.task_outcomes import ALL_QUIET
from shared.store.store import Store
from shared.task_edits import LONGEST_PROMPT
from shared.task_values import Task
from shared.tasks import TaskService

TASK_ID: Final = "task-heartbeat"
FILE: Final = "HEARTBEAT.md"
PROMPT: Final = (
    f"This is a heartbeat. Below is {FILE}. Do what it asks for now, if anything. "
    f"If there is nothing people should hear about, answer with {ALL_QUIET} and nothing else."
)

_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_NOTHING: Final = re.compile(r"#.*|//.*|\[//\]:.*|[-*+_=>`~ ]*|(?:[-*+]|\d+[.)])(?: \[[ xX]?\])?")

ReadFile = Callable[[str], Awaitable[str | None]]
"""Reads a file of the workspace through the sandbox; None when it is absent."""


class Heartbeat:
    """Keeps the heartbeat's task and words its prompt; leaves all other tasks alone."""

    def __init__(self, tasks: TaskService, read: ReadFile, *, conversation_id: str, minutes: int) -> None:
        self._tasks = tasks
        self._read = read
        self._conversation_id = conversation_id
        self._own = Reach(conversation_id, OPERATOR)
        self._minutes = minutes

    async def arrange(self, *, enabled: bool) -> None:
        """Make, adjust or remove the task, as the settings say; called once at the host's start."""
        if not enabled:
            await self._remove()
            return
        every = str(self._minutes * 60_000)
        try:
            # The same interval again leaves the next slot where it is, so a restart is no extra heartbeat.
            await self._tasks.update(TASK_ID, self._own, {"schedule_value": every})
        except NotFound:
            # Another host that starts at the same moment may have made it just now.
            with suppress(Duplicate):
                await self._make(every)

    async def _make(self, every: str) -> None:
        await self._tasks.schedule(
            reach=self._own,
            conversation_id=self._conversation_id,
            prompt=PROMPT,
            schedule_type="interval",
            schedule_value=every,
            context_mode="isolated",
            catch_up="skip",
            id=TASK_ID,
        )

    def owns(self, task: Task) -> bool:
        """Return whether this is the heartbeat's task."""
        return task.id == TASK_ID and task.conversation_id == self._conversation_id

    async def prompt(self, task: Task) -> str:
        """Return what the agent is told: the task's prompt, and for the heartbeat the file with it."""
        if not self.owns(task):
            return task.prompt
        content = await self._read(FILE) or ""
        return f"{task.prompt}\n\n{content}"[:LONGEST_PROMPT] if asks_for_something(content) else task.prompt

    def answer(self, task: Task, prompt: str) -> str | None:
        """Return what is answered without asking the model: a file without words asks for nothing."""
        return ALL_QUIET if self.owns(task) and prompt == task.prompt else None

    async def _remove(self) -> None:
        try:
            await self._tasks.cancel(TASK_ID, self._own)
        except NotFound:
            return


async def arranged(store: Store, tasks: TaskService, sandbox: Sandbox, settings: Settings) -> Heartbeat:
    """Return the heartbeat of the settings, its task as they want it."""

    async def read(path: str) -> str | None:
        asked = {"path": path, "limit": LONGEST_PROMPT}
        try:
            answer = await sandbox.file(Workspace(HOST, sandbox.root, Trust.MAIN), "read_text", asked)
        except SandboxFault:
            return None
        return str(answer.get("text"))

    heartbeat = Heartbeat(
        tasks,
        read,
        conversation_id=settings.main_conversation_id,
        minutes=settings.heartbeat.interval,
    )
    await heartbeat.arrange(enabled=settings.heartbeat.enabled)
    await store.durable()
    return heartbeat


def asks_for_something(content: str) -> bool:
    """Return whether a Markdown file has more than comments, headings, rules and points without a text."""
    lines = _COMMENT.sub("", content.replace("\ufeff", "")).splitlines()
    return any(not _NOTHING.fullmatch(line.strip()) for line in lines)
