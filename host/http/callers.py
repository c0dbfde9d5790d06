"""Who calls, on whose behalf, and for what: the operator by the API token, others by a token with scopes.

``Enrolment`` is how a principal comes into being, whoever asks: the operator, or its first signed token.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Message, Scope, Send

from host.http.routing import ANY, OF_PRINCIPAL, Operation
from host.runs.principals import THE_OPERATOR
from host.sandbox.client import Sandbox
from shared.clock import now_ms
from shared.errors import Conflict, Forbidden
from shared.ids import PRINCIPAL, new_id
from shared.principals import SCOPES, Principal, Reach, Terms, stored_name
from shared.store.store import Store

BOUND: Final = "This token is for a conversation's tools at /mcp; here it takes API_TOKEN."
VERBATIM: Final = "verbatim"
"""In the scope of a request whose answer is a file: its bytes are nobody's names."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. ``token_id`` None: the bearer of the API token, who may do everything.

    ``conversation_id`` is whom it acts for at /mcp, in the main role if ``is_main``; other tokens count
    nowhere else.
    """

    principal: Principal = field(compare=False)
    conversation_id: str
    is_main: bool
    token_id: str | None = None
    scopes: frozenset[str] = field(default=frozenset(), compare=False)
    expires_at: int | None = field(default=None, compare=False)
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of a stored token."""

    @property
    def within(self) -> str | None:
        """The principal whose things alone the caller reaches by their ids; None: it reaches any."""
        return None if self.token_id is None else self.principal.id

    @property
    def reach(self) -> Reach:
        """What the caller reaches of tasks."""
        return Reach(None, self.within)

    @property
    def prefix(self) -> bytes:
        """What stands before names that the principal chose where they are stored."""
        return stored_name(self.principal.id, "").encode()

    def listed(self, request: Request) -> str | None:
        """Return whose things a list has: the caller's, or as the operator wants; None: everybody's.

        Raises Forbidden.
        """
        wanted = request.query_params.get(OF_PRINCIPAL.name, self.principal.id)
        if wanted != self.principal.id and self.token_id is not None:
            raise Forbidden(f"{OF_PRINCIPAL.name}: the things of others take API_TOKEN.")
        return None if wanted == "*" else wanted

    def stored(self, said: str) -> str:
        """Return what a name that the caller chooses is stored under."""
        return stored_name(self.principal.id, said)

    def require(self, declared: Operation) -> None:
        """Raise Forbidden unless what is declared is the caller's to ask for."""
        if self.token_id is None or declared.scope == ANY:
            return
        if not (self.is_main or declared.scope == "mcp"):
            raise Forbidden(BOUND)
        what = f"{declared.method} {declared.path}"
        if declared.scope is None:
            raise Forbidden(f"{what} is the operator's alone: it takes API_TOKEN.")
        if self.scopes.isdisjoint(declared.scopes):
            wanted = " or ".join(f'"{scope}"' for scope in sorted(declared.scopes))
            raise Forbidden(f"{what} needs the scope {wanted}")

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return self.token_id is None or scope in self.scopes

    def allow(self, what: str, scopes: Iterable[str]) -> None:
        """Raise Forbidden unless the caller has all the scopes that something needs."""
        for scope in scopes:
            if not self.may(scope):
                raise Forbidden(f'{what} needs the scope "{scope}"')


def caller_of(request: Request) -> Caller:
    """Return who makes a request that needs a token."""
    caller: Caller = request.scope["caller"]
    return caller


def operator(main_conversation_id: str) -> Caller:
    """Return the bearer of the API token."""
    return Caller(THE_OPERATOR, main_conversation_id, is_main=True, scopes=frozenset(SCOPES))


@dataclass(slots=True)
class SaidNames:
    """Sends an answer on with names as its caller's principal says them, not as they are stored.

    The one place for all bodies, events, headers and sentences: what stands before such a name is nobody's
    text. The operator's have nothing before them.
    """

    _scope: Scope
    _send: Send
    _start: Message | None = None

    async def __call__(self, message: Message) -> None:
        caller: Caller = self._scope["caller"]
        if VERBATIM in self._scope:
            await self._send(message)
        elif message["type"] == "http.response.start":
            # Its length is known with the body.
            self._start = message
        else:
            body = message.get("body", b"").replace(caller.prefix, b"")
            if self._start is not None:
                start, self._start = self._start, None
                whole = None if message.get("more_body") else len(body)
                headers = list(_said_headers(start["headers"], caller.prefix, whole))
                await self._send({**start, "headers": headers})
            await self._send({**message, "body": body})


def _said_headers(
    headers: Iterable[tuple[bytes, bytes]], prefix: bytes, length: int | None
) -> Iterator[tuple[bytes, bytes]]:
    for name, value in headers:
        if name.lower() != b"content-length":
            yield name, value.replace(prefix, b"")
        elif length is not None:
            yield name, b"%d" % length


class Enrolment:
    """Makes principals, and their main conversations with them."""

    def __init__(self, store: Store, sandbox: Sandbox, main_conversation_id: str) -> None:
        self._store = store
        self._sandbox = sandbox
        self._main = main_conversation_id

    async def named(self, issuer: str, subject: str) -> Principal | None:
        """Return the newest principal that signed tokens name so; it may be a tombstone."""
        return await self._store.principals.by_subject(issuer, subject)

    async def make(
        self, name: str, terms: Terms, issuer: str | None = None, subject: str | None = None
    ) -> Principal:
        """Make a principal; raises Conflict ``sandbox_too_weak``, ``no_uid``, Duplicate (its subject)."""
        report = await self._sandbox.ready()
        if why := self._sandbox.too_weak:
            raise Conflict(f"No principal can be made here: {why}", code="sandbox_too_weak")
        principal = Principal(
            new_id(PRINCIPAL),
            name,
            secrets.token_hex(16),
            now_ms(),
            terms=terms,
            issuer=issuer,
            subject=subject,
        )
        uids = () if report.no_uids else self._sandbox.policy.uids
        made = await self._store.principals.add(principal, uids)
        main = stored_name(made.id, self._main)
        await self._store.conversations.ensure(main, made.created_at, principal_id=made.id)
        await self._store.durable()
        return made


def terms_of(said: Mapping[str, Any], before: Terms = Terms()) -> Terms:  # noqa: B008 - it can't be changed
    """Return terms with what is said in the place of what they were; null: as if it had never been said."""
    plain = {name: getattr(Terms(), name) if value is None else _plain(value) for name, value in said.items()}
    return replace(before, **plain)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    return tuple(value) if isinstance(value, list) else value
