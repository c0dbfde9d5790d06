"""The section ``auth`` of ``config.json``: tokens that an identity provider signs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from pydantic import Field, field_validator, model_validator

from shared.principals import SCOPES
from shared.settings.section import Section, setting
from shared.settings.sections import PrincipalBudgets

WITHOUT_LIMIT: Final = (
    "needs a limit in `defaults.budgets` with `create`: anybody with an account could spend without limit"
)


def known_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return scopes, each once, in the order of ``SCOPES``; raises ``ValueError`` naming an unknown one."""
    given = tuple(scopes)
    for scope in given:
        if scope not in SCOPES:
            raise ValueError(f"there is no scope {scope[:100]!r}; there are: {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in given)


class PrincipalRates(Section):
    """How often a principal may ask; 0 switches a limit off."""

    requests_per_minute: int | None = setting("Requests in a minute", None, ge=0)
    messages_per_minute: int | None = setting("Messages in a minute", None, ge=0)


class JwtDefaults(Section):
    """What a principal may do that its first token makes."""

    scopes: tuple[str, ...] = setting("What its tokens may be for", SCOPES)
    budgets: PrincipalBudgets = Field(default_factory=PrincipalBudgets)
    rate_limits: PrincipalRates = Field(default_factory=PrincipalRates)
    models: tuple[str, ...] | None = setting("Models it may ask for; null: all", None)
    workspace_mb: int | None = setting("MiB that its files may take", None, ge=1)

    _scopes = field_validator("scopes")(known_scopes)


class Jwt(Section):
    """Signed tokens (RFC 7519) beside those of the store; off without an issuer."""

    issuer: str | None = setting("Whose tokens: their claim `iss`", None, min_length=1)
    audience: str | None = setting("For whom: their claim `aud`", None, min_length=1)
    jwks_file: Path | None = setting("The issuer's keys (RFC 7517) as a file", None)
    jwks_url: str | None = setting("The address where the issuer has its keys", None, pattern=r"^https?://")
    principal_claim: str = setting("The claim that names the principal, its `subject`", "sub", min_length=1)
    scopes_claim: str = setting("The claim with the scopes", "scope", min_length=1)
    create: bool = setting("Make a principal at its first valid token", False)
    defaults: JwtDefaults = Field(default_factory=JwtDefaults)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.issuer is None:
            return self
        if self.audience is None:
            raise ValueError(
                "needs an `audience`: without it a token that was made for another service would do"
            )
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("needs `jwks_file` or `jwks_url`, one of them")
        if self.create and not self.defaults.budgets.limited:
            raise ValueError(WITHOUT_LIMIT)
        return self


class Auth(Section):
    """Who may call, beside the bearer of API_TOKEN and of the store's tokens."""

    jwt: Jwt = Field(default_factory=Jwt)
