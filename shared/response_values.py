"""A response of the door /v1/responses as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response: the run that answers, and what it was asked.

    ``asked``: ``echo`` are the fields that the response tells again, ``items`` the input's items.
    ``made_conversation``: its conversation is there for responses alone.
    """

    id: str
    conversation_id: str
    principal_id: str
    run_id: str
    previous_id: str | None
    made_conversation: bool
    background: bool
    asked: Mapping[str, Any]
    created_at: int
