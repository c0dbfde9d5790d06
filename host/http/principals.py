"""Principals over HTTP: the operator makes, changes and deletes them; each one asks who it is."""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field
from starlette.requests import Request

from host.http.bodies import WHOLE, Body, NotBlank, Text
from host.http.callers import Enrolment, caller_of, terms_of
from host.http.chat import MOST_RULES, PermissionRule
from host.http.metrics import MICRO, DayUsageShape, day_view
from host.http.routing import ANY, PAGE, Api, operation, page_of
from host.http.tokens import Scopes, principal_of
from host.runs.permissions import Permissions, rules_of
from host.runs.principals import PrincipalCache, Spaces
from shared.clock import checked_zone, iso, now_ms
from shared.errors import Conflict, InvalidInput, NotFound
from shared.principals import Principal, PrincipalStatus, Terms
from shared.settings.access import PrincipalRates, known_scopes
from shared.settings.sections import PrincipalBudgets
from shared.settings.tree import Settings, uncountable
from shared.shapes import PageShape, Shape, view
from shared.store.store import Store

Names = Annotated[list[Text], Field(default_factory=list)]
Zone = Annotated[Text, AfterValidator(checked_zone), Field(json_schema_extra={"format": "iana-timezone"})]
Count = Annotated[int, Field(ge=1, le=2**53), WHOLE]


class Grants(Body):
    """What of the operator's a principal may use: MCP servers and paths by name, the network, the skills."""

    mcp: Names
    network: bool = False
    read_paths: Names
    write_paths: Names
    skills: bool = False


class PrincipalTerms(Body):
    """What a principal may do; null: no limit of its own."""

    subject: Annotated[NotBlank, Field(max_length=255)] | None = None
    scopes: Scopes | None = None
    budgets: PrincipalBudgets | None = None
    rate_limits: PrincipalRates | None = None
    models: Annotated[list[Text], Field(min_length=1)] | None = None
    workspace_mb: Count | None = None
    grants: Grants | None = None
    timezone: Zone | None = None
    concurrent_runs: Count | None = None
    tasks: Count | None = None
    permissions: Annotated[list[PermissionRule], Field(max_length=MOST_RULES)] | None = None

    @property
    def said(self) -> Mapping[str, Any]:
        """The terms that were given."""
        return self.model_dump(exclude={"name", "status", "subject"}, exclude_unset=True)


class PrincipalRequest(PrincipalTerms):
    """POST /principals."""

    name: Annotated[NotBlank, Field(max_length=200)]


class PrincipalChanges(PrincipalTerms):
    """PATCH /principals/{id}: only what is given changes."""

    name: Annotated[NotBlank, Field(max_length=200)] = ""
    status: Literal["active", "suspended"] = "active"


class TermsShape(Shape):
    """What a principal may do; null: no limit of its own."""

    scopes: list[str]
    budgets: dict[str, Any] | None
    rate_limits: dict[str, Any] | None
    models: list[str] | None
    workspace_mb: int | None
    grants: dict[str, Any]
    timezone: str | None
    concurrent_runs: int | None
    tasks: int | None
    permissions: list[dict[str, Any]]


class PrincipalShape(TermsShape):
    """A principal."""

    id: str
    name: str
    status: PrincipalStatus
    issuer: str | None
    subject: str | None
    created_at: str


class UsedShape(Shape):
    """What a principal has and does; tokens and dollars are those of today (UTC)."""

    conversations: int
    tasks: int
    running: int
    tokens: int
    dollars: float
    last_activity: str | None
    workspace_bytes: int | None


class OnePrincipalShape(PrincipalShape):
    """A principal, and what is used of what it may."""

    used: UsedShape


class FoundShape(Shape):
    """A place where something of a principal may be, and how much is there: rows, files."""

    place: str
    found: int


class RemainsShape(Shape):
    """What is left of a principal, place by place; ``kept`` says what stays by design, and for how long."""

    status: PrincipalStatus
    places: list[FoundShape]
    kept: list[str]


class PrincipalsShape(PageShape):
    """A page of principals."""

    principals: list[PrincipalShape]


class MeShape(TermsShape):
    """Who calls; ``scopes`` are those of the token. ``operator``: it is API_TOKEN."""

    operator: bool
    principal_id: str
    name: str
    conversation_id: str
    expires_at: str | None
    used: UsedShape
    used_today: DayUsageShape | None


KEPT: Final = (
    "its id, subject and uid: for 90 days, so that an old signed token doesn't bring it back",
    "what all principals used together, by day",
    "rows of the audit and log lines with its id: for AUDIT_TTL_DAYS, and as long as you keep logs",
    "backups, and history of the volume that isn't folded yet: see docs/users.md",
)
OPERATOR_STAYS: Final = "The operator's limits are the settings'; it can't be changed or deleted here"


