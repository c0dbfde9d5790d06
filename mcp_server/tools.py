"""What each tool does. Every effect carries the owner that the identity fixed at birth."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types

from shared import jsons
from shared import tool_contract as contract
from shared.clock import iso, now_ms
from shared.errors import InvalidInput, NotFound
from shared.principals import OPERATOR, Reach, said_name
from shared.shapes import task_run_view, task_view
from shared.store.store import Store
from shared.task_values import Task
from shared.tasks import TaskService
from shared.untrusted import is_reserved, wrapped
from shared.values import Conversation, Page

CONVERSATION: Final = "picoclaw://conversation"
TASKS: Final = "picoclaw://tasks"
_TASK_LIMIT: Final = 1000

RESOURCES: Final = (
    types.Resource(
        uri=CONVERSATION,
        name="conversation",
        title="This conversation",
        description="The conversation this server acts for: its id, times, number of messages and state.",
        mime_type="application/json",
    ),
    types.Resource(
        uri=TASKS,
        name="tasks",
        title="Scheduled tasks",
        description=f"The scheduled tasks this conversation may see, at most {_TASK_LIMIT}.",
        mime_type="application/json",
    ),
)

Result = Mapping[str, Any]
DEFAULT_SENDER: Final = "assistant"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the conversation as it was at birth, and whether it is its principal's main one."""

    conversation: Conversation
    is_main: bool

    @property
    def is_operator(self) -> bool:
        """Return whether the conversation is the operator's."""
        return self.conversation.principal_id == OPERATOR

    @property
    def reach(self) -> Reach:
        """Return what it sees: its owner's rows, in the main role those of its principal."""
        own = self.conversation
        return Reach(None if self.is_main else own.owner_id, own.principal_id)


