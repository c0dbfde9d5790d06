"""Values for tests of the store."""

from __future__ import annotations

from typing import Any

from shared.principals import Principal
from shared.usage_values import Usage
from shared.values import Idempotency, NewMessage, NewRun, RunEnd, RunState

T0 = 1_800_000_000_000
LEASE = 60_000
DAY = 24 * 3600 * 1000


def said(name: str, text: str | None = "hello", role: Any = "user") -> NewMessage:
    blocks = [{"type": "text", "text": text or "a step"}]
    return NewMessage(f"msg-{name}", role, blocks, text, sender="user", sender_name="Ann")


def a_run(name: str, conversation_id: str = "c", **changes: Any) -> NewRun:
    values: dict[str, Any] = {
        "run_id": f"run-{name}",
        "conversation_id": conversation_id,
        "message": said(name),
        "owner": "host-1",
        "now": T0,
        "lease_ms": LEASE,
    }
    return NewRun(**(values | changes))


def an_end(state: RunState = RunState.SUCCESS, **changes: Any) -> RunEnd:
    values: dict[str, Any] = {
        "state": state,
        "answer": {"status": state.value, "result": "done"},
        "usage": Usage(1, 2, 3, 4),
        "model": "model-1",
    }
    return RunEnd(**(values | changes))


def a_key(key: str = "k", digest: str = "d") -> Idempotency:
    return Idempotency("/chat", key, digest)


def a_principal(name: str, **changes: Any) -> Principal:
    values: dict[str, Any] = {"id": f"prin-{name}", "name": name, "directory": f"d-{name}", "created_at": T0}
    return Principal(**(values | changes))
