"""Stored tokens over HTTP: the operator's, those it makes for principals, and a principal's own."""

from typing import Annotated, Any, Final

from anyio.abc import TaskGroup
from pydantic import AfterValidator, Field, StringConstraints
from starlette.requests import Request

from host.http.auth import OpenRequests, TokenBook
from host.http.bodies import WHOLE, Body, Text, idempotency
from host.http.callers import BOUND, Caller, Enrolment, caller_of
from host.http.connections import most_connections
from host.http.routing import ANY, KEY, OF_PRINCIPAL, PAGE, Api, operation, page_of
from host.runs.principals import PrincipalCache
from shared.clock import DAY_MS, now_ms
from shared.errors import Forbidden, InvalidInput, NotFound
from shared.ids import Token
from shared.principals import SCOPES, Principal, PrincipalStatus
from shared.settings import Settings
from shared.settings.access import known_scopes
from shared.shapes import PageShape, Shape, view
from shared.store.store import Store

LONGEST_LIFE_MS: Final = 10 * 366 * DAY_MS
OF_AGENTS: Final = ("chat", "tasks", "mcp")
"""What a token of ``POST /tokens`` is for, unless it says otherwise."""

ONE_OF: Final[dict[str, Any]] = {"items": {"type": "string", "enum": [*SCOPES]}}
ConversationId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")]
"""An id that a tool server may be born with."""

Scopes = Annotated[
    list[str], AfterValidator(lambda given: [*known_scopes(given)]), Field(json_schema_extra=ONE_OF)
]


class RotationRequest(Body):
    """POST /me/tokens; what isn't given is as the caller's own token has it."""

    name: Annotated[Text, Field(max_length=200)] = ""
    scopes: Scopes | None = None
    expires_in_ms: Annotated[int, Field(ge=1000, le=LONGEST_LIFE_MS), WHOLE] | None = None

    @property
    def expires_at(self) -> int | None:
        """The instant in milliseconds, None: it lasts until it is revoked."""
        return None if self.expires_in_ms is None else now_ms() + self.expires_in_ms


class PrincipalTokenRequest(RotationRequest):
    """POST /principals/{id}/tokens; without a conversation it acts at /mcp for the main one."""

    conversation_id: ConversationId | None = None


class NewTokenRequest(RotationRequest):
    """POST /tokens."""

    conversation_id: ConversationId
    main: bool = False


class TokenShape(Shape):
    """A token without its text; ``expires_at`` null: it lasts until it is revoked."""

    id: str
    principal_id: str
    name: str
    conversation_id: str
    main: bool
    scopes: list[str]
    created_at: str
    expires_at: str | None
    last_used_at: str | None


class NewTokenShape(TokenShape):
    """A new token, with the only sight of its text."""

    token: str


class TokensShape(PageShape):
    """A page of tokens."""

    tokens: list[TokenShape]