class Tools:
    """The tools of one session, and what it shows as resources."""

    def __init__(self, store: Store, tasks: TaskService, caller: Caller) -> None:
        self._store = store
        self._tasks = tasks
        self._caller = caller

    async def call(self, declaration: contract.ToolDeclaration, arguments: Mapping[str, Any]) -> Result:
        """Run a tool and return its result once it is durable; raises PicoError."""
        checked = declaration.parse(arguments)
        run: Callable[[Any], Awaitable[Result]] = getattr(self, f"_{declaration.name}")
        result = await run(checked)
        if not declaration.read_only:
            await self._store.durable()
        return result

    async def read(self, uri: str) -> str | None:
        """Return a resource as JSON text, None if there is no such resource; raises PicoError."""
        if uri == CONVERSATION:
            return await self._conversation()
        return await self._task_list() if uri == TASKS else None

    async def _conversation(self) -> str:
        found = await self._store.conversations.get(self._caller.conversation.id)
        if found is None:
            raise NotFound("The conversation has been deleted.")
        return jsons.dumps(
            {
                "conversation_id": said_name(found.principal_id, found.id),
                "session_id": found.session_id,
                "is_main": self._caller.is_main,
                "created_at": iso(found.created_at),
                "last_activity": iso(found.last_activity),
                "message_count": found.message_count,
                "status": "running" if found.running else "idle",
            }
        )

    async def _task_list(self) -> str:
        page = await self._tasks.list(self._caller.reach, limit=_TASK_LIMIT)
        return jsons.dumps(self._page(page, self._caller.reach))

    async def _send_message(self, arguments: contract.SendMessage) -> Result:
        source = self._caller.conversation
        target = source.owner_id
        if isinstance(arguments, contract.SendMessageAnywhere) and arguments.conversation_id:
            target = arguments.conversation_id
        if not arguments.text.strip():
            raise InvalidInput("text: must not be blank")
        sender = arguments.sender or DEFAULT_SENDER
        if sender != DEFAULT_SENDER and is_reserved(sender):
            raise InvalidInput(
                f"sender: {sender!r} is the host's own name or looks like it; leave sender out"
            )
        said = await self._store.outbound.add(source.id, target, arguments.text, sender, now_ms())
        return self._shown(
            {
                "id": said.id,
                "conversation_id": said.conversation_id,
                "sender": said.sender,
                "created_at": iso(said.created_at),
            }
        )

    async def _schedule_task(self, arguments: contract.ScheduleTask) -> Result:
        asked = arguments.model_dump(exclude={"target_conversation_id"})
        asked |= {name: asked[name] or None for name in ("timezone", "ends_at", "max_runs")}
        home = self._target(arguments.target_conversation_id)
        task = await self._tasks.schedule(reach=self._caller.reach, conversation_id=home, **asked)
        return self._shown(task_view(task))

    def _target(self, wanted: str) -> str:
        own = self._caller.conversation
        names = (own.owner_id, own.id)
        if wanted in ("", *names, *(said_name(own.principal_id, name) for name in names)):
            return own.owner_id
        if not self._caller.is_main:
            raise InvalidInput("target_conversation_id: only the main conversation may schedule for others")
        return wanted

    async def _list_tasks(self, arguments: contract.ListTasks) -> Result:
        reach = self._reach(arguments)
        page = await self._tasks.list(
            reach, status=arguments.status or None, limit=arguments.limit, cursor=arguments.cursor or None
        )
        return self._page(page, reach)

    async def _get_task(self, arguments: contract.TaskId) -> Result:
        reach = self._reach(arguments)
        return self._shown(task_view(await self._tasks.get(arguments.task_id, reach)), reach)

    async def _list_task_runs(self, arguments: contract.ListTaskRuns) -> Result:
        reach = self._reach(arguments)
        page = await self._tasks.runs(
            arguments.task_id, reach, limit=arguments.limit, cursor=arguments.cursor or None
        )
        runs = [self._shown(task_run_view(run), reach) for run in page.items]
        return {"runs": runs, "next_cursor": page.next_cursor}

    async def _pause_task(self, arguments: contract.TaskId) -> Result:
        return self._shown(task_view(await self._tasks.pause(arguments.task_id, self._caller.reach)))

    async def _resume_task(self, arguments: contract.TaskId) -> Result:
        return self._shown(task_view(await self._tasks.resume(arguments.task_id, self._caller.reach)))

    async def _update_task(self, arguments: contract.UpdateTask) -> Result:
        given = {name: value for name, value in arguments.model_dump(exclude={"task_id"}).items() if value}
        if given.pop("no_end", False):
            given = {"ends_at": None, "max_runs": None, **given}
        if not given:
            raise InvalidInput(f"Nothing to change: give at least one of {', '.join(_CHANGEABLE)}")
        task = await self._tasks.update(arguments.task_id, self._caller.reach, given)
        return self._shown(task_view(task))

    async def _cancel_task(self, arguments: contract.TaskId) -> Result:
        await self._tasks.cancel(arguments.task_id, self._caller.reach)
        return {"task_id": arguments.task_id, "cancelled": True}

    def _reach(self, arguments: contract.Arguments) -> Reach:
        """Return what is looked at; only the operator's main conversation can name another principal."""
        named: str = getattr(arguments, "principal_id", "")
        return Reach(principal_id=None if named == "*" else named) if named else self._caller.reach

    def _page(self, page: Page[Task], reach: Reach) -> Result:
        tasks = [self._shown(task_view(task), reach) for task in page.items]
        return {"tasks": tasks, "next_cursor": page.next_cursor}

    def _shown(self, view: Mapping[str, Any], reach: Reach | None = None) -> Result:
        """Return a view as the caller may read it: names as it says them, other people's words marked."""
        own = self._caller.conversation.principal_id
        shown = {**view, **{key: said_name(own, view[key]) for key in _NAMES if view.get(key)}}
        if reach is not None and reach.principal_id != own:
            words = {key: view[key] for key in _WORDS if view.get(key)}
            said = {key: each if isinstance(each, str) else jsons.dumps(each) for key, each in words.items()}
            shown |= {key: wrapped(text, view["id"]) for key, text in said.items()}
        return shown


_NAMES: Final = ("id", "task_id", "conversation_id")
_WORDS: Final = ("prompt", "result", "error", "output_schema", "output")
"""What people wrote or an agent answered them, in tasks and their runs."""

_CHANGEABLE: Final = tuple(name for name in contract.UpdateTask.model_fields if name != "task_id")
