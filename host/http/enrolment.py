"""How a principal comes into being, whoever asks for it: the operator, or its first signed token."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from host.sandbox.client import Sandbox
from shared.clock import now_ms
from shared.errors import Conflict
from shared.ids import PRINCIPAL, new_id
from shared.principals import Principal, Terms, stored_name
from shared.store.store import Store


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
