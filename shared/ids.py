"""The one place that makes identifiers: a kind, a dash, a UUID of version 4 (http-api: "Ids")."""

import os
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from shared.clock import now_ms
from shared.principals import OPERATOR


@dataclass(frozen=True, slots=True)
class Token:
    """What a bearer of a token may be: a conversation of a principal, in the main role or not.

    ``expires_at`` None: it lasts until it is revoked. ``last_used_at`` is known to the minute.
    """

    id: str
    conversation_id: str
    is_main: bool
    created_at: int
    expires_at: int | None
    principal_id: str = OPERATOR
    name: str = ""
    scopes: tuple[str, ...] = ("mcp", "tasks")
    last_used_at: int | None = None


CONVERSATION: Final = "conv"
MESSAGE: Final = "msg"
RUN: Final = "run"
TASK: Final = "task"
TASK_RUN: Final = "taskrun"
REQUEST: Final = "req"
SESSION: Final = "sess"
PRINCIPAL: Final = "prin"
TOKEN: Final = "token"  # noqa: S105 - the kind of an id, no secret
MCP_SESSION: Final = "mcp"
APPROVAL: Final = "appr"
WEBHOOK: Final = "hook"
EVENT: Final = "evt"
FILE: Final = "file"


def new_id(kind: str) -> str:
    """Return a fresh identifier such as ``conv-1b4e28ba-2fa1-41d2-883f-0016d3cca427``.

    It begins with the moment (48 bits; 74 are random), so that new rows lie beside each other in an index of
    a large store. A conversation's does not: people tell it by its first digits.
    """
    begins = os.urandom(6) if kind == CONVERSATION else now_ms().to_bytes(6, "big")
    return f"{kind}-{UUID(bytes=begins + os.urandom(10), version=4)}"


def id_of_pause(run_id: str) -> str:
    """Return the id of the message that says what a run waits for; a run pauses once."""
    return f"{MESSAGE}-{run_id.removeprefix(f'{RUN}-')}"


def run_of_pause(message_id: str) -> str:
    """Return which run it would be whose pause a message says."""
    return f"{RUN}-{message_id.removeprefix(f'{MESSAGE}-')}"
