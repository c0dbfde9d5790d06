"""Webhooks and what they are told: kept, claimed by one host at a time, tried, ended.

What they are told is written by triggers (``schema/33_events``), in the transaction of what happened, whoever
writes it. Where no webhook hears of it, nothing is written. What happened is one row of ``webhook_events``
however many hear of it; as it is deleted (``FAN_OUT``) it becomes a delivery for each.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from shared.clock import now_ms
from shared.errors import Conflict, Duplicate, NotFound, Unavailable
from shared.ids import EVENT, new_id
from shared.store import rows
from shared.store.contract import Row, Tx
from shared.store.rows import Noun, writes
from shared.store.sql.principals import check_lives
from shared.values import Page
from shared.webhook_values import (
    EVERYBODY,
    MOST,
    MOST_WAITING,
    TEST,
    TRIED_FOR_MS,
    Tried,
    Webhook,
    WebhookDelivery,
    WebhookFigures,
)

IN_ORDER_MS: Final = 60_000
"""For so long a delivery waits for those before it of the same conversation."""
LEASE_MS: Final = 30_000
AT_ONCE: Final = 2
"""Tries of one webhook."""
LONGEST_PAUSE_MS: Final = 12 * 3600 * 1000
OVERFLOW: Final = "overflow"
OF_A_COPY: Final = "UPDATE webhook_deliveries SET status = 'held' WHERE status = 'waiting'"
"""For a store that was restored or copied: what waits in it may have been told since."""

to_webhook: Final = rows.reader(
    Webhook,
    events=lambda stored: tuple(stored.split()),
    content=bool,
    enabled=bool,
    secret=bytes,
    old_secret=rows.optional(bytes),
)
to_delivery: Final = rows.reader(WebhookDelivery)

COLUMNS: Final = (
    *("id", "principal_id", "subject", "url", "events", "content", "secret", "created_at"),
    *("enabled", "disabled_reason"),
)
STORED: Final[Mapping[str, Any]] = {"events": lambda events: f" {' '.join(events)} "}
"""How a field is stored that isn't as it is."""

OF_PRINCIPALS: Final = f"subject IN (principal_id, '{EVERYBODY}')"
"""Not of a single request."""

FREE: Final = "(d.lease_until <= lease_now() OR ($2 = 1 AND d.owner <> $3))"
"""Who is alone on the store knows that other owners are gone."""
AWAY: Final = "SELECT id FROM principals WHERE status IN ('suspended', 'deleting', 'deleted')"
LOOK: Final = f"""SELECT EXISTS (SELECT 1 FROM webhook_events) AS events,
    EXISTS (SELECT 1 FROM webhook_deliveries AS d
        WHERE d.status = 'waiting' AND d.not_before <= $1::bigint AND {FREE}) AS waits"""
DUE: Final = f"""WITH tried AS (SELECT d.webhook_id, v.principal_id FROM webhook_deliveries AS d
    JOIN webhooks AS v ON v.id = d.webhook_id WHERE d.status = 'waiting' AND NOT {FREE})
    SELECT min(d.number) AS number, min(coalesce(w.failing_since, 0)) AS failing,
    count(*) > 1 AS several FROM webhook_deliveries AS d JOIN webhooks AS w ON w.id = d.webhook_id
    WHERE d.status = 'waiting' AND d.not_before <= $1::bigint AND {FREE}
    AND (w.enabled = 1 OR d.type = '{TEST}')
    AND (d.created_at <= $1::bigint - {IN_ORDER_MS} OR NOT EXISTS (SELECT 1 FROM webhook_deliveries AS e
        WHERE e.webhook_id = d.webhook_id AND e.conversation_id = d.conversation_id
        AND e.status = 'waiting' AND e.number < d.number))
    AND w.id NOT IN (SELECT webhook_id FROM tried GROUP BY webhook_id HAVING count(*) >= {AT_ONCE})
    AND d.principal_id NOT IN ({AWAY}) AND w.principal_id NOT IN ({AWAY})
    GROUP BY d.webhook_id, w.principal_id
    ORDER BY 2, (SELECT count(*) FROM tried WHERE principal_id = w.principal_id), 1 LIMIT $4"""
"""The first of each webhook that may be tried now; those that work come first, then those of principals of
whom fewer are being tried: slow receivers of one hold up nobody else's for long."""
FRESH: Final = f"""SELECT min(d.number) AS number FROM webhook_deliveries AS d
    JOIN webhooks AS w ON w.id = d.webhook_id WHERE d.number > $1::bigint AND w.failing_since IS NULL
    AND NOT EXISTS (SELECT 1 FROM webhook_deliveries AS e
        WHERE e.webhook_id = d.webhook_id AND e.status = 'waiting' AND e.number <= $1::bigint)
    AND d.principal_id NOT IN ({AWAY}) AND w.principal_id NOT IN ({AWAY})
    GROUP BY d.webhook_id ORDER BY 1 LIMIT $2"""