class TokensApi(Api):
    """The tokens that the store keeps."""

    def __init__(self, store: Store, book: TokenBook) -> None:
        self._store = store
        self._book = book

    @operation("POST", "/tokens", status=201, parameters=[KEY], errors=(409,))
    async def create(self, request: Request, body: NewTokenRequest) -> NewTokenShape:
        """Make a token of the operator's that acts at /mcp for a conversation."""
        scopes = OF_AGENTS if body.scopes is None else tuple(body.scopes)
        principal = caller_of(request).principal
        return await self._issue(request, principal, body, body.conversation_id, body.main, scopes)

    @operation("POST", "/principals/{id}/tokens", status=201, parameters=[KEY], errors=(409,))
    async def create_of(self, request: Request, body: PrincipalTokenRequest) -> NewTokenShape:
        """Make a token of a principal's."""
        principal = await principal_of(request, self._store)
        own = principal.terms.scopes
        scopes = own if body.scopes is None else tuple(body.scopes)
        if beyond := [scope for scope in scopes if scope not in own]:
            raise InvalidInput(f"scopes: the principal has not {', '.join(beyond)}; it has {', '.join(own)}")
        named, main = body.conversation_id, self._book.main_of(principal)
        return await self._issue(request, principal, body, named or main, named is None, scopes)

    @operation("POST", "/me/tokens", scope=ANY, status=201, parameters=[KEY], errors=(409,))
    async def rotate(self, request: Request, body: RotationRequest) -> NewTokenShape:
        """Make another token for oneself, for no more and no longer than the one that asks."""
        caller = _free(caller_of(request))
        scopes = tuple(caller.scopes) if body.scopes is None else tuple(body.scopes)
        caller.allow("A token for more", scopes)
        return await self._issue(
            request, caller.principal, body, caller.conversation_id, caller.is_main, known_scopes(scopes)
        )

    async def _page(self, request: Request) -> TokensShape:
        """List tokens, without their texts."""
        await self._book.requests.store_used()
        page = await self._store.tokens.page(**page_of(request), principal_id=await self._whose(request))
        return {"tokens": list(map(token_view, page.items)), "next_cursor": page.next_cursor}

    page = operation("GET", "/tokens", parameters=[*PAGE, OF_PRINCIPAL])(_page)
    page_of_principal = operation("GET", "/principals/{id}/tokens", parameters=PAGE)(_page)
    page_of_mine = operation("GET", "/me/tokens", scope=ANY, parameters=PAGE)(_page)

    async def _revoke(self, request: Request) -> None:
        """End a token."""
        token_id = request.path_params.get("token_id") or request.path_params["id"]
        if not await self._book.revoke(token_id, await self._whose(request)):
            raise NotFound(f"token not found: {token_id}")

    revoke = operation("DELETE", "/tokens/{id}")(_revoke)
    revoke_of_principal = operation("DELETE", "/principals/{id}/tokens/{token_id}")(_revoke)
    revoke_mine = operation("DELETE", "/me/tokens/{token_id}", scope=ANY)(_revoke)

    async def _whose(self, request: Request) -> str | None:
        """Return whose tokens a request is about, None: all there are."""
        path, caller = request.scope["operation"].path, caller_of(request)
        if path.startswith("/me"):
            return _free(caller).principal.id
        if path.startswith("/principals"):
            return (await principal_of(request, self._store)).id
        return caller.listed(request) if path == "/tokens" else None

    async def _issue(
        self,
        request: Request,
        principal: Principal,
        body: RotationRequest,
        conversation_id: str,
        is_main: bool,
        scopes: tuple[str, ...],
    ) -> NewTokenShape:
        until = min(filter(None, (body.expires_at, caller_of(request).expires_at)), default=None)
        bound = (conversation_id, is_main, now_ms(), until)
        wanted = Token("", *bound, principal.id, body.name, scopes)
        token, text = await self._book.issue(wanted, await idempotency(request))
        return {**token_view(token), "token": text}


async def open_tokens(
    settings: Settings, store: Store, principals: PrincipalCache, enrolment: Enrolment, background: TaskGroup
) -> TokenBook:
    """Return the book of all tokens; raises Misconfigured when the keys of signed ones can't be read."""
    signed = None
    if settings.auth.jwt.issuer is not None:
        # 0.2 s of imports.
        from host.http.signed_tokens import open_signed_tokens

        signed = await open_signed_tokens(settings.auth.jwt, enrolment, background)
    requests = OpenRequests(store, principals, most_connections())
    background.start_soon(requests.watch)
    return TokenBook(store, settings.main_conversation_id, signed, requests)


def _free(caller: Caller) -> Caller:
    """Return the caller unless it is one conversation's alone, which has no say in tokens."""
    if not caller.is_main:
        raise Forbidden(BOUND)
    return caller


async def principal_of(request: Request, store: Store) -> Principal:
    """Return the principal that a request's path names; raises NotFound."""
    principal_id = request.path_params["id"]
    found = await store.principals.get(principal_id)
    if found is None or found.status is PrincipalStatus.DELETED:
        raise NotFound(f"principal not found: {principal_id}")
    return found


def token_view(token: Token) -> TokenShape:
    """Return a token as it leaves the host: without what makes it one."""
    return view(TokenShape, token, main=token.is_main)
