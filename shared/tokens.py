"""The tokens that outside agents bear."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Token:
    """What a bearer of a conversation's token may be: that conversation, in the main role or not.

    ``expires_at`` None: it lasts until it is revoked.
    """

    id: str
    conversation_id: str
    is_main: bool
    created_at: int
    expires_at: int | None
