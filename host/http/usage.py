"""GET /usage: what model calls used, by day and by conversation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, NotRequired

from starlette.requests import Request

from host.http.callers import caller_of
from host.http.conversations import asked_for, say_whose
from host.http.routing import OF_CONVERSATION, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.runs.answers import UsageShape
from shared.errors import InvalidInput
from shared.shapes import PageShape, view
from shared.store.store import Store
from shared.usage_values import DayUsage

MICRO: Final = 1_000_000
BY: Final = Parameter(
    "by",
    "All conversations together, if not given",
    ("day", "conversation"),
)


class DayUsageShape(UsageShape):
    """What model calls used on one UTC day: in one conversation with its tasks, or (null) in all."""

    day: str
    conversation_id: str | None
    runs: int
    unsettled_tokens: int
    tokens: int
    dollars: float
    principal_id: NotRequired[str]


class UsagePageShape(PageShape):
    """A page of usage."""

    usage: list[DayUsageShape]


class UsageApi(Api):
    """The usage route."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @operation("GET", "/usage", scope="usage", parameters=(*PAGE, BY, OF_CONVERSATION, OF_PRINCIPAL))
    async def list(self, request: Request) -> UsagePageShape:
        """What model calls used, newest day first."""
        asked = page_of(request)
        by = request.query_params.get("by")
        conversation_id = await asked_for(request, self._store)
        principal_id = caller_of(request).listed(request)
        if by not in (None, "day", "conversation"):
            raise InvalidInput("by: must be day or conversation")
        book = self._store.usage
        if conversation_id is None and by != "conversation":
            page = await book.by_day(**asked, principal_id=principal_id)
        else:
            page = await book.by_conversation(
                conversation_id=conversation_id, **asked, principal_id=principal_id
            )
        shown: list[DayUsageShape] = list(map(day_view, page.items))
        await say_whose(request, self._store, shown)
        return {"usage": shown, "next_cursor": page.next_cursor}


def day_view(used: DayUsage) -> DayUsageShape:
    """Return one day's usage as it leaves the host."""
    spending = used.spending
    return view(
        DayUsageShape,
        used,
        **asdict(spending.usage),
        unsettled_tokens=spending.unsettled_tokens,
        tokens=spending.amount.tokens,
        dollars=spending.microdollars / MICRO,
    )