class PrincipalsApi(Api):
    """Principals, and who oneself is."""

    def __init__(
        self,
        store: Store,
        cache: PrincipalCache,
        enrolment: Enrolment,
        spaces: Spaces,
        settings: Settings,
        permissions: Permissions,
        servers: Collection[str],
    ) -> None:
        tools = settings.tools
        self._settings = settings
        self._granted = (
            ("mcp", "MCP server", servers),
            ("read_paths", "path in tools.allow_read_paths", tools.allow_read_paths),
            ("write_paths", "path in tools.allow_write_paths", tools.allow_write_paths),
        )
        self._permissions = permissions
        self._spaces = spaces
        self._store = store
        self._cache = cache
        self._enrolment = enrolment
        self._issuer = settings.auth.jwt.issuer or ""

    @operation("POST", "/principals", status=201, errors=(409,))
    async def create(self, request: Request, body: PrincipalRequest) -> PrincipalShape:
        """Make a principal."""
        named = (None, None) if body.subject is None else (self._issuer, body.subject)
        return principal_view(await self._enrolment.make(body.name, self._terms(body, Terms()), *named))

    @operation("GET", "/principals", parameters=PAGE)
    async def list(self, request: Request) -> PrincipalsShape:
        """List principals in the order they were made."""
        page = await self._store.principals.page(**page_of(request))
        return {"principals": list(map(principal_view, page.items)), "next_cursor": page.next_cursor}

    @operation("GET", "/principals/{id}")
    async def get(self, request: Request) -> OnePrincipalShape:
        """One principal, and what it uses."""
        found = await principal_of(request, self._store)
        return {**principal_view(found), "used": await self._used(found)}

    @operation("GET", "/principals/{id}/remains")
    async def remains(self, request: Request) -> RemainsShape:
        """What is left of a principal, also of a deleted one: each table and directory is looked at."""
        principal_id = request.path_params["id"]
        found = await self._store.principals.get(principal_id)
        if found is None or found.is_operator:
            raise NotFound(f"principal not found: {principal_id}")
        rows = await self._store.principals.remains(principal_id)
        places = {f"rows of {table}": number for table, number in rows.items()}
        paths = self._spaces.paths(found)
        directories = {f"directory {path}": int(os.path.lexists(path)) for path in paths}  # noqa: ASYNC240 - one look
        shown: list[FoundShape] = [
            {"place": place, "found": number} for place, number in (places | directories).items()
        ]
        return {"status": found.status, "places": shown, "kept": [*KEPT]}

    @operation("PATCH", "/principals/{id}", errors=(409,))
    async def change(self, request: Request, body: PrincipalChanges) -> PrincipalShape:
        """Change what is given; it counts from the principal's next request on."""
        before = await principal_of(request, self._store)
        if before.is_operator:
            raise Conflict(OPERATOR_STAYS, code="operator")
        given = body.model_fields_set
        after = replace(
            before,
            name=body.name if "name" in given else before.name,
            status=PrincipalStatus(body.status) if "status" in given else before.status,
            terms=self._terms(body, before.terms),
        )
        if "subject" in given:
            issuer = None if body.subject is None else self._issuer
            after = replace(after, issuer=issuer, subject=body.subject)
        return await self._changed(await self._store.principals.change(after))

    @operation("DELETE", "/principals/{id}", status=202, errors=(409,))
    async def delete(self, request: Request) -> PrincipalShape:
        """Begin to delete a principal and all that is its; it is refused from now on."""
        going = await self._store.principals.begin_deletion(request.path_params["id"], now_ms())
        return await self._changed(going)

    def _terms(self, body: PrincipalTerms, before: Terms) -> Terms:
        """Return the terms with what is said; raises InvalidInput for what is said and can't count here."""
        terms = terms_of(body.said, before)
        if body.permissions:
            self._permissions.check(rules_of(terms.permissions), "permissions")
        if body.subject is not None and not self._issuer:
            raise InvalidInput("subject: no signed token can name it: auth.jwt is not set")
        for field, what, there in self._granted:
            for at, name in enumerate(getattr(body.grants, field, ())):
                if name not in there:
                    those = f"there are: {', '.join(there)}" if there else "there are none"
                    raise InvalidInput(f"grants.{field}.{at}: there is no {what} {name[:200]}; {those}")
        if not body.model_fields_set.isdisjoint({"budgets", "models"}):
            budgets = PrincipalBudgets.model_validate(terms.budgets or {})
            for place, fault in uncountable(self._settings, budgets, terms.models):
                raise InvalidInput(f"{'.'.join(map(str, place))}: {fault}")
        return terms

    async def _changed(self, principal: Principal) -> PrincipalShape:
        self._cache.forget(principal.id)
        await self._store.durable()
        return principal_view(principal)

    @operation("GET", "/me", scope=ANY)
    async def me(self, request: Request) -> MeShape:
        """Who the token's principal is, what it may do, and what it has used of that today (UTC)."""
        caller = caller_of(request)
        used = await self._store.usage.by_day(limit=1, cursor=None, principal_id=caller.principal.id)
        today = [day_view(day) for day in used.items if day.day == iso(now_ms())[:10]]
        terms = terms_view(caller.principal)
        mine = terms["scopes"] if caller.within is None else known_scopes(caller.scopes)
        return view(
            MeShape,
            caller,
            **{**terms, "scopes": mine},
            operator=caller.token_id is None,
            principal_id=caller.principal.id,
            name=caller.principal.name,
            used=await self._used(caller.principal),
            used_today=today[0] if today else None,
        )

    async def _used(self, principal: Principal) -> UsedShape:
        used = await self._store.principals.used(principal.id, now_ms())
        space = await self._spaces.used(principal)
        return view(UsedShape, used, dollars=used.microdollars / MICRO, workspace_bytes=space)


def terms_view(principal: Principal) -> TermsShape:
    """Return what a principal may do as it leaves the host."""
    return view(TermsShape, principal.terms)


def principal_view(principal: Principal) -> PrincipalShape:
    """Return a principal as it leaves the host."""
    return view(PrincipalShape, principal, **terms_view(principal))