"""Of those made just now, the first of each webhook for which nothing else waits."""
TAKE: Final = f"""UPDATE webhook_deliveries SET owner = $3, lease_until = lease_now() + {LEASE_MS},
    attempts = attempts + 1 WHERE number IN (SELECT d.number FROM webhook_deliveries AS d
    WHERE d.number = ANY($1::bigint[]) AND d.status = 'waiting' AND {FREE} FOR UPDATE SKIP LOCKED)
    RETURNING *"""

FAN_OUT: Final = "DELETE FROM webhook_events"
EVENTS_AT_ONCE: Final = 20
SOME: Final = f"""{FAN_OUT} WHERE number IN (
    SELECT number FROM webhook_events ORDER BY number LIMIT {EVENTS_AT_ONCE})"""

EXPIRE: Final = f"""UPDATE webhook_deliveries SET status = 'dead', ended_at = $1::bigint,
    error = coalesce(error, 'not tried for 3 days') WHERE status = 'waiting'
    AND began_at <= $1::bigint - {TRIED_FOR_MS} AND lease_until <= lease_now()"""
# A try that was put off for longer was put off by another clock.
OF_ANOTHER_CLOCK: Final = f"""UPDATE webhook_deliveries SET not_before = 0
    WHERE status = 'waiting' AND not_before > $1::bigint + {LONGEST_PAUSE_MS}"""
TOO_MANY: Final = f"""SELECT principal_id, count(*) - {MOST_WAITING} AS more FROM webhook_deliveries
    WHERE status = 'waiting' GROUP BY principal_id HAVING count(*) > {MOST_WAITING}"""
OVERFLOWED: Final = f"""SELECT 1 FROM webhook_deliveries
    WHERE principal_id = $1 AND error = '{OVERFLOW}' LIMIT 1"""
OVERFLOWING: Final = f"""UPDATE webhook_deliveries SET status = 'dead', ended_at = $3, error = '{OVERFLOW}'
    WHERE number IN (SELECT number FROM webhook_deliveries
    WHERE status = 'waiting' AND principal_id = $1 ORDER BY number LIMIT $2)"""
FIGURES: Final = """SELECT (SELECT count(*) FROM webhooks WHERE enabled = 0) AS disabled,
    count(CASE WHEN status = 'waiting' THEN 1 END) AS waiting,
    min(CASE WHEN status = 'waiting' THEN created_at END) AS oldest,
    count(CASE WHEN status = 'held' THEN 1 END) AS held
    FROM (SELECT status, created_at FROM webhook_deliveries WHERE status IN ('waiting', 'held')
        UNION ALL SELECT 'waiting', created_at FROM webhook_events) AS d"""


