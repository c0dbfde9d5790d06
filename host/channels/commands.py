"""What people can ask of the host itself, in any chat: /start, /new, /stop, /tasks, and /main for owners."""

from __future__ import annotations

from typing import Final

from host.channels.messages import Stored
from host.channels.rules import Rules, sender_of
from host.runs.service import RunService
from shared.clock import now_ms
from shared.errors import NotRunning
from shared.principals import Reach
from shared.store.store import Store
from shared.task_values import Task
from shared.task_views import task_view
from shared.tasks import TaskService

MOST_TASKS: Final = 20
LONGEST_PROMPT: Final = 80

GREETING: Final = """I am {name}. Write to me, and I answer here.

/new begins a new conversation
/stop stops what I am doing
/tasks lists what is scheduled in this conversation"""
OWNERS_GREETING: Final = "\n/main enters the main conversation, or leaves it"

NEW: Final = "This is a new conversation. What was scheduled in the one before goes on."
NOT_NEW: Final = "The main conversation goes on and on. /main leaves it."
STOPPING: Final = "Stopping."
NOTHING_RUNS: Final = "Nothing is running."
NO_TASKS: Final = "Nothing is scheduled in this conversation."
ENTERED: Final = "You are in the main conversation now. /main leaves it."
LEFT: Final = "You have left the main conversation."
OWNERS_ONLY: Final = "Only its owners may use the main conversation, and only in a private chat."


class Commands:
    """Answers the commands of one channel's chats."""

    def __init__(self, store: Store, runs: RunService, tasks: TaskService, rules: Rules) -> None:
        self._runs = runs
        self._task_service = tasks
        self._rules = rules
        self._book = store.channels

    async def home(self, message: Stored) -> str:
        """Return the conversation that the chat is in, and may be in."""
        trusted = self._rules.trusts(message.chat)
        conversation_id = await self._book.enter(message.chat, now_ms(), trusted=trusted)
        if conversation_id == self._rules.main_of(message.chat) and not self._is_owner(message):
            await self._book.leave(message.chat.channel, message.chat.id, conversation_id)
            conversation_id = await self._book.enter(message.chat, now_ms(), trusted=trusted)
        return conversation_id

    async def answer(self, message: Stored, conversation_id: str) -> str | None:
        """Do what a command asks for and return what to say; None if the message is none of ours."""
        match message.command:
            case "/start" | "/help":
                return self._greeting(message)
            case "/new":
                return await self._new(message, conversation_id)
            case "/stop":
                return await self._stop(conversation_id)
            case "/tasks":
                return await self._tasks(message, conversation_id)
            case "/main":
                return await self._main(message, conversation_id)
        return None

    def _greeting(self, message: Stored) -> str:
        greeting = GREETING.format(name=self._runs.limits.assistant_name)
        return greeting + OWNERS_GREETING if self._is_owner(message) else greeting

    async def _new(self, message: Stored, conversation_id: str) -> str:
        if conversation_id == self._rules.main_of(message.chat):
            return NOT_NEW
        await self._book.begin_anew(message.chat, now_ms(), trusted=self._rules.trusts(message.chat))
        return NEW

    async def _stop(self, conversation_id: str) -> str:
        try:
            await self._runs.cancel(conversation_id)
        except NotRunning:
            return NOTHING_RUNS
        return STOPPING

    async def _tasks(self, message: Stored, conversation_id: str) -> str:
        only = None if conversation_id == self._rules.main_of(message.chat) else conversation_id
        page = await self._task_service.list(Reach(only, message.chat.principal_id), limit=MOST_TASKS)
        lines = [_line(task) for task in page.items]
        if page.next_cursor is not None:
            lines.append("…")
        return "\n".join(lines) or NO_TASKS

    async def _main(self, message: Stored, conversation_id: str) -> str:
        main = self._rules.main_of(message.chat)
        if not self._is_owner(message):
            return OWNERS_ONLY
        if conversation_id == main:
            await self._book.leave(message.chat.channel, message.chat.id, main)
            return LEFT
        await self._book.join(message.chat, main, now_ms())
        return ENTERED

    def _is_owner(self, message: Stored) -> bool:
        return message.chat.private and self._rules.owns(sender_of(message.chat))


def _line(task: Task) -> str:
    prompt = task.prompt if len(task.prompt) <= LONGEST_PROMPT else f"{task.prompt[:LONGEST_PROMPT]}…"
    view = task_view(task)
    when = f"next {view['next_run_local']}" if view["next_run_local"] else "no next run"
    status = "overdue" if view["overdue"] else task.status.value
    one_line = " ".join(prompt.split())
    return f"- {one_line} ({task.schedule_type} {task.schedule_value}, {status}, {when})"
