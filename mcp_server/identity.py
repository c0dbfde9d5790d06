"""Whom a tool server acts for: read once from the environment at birth, and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CONVERSATION_ID: Final = re.compile(r"(?:prin-[0-9a-f-]{36}\+)?[A-Za-z0-9][A-Za-z0-9._:@+-]{0,199}")
PRINCIPAL_ID: Final = re.compile(r"operator|prin-[0-9a-f-]{36}")

DEFAULT_TASK_QUOTA: Final = 100


class NoIdentity(Exception):
    """The environment doesn't say whom to act for; the sentence says what is missing."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The conversation a tool server acts for, where its store is, and its zone ("": the machine's).

    ``principal_id``: whose the conversation is. ``access``: how to reach a store that several hosts share, as
    the host made it for this conversation. ``token_id``: the token by which somebody asked for this server
    over HTTP.
    """

    conversation_id: str
    is_main: bool
    db_path: Path
    store_dir: Path | None
    timezone: str
    task_quota: int
    access: str | None = field(default=None, repr=False)
    token_id: str | None = None
    principal_id: str = "operator"


def identity_of(environment: Mapping[str, str]) -> Identity:
    """Return the identity; raises NoIdentity. ``NANOCLAW_*`` names count where ``PICOCLAW_*`` is unset."""
    conversation_id = _value(environment, "CONVERSATION_ID")
    if not conversation_id:
        raise NoIdentity(
            "PICOCLAW_CONVERSATION_ID is not set: a tool server acts for exactly one conversation, "
            "which its environment names."
        )
    if not CONVERSATION_ID.fullmatch(conversation_id):
        raise NoIdentity(
            "PICOCLAW_CONVERSATION_ID must be 1 to 200 letters, digits and . _ : @ + - characters."
        )
    principal_id = _value(environment, "PRINCIPAL_ID") or "operator"
    if not PRINCIPAL_ID.fullmatch(principal_id):
        raise NoIdentity("PICOCLAW_PRINCIPAL_ID must be operator or an id such as prin-<uuid>.")
    db_path = _value(environment, "DB_PATH")
    if not db_path:
        raise NoIdentity("PICOCLAW_DB_PATH is not set: the path of the host's runtime database is needed.")
    store_dir = _value(environment, "STORE_DIR")
    return Identity(
        conversation_id=conversation_id,
        is_main=_value(environment, "IS_MAIN") == "1",
        db_path=Path(db_path),
        store_dir=Path(store_dir) if store_dir else None,
        timezone=environment.get("TZ") or environment.get("TIMEZONE") or "",
        task_quota=_task_quota(environment),
        principal_id=principal_id,
    )


def _task_quota(environment: Mapping[str, str]) -> int:
    text = environment.get("MAX_TASKS_PER_CONVERSATION", "") or str(DEFAULT_TASK_QUOTA)
    if not text.isdecimal():
        raise NoIdentity("MAX_TASKS_PER_CONVERSATION must be a whole number.")
    return int(text)


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"PICOCLAW_{name}") or environment.get(f"NANOCLAW_{name}", "")
