"""Principals: on whose behalf conversations exist, and how names that callers choose are kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

from shared import jsons

OPERATOR: Final = "operator"
"""The first principal: the bearer of ``API_TOKEN``. Whoever isn't named another belongs to it."""

SCOPES: Final = ("chat", "tasks", "files", "approve", "usage", "mcp")


class PrincipalStatus(StrEnum):
    """Only an active principal acts. DELETED: nothing is left of it but this row, which retention removes."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator allows a principal. None: no limit of its own.

    ``budgets`` and ``rate_limits`` have the form of the settings of those names; ``grants`` names what the
    operator configured with credentials or paths (``{"mcp": ["github"], "network": true}``).
    ``permissions`` make those of the settings stricter.
    """

    scopes: tuple[str, ...] = SCOPES
    budgets: Mapping[str, Any] | None = None
    rate_limits: Mapping[str, Any] | None = None
    models: tuple[str, ...] | None = None
    workspace_mb: int | None = None
    grants: Mapping[str, Any] = field(default_factory=dict)
    timezone: str | None = None
    concurrent_runs: int | None = None
    tasks: int | None = None
    permissions: tuple[Mapping[str, Any], ...] = ()

    def stored(self) -> str:
        """Return the JSON text that ``from_stored`` reads."""
        return jsons.dumps(asdict(self))

    @classmethod
    def from_stored(cls, text: str) -> Terms:
        """Read what is stored; what another version of the program added is left out."""
        found = {name: value for name, value in jsons.loads(text).items() if name in _TERMS}
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**found | lists)


_TERMS: Final = frozenset(each.name for each in fields(Terms))


@dataclass(frozen=True, slots=True)
class Principal:
    """A person or a program that has conversations of its own.

    ``issuer`` and ``subject`` name it in signed tokens of others; ``directory`` is the random name of its
    workspaces' directory, ``uid`` the user that its commands run as. ``revision`` rises with each change.
    """

    id: str
    name: str
    directory: str
    created_at: int
    status: PrincipalStatus = PrincipalStatus.ACTIVE
    terms: Terms = field(default_factory=Terms)
    issuer: str | None = None
    subject: str | None = None
    uid: int | None = None
    deleted_at: int | None = None
    revision: int = 0

    @property
    def is_operator(self) -> bool:
        """Whether it is the first one, which stands above the others."""
        return self.id == OPERATOR


@dataclass(frozen=True, slots=True)
class PrincipalUse:
    """What a principal has and does: active tasks, runs in flight, what it spent on one day (UTC)."""

    conversations: int
    tasks: int
    running: int
    tokens: int
    microdollars: int
    last_activity: int | None


SIGNED: Final = "signed"
"""Stands for the id of a signed token: renewed, it is the same caller's."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for something: the bearer of a principal's token (None: of API_TOKEN), by which door."""

    principal_id: str | None
    token_id: str | None
    door: str
    address: str | None


HOST: Final = Actor(None, None, "host", None)
"""Who acts where nobody asks."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Which rows a caller sees: those of one conversation, of one principal, or (both None) all there are."""

    conversation_id: str | None = None
    principal_id: str | None = None

    def holds(self, conversation_id: str, principal_id: str) -> bool:
        """Return whether a conversation of a principal is among them."""
        return self.conversation_id in (None, conversation_id) and self.principal_id in (None, principal_id)

    def stored(self, said: str) -> str:
        """Return the id that a name which the caller chose is stored under."""
        return stored_name(self.principal_id or OPERATOR, said)


EVERYTHING: Final = Reach()


def stored_name(principal_id: str, said: str) -> str:
    """Return the id that a chosen name is stored under; nobody can choose a name with a ``+``."""
    return said if principal_id == OPERATOR else f"{principal_id}+{said}"


def said_name(principal_id: str, stored: str) -> str:
    """Return an id as its principal says it."""
    return stored if principal_id == OPERATOR else stored.removeprefix(f"{principal_id}+")


def principal_of(stored: str) -> str:
    """Return whose a name is that its caller chose, as it is stored."""
    principal_id, plus, _ = stored.partition("+")
    return principal_id if plus and principal_id.startswith("prin-") else OPERATOR
