"""GET /usage: what model calls used, by day and by conversation."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.http.bodies import JSON, page_of
from shared.errors import InvalidInput
from shared.store.store import Store
from shared.values import DayUsage

MICRO: Final = 1_000_000


class UsageApi:
    """The usage route."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/usage", self.list, methods=["GET"])]

    async def list(self, request: Request) -> Response:
        """List usage, newest day first: of all conversations together, of each, or of one."""
        limit, cursor = page_of(request)
        by = request.query_params.get("by")
        conversation_id = request.query_params.get("conversation_id")
        if by not in (None, "day", "conversation"):
            raise InvalidInput("by: must be day or conversation")
        book = self._store.usage
        if conversation_id is None and by != "conversation":
            page = await book.by_day(limit=limit, cursor=cursor)
        else:
            page = await book.by_conversation(conversation_id=conversation_id, limit=limit, cursor=cursor)
        return JSON({"usage": [usage_view(item) for item in page.items], "next_cursor": page.next_cursor})


def usage_view(used: DayUsage) -> dict[str, Any]:
    """Return one day's usage as it leaves the host."""
    spending = used.spending
    return {
        "day": used.day,
        "conversation_id": used.conversation_id,
        "runs": used.runs,
        **dataclasses.asdict(spending.usage),
        "unsettled_tokens": spending.unsettled_tokens,
        "tokens": spending.amount.tokens,
        "dollars": spending.microdollars / MICRO,
    }
