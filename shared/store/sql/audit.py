"""The audit: what was done to principals, tokens and budgets, what people decided, what the operator reached.

A row is written in the transaction of the act. It has ids alone, so it may outlive whom it is about.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from shared import jsons
from shared.approval_values import DECIDED
from shared.clock import iso, now_ms
from shared.principals import HOST, OPERATOR, Actor
from shared.shapes import Shape
from shared.store import rows
from shared.store.contract import Row, Tx, acting
from shared.store.rows import Noun
from shared.values import Page

WHOSE: Final = """SELECT principal_id FROM conversations WHERE id = $1
    UNION ALL SELECT principal_id FROM runs WHERE id = $1
    UNION ALL SELECT principal_id FROM webhooks WHERE id = $1
    UNION ALL SELECT principal_id FROM responses WHERE id = $1
    UNION ALL SELECT principal_id FROM conversations WHERE id IN (
        SELECT conversation_id FROM approvals WHERE id = $1
        UNION ALL SELECT conversation_id FROM scheduled_tasks WHERE id = $1)"""


ACTIONS: Final = (
    *(f"principal.{what}" for what in ("created", "changed", "suspended", "deleted")),
    *(f"token.{what}" for what in ("created", "revoked")),
    *(f"approval.{what}" for what in DECIDED.values()),
    "budget.lifted",
    "reached",
)


class ActShape(Shape):
    """Something that was done to a principal's ``subject``; ``by`` has who, the token (null: API_TOKEN), the
    door and the address.
    """

    at: str
    action: str
    principal_id: str
    subject: str
    by: dict[str, Any]


def to_act(row: Row) -> ActShape:
    """Return a row as it leaves the host."""
    return {
        "at": iso(row["created_at"]),
        "action": row["action"],
        "principal_id": row["principal_id"],
        "subject": row["subject"],
        "by": jsons.loads(row["actor"]),
    }


class Audit(Noun):
    """Who did what, newest first."""

    async def page(
        self,
        *,
        limit: int,
        cursor: str | None,
        principal_id: str | None = None,
        action: str | None = None,
        since: int = 0,
    ) -> Page[ActShape]:
        """Return acts: those about a principal, of one kind, ``since`` an instant."""
        where = rows.Where()
        where.after("number < {0}", cursor, int)
        where.add("created_at >= {0}", since)
        where.add("principal_id = {0}", principal_id)
        where.add("action = {0}", action)
        statement = f"SELECT * FROM audit WHERE {where} ORDER BY number DESC LIMIT $1"
        return await self._page(to_act, ("number",), statement, limit, *where.values)

    async def reached(self, subject: str, what: str, whose: str | None = None) -> None:
        """Note ``what`` the operator reaches of another principal's: by an id, or in a list (``whose``)."""
        if whose is None:
            whose = await self._value(WHOSE, subject)
        if whose not in (None, OPERATOR):
            await self._engine.write(lambda tx: note(tx, "reached", whose, what))


async def note(
    tx: Tx, action: str, principal_id: str, subject: str, by: Mapping[str, Any] | None = None
) -> None:
    """Write what is done to a principal's ``subject``, ``by`` whoever asks for it if nobody else is named."""
    actor = by or asdict(acting.get())
    said = {each.name: actor.get(each.name) for each in fields(Actor)}
    await tx.execute(INSERT, now_ms(), action, principal_id, subject, jsons.dumps(said))


async def crossed(tx: Tx, principal_id: str, subject: str) -> None:
    """Note that the operator acts on something of another principal's."""
    if principal_id != OPERATOR and by_operator():
        await note(tx, "reached", principal_id, subject)


def by_operator() -> bool:
    """Return whether it is asked for by API_TOKEN."""
    actor = acting.get()
    return actor is not HOST and actor.token_id is None


INSERT: Final = rows.insertion("audit", ("created_at", "action", "principal_id", "subject", "actor"))
