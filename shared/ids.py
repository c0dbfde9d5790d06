"""The one place that makes identifiers: a kind, a dash, a random UUID (http-api: "Ids")."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

CONVERSATION: Final = "conv"
MESSAGE: Final = "msg"
RUN: Final = "run"
TASK: Final = "task"
TASK_RUN: Final = "taskrun"
REQUEST: Final = "req"
SESSION: Final = "sess"
TOKEN: Final = "token"  # noqa: S105 - the kind of an id, no secret
MCP_SESSION: Final = "mcp"


def new_id(kind: str) -> str:
    """Return a fresh identifier such as ``conv-1b4e28ba-2fa1-41d2-883f-0016d3cca427``."""
    return f"{kind}-{uuid4()}"