class Webhooks(Noun):
    """Webhooks and their deliveries; what is told is written by triggers."""

    async def add(self, webhook: Webhook) -> None:
        """Store a webhook; raises Duplicate, Conflict ``webhook_limit``, Suspended."""

        async def work(tx: Tx) -> None:
            await tx.lock("webhooks", webhook.principal_id)
            await check_lives(tx, webhook.principal_id)
            if await tx.fetchval("SELECT 1 FROM webhooks WHERE id = $1", webhook.id):
                raise Duplicate(f"webhook_id exists already: {webhook.id}")
            of = f"SELECT count(*) FROM webhooks WHERE principal_id = $1 AND {OF_PRINCIPALS}"
            if await tx.fetchval(of, webhook.principal_id) >= MOST:
                raise Conflict(f"There are {MOST} webhooks already: delete one first", code="webhook_limit")
            await insert(tx, webhook)

        await self._fan_out_all()
        await self._engine.write(work)

    async def get(self, webhook_id: str, principal_id: str | None) -> Webhook:
        """Return a webhook of the principal (None: anybody's); raises NotFound."""
        statement = "SELECT * FROM webhooks WHERE id = $1 AND principal_id = coalesce($2, principal_id)"
        webhook = await self._one(to_webhook, statement, webhook_id, principal_id)
        return NotFound.unless(webhook, f"webhook not found: {webhook_id}")

    async def page(self, principal_id: str | None, *, limit: int, cursor: str | None) -> Page[Webhook]:
        """Return webhooks in the order they were made, those of single requests left out."""
        where = rows.Where()
        where.after("number > {0}", cursor, int)
        where.add(OF_PRINCIPALS)
        where.add("principal_id = {0}", principal_id)
        statement = f"SELECT * FROM webhooks WHERE {where} ORDER BY number LIMIT $1"
        return await self._page(to_webhook, ("number",), statement, limit, *where.values)

    async def change(self, webhook_id: str, **changes: Any) -> None:
        """Put values in the place of what a webhook has; a new secret makes the present one the old one."""
        values = [STORED.get(name, _plain)(value) for name, value in changes.items()]
        said = [f"{name} = ${number}" for number, name in enumerate(changes, start=2)]
        said += ["old_secret = secret"] if "secret" in changes else []
        await self._fan_out_all()
        await self._change(f"UPDATE webhooks SET {', '.join(said)} WHERE id = $1", webhook_id, *values)

    async def delete(self, webhook_id: str) -> None:
        """Remove a webhook and all of its deliveries."""

        async def work(tx: Tx) -> None:
            await tx.execute("DELETE FROM webhooks WHERE id = $1", webhook_id)
            await tx.execute("DELETE FROM webhook_deliveries WHERE webhook_id = $1", webhook_id)

        await self._fan_out_all()
        await self._engine.write(work)

    async def test(self, webhook: Webhook, now: int) -> WebhookDelivery:
        """Let a webhook hear that it is tested."""
        columns = ("id", "webhook_id", "principal_id", "type", "data", "created_at", "began_at")
        values = (new_id(EVENT), webhook.id, webhook.principal_id, TEST, "{}", now, now)
        statement = f"{rows.insertion('webhook_deliveries', columns)} RETURNING *"

        async def work(tx: Tx) -> WebhookDelivery:
            await _number_by_clock(tx)
            return await _one(tx, statement, *values)

        return await self._engine.write(work)

    async def deliveries(
        self, webhook_id: str, status: str | None, *, limit: int, cursor: str | None
    ) -> Page[WebhookDelivery]:
        """Return a webhook's deliveries, newest first; where nothing can be stored, without the latest."""
        with suppress(Unavailable):
            await self._fan_out_all()
        where = rows.Where()
        where.add("webhook_id = {0}", webhook_id)
        where.after("number < {0}", cursor, int)
        where.add("status = {0}", status)
        statement = f"SELECT * FROM webhook_deliveries WHERE {where} ORDER BY number DESC LIMIT $1"
        return await self._page(to_delivery, ("number",), statement, limit, *where.values)

    @writes()
    async def replay(self, tx: Tx, webhook_id: str, delivery_id: str, now: int) -> WebhookDelivery:
        """Try a delivery once more from the start; raises NotFound, Conflict ``body_gone``."""
        of = "webhook_id = $1 AND id = $2"
        row = await tx.fetchrow(f"SELECT data FROM webhook_deliveries WHERE {of}", webhook_id, delivery_id)
        if NotFound.unless(row, f"delivery not found: {delivery_id}")["data"] is None:
            raise Conflict(f"What {delivery_id} said is not kept any more", code="body_gone")
        again = f"""UPDATE webhook_deliveries SET status = 'waiting', began_at = $3, not_before = 0,
            attempts = 0, error = NULL, ended_at = NULL, owner = '', lease_until = 0
            WHERE {of} RETURNING *"""
        return await _one(tx, again, webhook_id, delivery_id, now)

    async def release(self, now: int) -> int:
        """Let the deliveries of a restored or copied store go; returns how many."""
        statement = "UPDATE webhook_deliveries SET status = 'waiting', began_at = $1 WHERE status = 'held'"
        return await self._change(statement, now)

    async def any(self) -> bool:
        """Return whether there is a webhook at all."""
        return bool(await self._engine.read(lambda tx: tx.fetchval("SELECT 1 FROM webhooks LIMIT 1")))

    async def claim(
        self,
        owner: str,
        limit: int,
        now: int,
        *,
        alone: bool,
        failing: int,
        tries: Sequence[tuple[WebhookDelivery, Tried]] = (),
    ) -> tuple[list[tuple[WebhookDelivery, Webhook]], bool]:
        """Take deliveries that are due, so that no other host tries them; one of each webhook at most.

        What they tell is on the volume by then. ``failing``: how many may be of webhooks that fail.
        ``tries``: how others went is noted, but of those that another host has taken over, or that were begun
        anew. The bool: more may be due now.
        """
        if any(tried.disable for _, tried in tries):
            await self._fan_out_all()
        here = (now, int(alone), owner)
        look = rows.there(await self._engine.read(lambda tx: tx.fetchrow(LOOK, *here)))
        fresh: list[tuple[WebhookDelivery, Webhook]] = []

        async def begun(tx: Tx) -> tuple[Row, list[tuple[WebhookDelivery, Webhook]]]:
            for delivery, tried in tries:
                await _note(tx, delivery, tried, now)
            last = await tx.fetchval("SELECT coalesce(max(number), 0) FROM webhook_deliveries")
            made = await _fan_out(tx) if limit and look["events"] else 0
            fresh = await tx.fetch(FRESH, last, limit) if made and not look["waits"] else ()
            taken = await _take(tx, fresh, alone, owner)
            return rows.there(await tx.fetchrow(LOOK, *here)), taken

        if tries or (limit and look["events"]):
            look, fresh = await self._engine.write(begun, durably=not look["waits"])
        if fresh or not limit or not look["waits"]:
            return fresh, bool(fresh or look["events"])
        due = await self._engine.read(lambda tx: tx.fetch(DUE, *here, limit), long=True)
        more = look["events"] or len(due) == limit or any(row["several"] for row in due)
        fails = [row["number"] for row in due if row["failing"]][max(failing, 0) :]
        chosen = [row for row in due if row["number"] not in fails]
        if not chosen:
            return [], bool(look["events"])
        return await self._engine.write(lambda tx: _take(tx, chosen, alone, owner), durably=True), bool(more)

    async def sweep(self, now: int) -> list[str]:
        """End what waited for too long, and the oldest of too many; returns whose are too many for the
        first time.
        """

        async def work(tx: Tx) -> list[str]:
            await tx.execute(EXPIRE, now)
            await tx.execute(OF_ANOTHER_CLOCK, now)
            full = [row["principal_id"] for row in await tx.fetch(TOO_MANY)]
            new = [each for each in full if not await tx.fetchval(OVERFLOWED, each)]
            for row in await tx.fetch(TOO_MANY):
                await tx.execute(OVERFLOWING, row["principal_id"], row["more"], now)
            return new

        await self._fan_out_all()
        return await self._engine.write(work, long=True)

    async def figures(self) -> WebhookFigures:
        """Return what waits, and how many webhooks are disabled."""
        (found,) = await self._all(rows.reader(WebhookFigures), FIGURES)
        return found

    async def _fan_out_all(self) -> None:
        """Make all that happened deliveries for the webhooks as they are: before one of them changes."""
        while await self._engine.read(lambda tx: tx.fetchval("SELECT 1 FROM webhook_events LIMIT 1")):
            await self._engine.write(_fan_out)


