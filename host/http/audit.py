"""The audit over HTTP: who made, changed, decided and reached what; and how reaching is noted."""

from __future__ import annotations

import logging
from typing import Final

from starlette.requests import Request

from host.http.callers import caller_of
from host.http.routing import OF_PRINCIPAL, PAGE, Api, Operation, Parameter, operation, page_of
from host.runs.admission import RateLimit
from host.runs.principals import PrincipalCache
from shared.errors import PicoError
from shared.ids import PRINCIPAL
from shared.shapes import PageShape
from shared.store.sql.audit import ActShape
from shared.store.store import Store

logger = logging.getLogger("picoclaw.audit")

SINCE: Final = Parameter("since", "Only from this instant on", "instant")
OF: Final = (
    Parameter(OF_PRINCIPAL.name, "Only what is about this principal"),
    Parameter("action", "Only this action, such as `token.created`"),
    SINCE,
)

NAMED: Final = ("id", "run_id")
"""Parts of a path that are ids; names of files are nobody's here."""


class AuditShape(PageShape):
    """A page of the audit."""

    audit: list[ActShape]


class AuditApi(Api):
    """The audit."""

    def __init__(self, store: Store, principals: PrincipalCache) -> None:
        self._store = store
        self._principals = principals
        self._noted = RateLimit(1)

    @operation("GET", "/audit", parameters=[*PAGE, *OF])
    async def list(self, request: Request) -> AuditShape:
        """List what was done, newest first."""
        asked = request.query_params
        page = await self._store.audit.page(
            **page_of(request),
            principal_id=asked.get(OF_PRINCIPAL.name),
            action=asked.get("action"),
            since=SINCE.instant(request) or 0,
        )
        return {"audit": page.items, "next_cursor": page.next_cursor}

    async def reached(self, request: Request, declared: Operation) -> None:
        """Note that the operator reaches what is another principal's, once a minute for each thing."""
        whose = request.query_params.get(OF_PRINCIPAL.name)
        named = {key: request.path_params[key] for key in NAMED if key in request.path_params}
        subject = next(iter(named.values()), None)
        if declared.scope is None or caller_of(request).within is not None:
            return
        others = whose == "*" or (whose or "").startswith(PRINCIPAL)
        if not (subject or others) or not await self._principals.are_there():
            return
        what = f"{declared.method} {declared.path}"
        for key, said in named.items():
            what = what.replace(f"{{{key}}}", said)
        if self._noted.retry_after((what, whose)) is not None:
            return
        self._noted.count((what, whose))
        try:
            await self._store.audit.reached(str(subject), what, None if subject else whose)
        except PicoError as error:
            # A full disk keeps nobody from deleting.
            logger.warning("Not in the audit: %s (%s)", what, error.message)
