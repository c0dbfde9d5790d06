"""How many tasks a conversation and a principal may have; completed ones make room for new ones."""

from __future__ import annotations

from typing import Final

from shared.errors import Conflict
from shared.store.contract import Tx

# The operator has no limit of its own. Whose terms they are, a tool server's role can't read.
QUOTAS: Final = """SELECT c.principal_id, CASE WHEN c.principal_id <> 'operator'
        THEN task_limit(c.principal_id) END AS limit_of_principal, (SELECT count(*) FROM
            (SELECT 1 FROM scheduled_tasks WHERE conversation_id = $1 LIMIT $2) AS own) AS tasks
    FROM conversations AS c WHERE c.id = $1"""


async def keep(tx: Tx, conversation_id: str, quota: int) -> None:
    """Make sure that one more task fits, of its conversation and of its principal; raises Conflict."""
    await tx.lock("quota", conversation_id)
    found = await tx.fetchrow(QUOTAS, conversation_id, quota)
    if found is None:
        return
    if found["tasks"] >= quota:
        await _make_room(tx, conversation_id, found["tasks"])
    if found["limit_of_principal"] is not None:
        await _keep_of_principal(tx, found["principal_id"], found["limit_of_principal"])


async def _make_room(tx: Tx, conversation_id: str, count: int) -> None:
    removed = await tx.fetchval(
        """DELETE FROM scheduled_tasks WHERE number = (SELECT min(number) FROM scheduled_tasks
            WHERE conversation_id = $1 AND status = 'completed') RETURNING number""",
        conversation_id,
    )
    if removed is None:
        raise Conflict(
            f"Conversation {conversation_id} owns {count} tasks, which is the limit; cancel one first.",
            code="task_quota",
        )


async def _keep_of_principal(tx: Tx, principal_id: str, limit: int) -> None:
    await tx.lock("tasks of", principal_id)
    for row in await tx.fetch("SELECT trim_tasks($1)", principal_id):
        await remove_own_conversation(tx, row[0])
    count = await tx.fetchval("SELECT count_tasks_of($1)", principal_id)
    if count >= limit:
        raise Conflict(
            f"{principal_id} has {count} tasks, and its limit (tasks) is {limit}; cancel one first.",
            code="task_quota",
        )


async def remove_own_conversation(tx: Tx, conversation_id: str) -> None:
    """Remove a task's own hidden conversation with its task, unless something runs in its name."""
    await tx.execute(
        """DELETE FROM conversations WHERE id = $1 AND temporary = 1 AND owner_id = $1
        AND NOT EXISTS (SELECT 1 FROM scheduled_tasks WHERE conversation_id = $1)
        AND NOT EXISTS (SELECT 1 FROM runs WHERE state = 'running' AND conversation_id IN
            (SELECT id FROM conversations WHERE temporary = 1 AND owner_id = $1))""",
        conversation_id,
    )