async def _fan_out(tx: Tx) -> int:
    """Make some of what happened deliveries, so few that no run waits."""
    await _number_by_clock(tx)
    return await tx.execute(SOME)


async def _number_by_clock(tx: Tx) -> None:
    """Let the next deliveries have numbers that rise with time: who sees two of its own, as ``sequence``, is
    not told how many others have between them.
    """
    await tx.lock("webhooks", "events")
    await tx.number_from("webhook_deliveries", now_ms() * 1000)


async def _take(
    tx: Tx, chosen: Sequence[Row], alone: bool, owner: str
) -> list[tuple[WebhookDelivery, Webhook]]:
    numbers = [row["number"] for row in chosen]
    taken = await tx.fetch(TAKE, numbers, int(alone), owner) if numbers else ()
    ids = [row["webhook_id"] for row in taken]
    found = await tx.fetch("SELECT * FROM webhooks WHERE id = ANY($1::text[])", ids) if ids else ()
    webhooks = {row["id"]: to_webhook(row) for row in found}
    return [(to_delivery(row), webhooks[row["webhook_id"]]) for row in taken if row["webhook_id"] in webhooks]


async def _note(tx: Tx, delivery: WebhookDelivery, tried: Tried, now: int) -> None:
    status = "waiting" if tried.again_at is not None else "dead" if tried.error else "delivered"
    held = await tx.execute(
        """UPDATE webhook_deliveries SET status = $4, error = $5, not_before = $6, ended_at = $7,
        lease_until = 0 WHERE number = $1 AND owner = $2 AND attempts = $3 AND status = 'waiting'""",
        *(delivery.number, delivery.owner, delivery.attempts),
        *(status, tried.error, tried.again_at or 0, None if status == "waiting" else now),
    )
    if not held or delivery.type == TEST:
        return
    if tried.error is None:
        works = """UPDATE webhooks SET failing_since = NULL, last_error = NULL
            WHERE id = $1 AND failing_since IS NOT NULL"""
        await tx.execute(works, delivery.webhook_id)
        return
    await tx.execute(
        """UPDATE webhooks SET failing_since = coalesce(failing_since, $2), last_error = $3,
        enabled = CASE WHEN $4::text IS NULL THEN enabled ELSE 0 END,
        disabled_reason = coalesce($4, disabled_reason) WHERE id = $1""",
        *(delivery.webhook_id, now, tried.error, tried.disable),
    )


async def insert(tx: Tx, webhook: Webhook) -> None:
    """Store a webhook inside a transaction."""
    values = [STORED.get(name, _plain)(getattr(webhook, name)) for name in COLUMNS]
    await tx.execute(rows.insertion("webhooks", COLUMNS), *values)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


async def _one(tx: Tx, statement: str, *values: Any) -> WebhookDelivery:
    return to_delivery(rows.there(await tx.fetchrow(statement, *values)))
