"""The two resources: the own conversation, and its tasks."""

from __future__ import annotations

from typing import Final

import mcp_types as types

from mcp_server.tools import Caller
from shared import jsons
from shared.clock import iso
from shared.errors import NotFound
from shared.store.store import Store
from shared.tasks import TaskService, task_view

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


class Resources:
    """Reads resources for one caller."""

    def __init__(self, store: Store, tasks: TaskService, caller: Caller) -> None:
        self._store = store
        self._tasks = tasks
        self._caller = caller

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
                "conversation_id": found.id,
                "session_id": found.session_id,
                "is_main": self._caller.is_main,
                "created_at": iso(found.created_at),
                "last_activity": iso(found.last_activity),
                "message_count": found.message_count,
                "status": "running" if found.running else "idle",
            }
        )

    async def _task_list(self) -> str:
        page = await self._tasks.list(self._caller.owner, limit=_TASK_LIMIT)
        return jsons.dumps(
            {"tasks": [task_view(task) for task in page.items], "next_cursor": page.next_cursor}
        )
