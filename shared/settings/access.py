"""The sections ``auth`` and ``channels``: whose signed tokens are taken, and who may talk from where."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from shared.principals import SCOPES
from shared.settings.sections import PrincipalBudgets, Section, WebAddress, setting

Ids = tuple[str | int, ...]
PrincipalId = Annotated[
    str, StringConstraints(pattern=r"^(operator|prin-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
]
Edits = Literal["agent", "sender"]
NOBODY: Final = frozenset(("", "*", "@"))
"""Owners that mean nobody: the main conversation is never everyone's."""


class ChannelRules(Section):
    """What every channel has: whether it is served, and for whom."""

    enabled: bool = setting("Serve this channel", False)
    allow_from: Ids = setting(
        'Who may write: `123`, `"@name"`, `"telegram:123"`, `"123|name"`; `["*"]` is everyone', ()
    )
    owners: Ids = setting(
        "Who may use the main conversation, by `/main` in a private chat, and whose private "
        "chats may change what agents obey: persona, memory, skills",
        (),
    )
    approvers: Ids | None = setting(
        "Who may allow and deny calls that wait, in the chat of their conversation; those of "
        "`owners` if it is not set, and nobody if it is empty",
        None,
    )
    trusted: bool = setting("All chats of this channel may change persona, memory and skills", False)
    principals: dict[str, PrincipalId] = setting(
        "Whose a chat's conversations are: `prin-...` by the id of the chat, or of the sender in "
        "private chats; all others are the operator's",
        default_factory=dict,
    )
    messages_per_minute: int = setting(
        "Messages of one sender in a minute; more are dropped and said so", 30, ge=0
    )
    edited_messages: Edits = setting(
        "Who is told of an edit: the `agent`, or the `sender` (that nobody reads it)", "agent"
    )


class Telegram(ChannelRules):
    """A Telegram bot."""

    token: SecretStr | None = setting("The bot's token; it belongs in .security.yml", None)
    api_base: WebAddress = setting("Address of the Bot API", "https://api.telegram.org")
    webhook_url: WebAddress | None = setting(
        "This host's public address; Telegram then calls it instead of being asked", None
    )
    webhook_secret: SecretStr | None = setting(
        "What Telegram's calls must carry; made from the token when unset", None
    )
    streaming: bool = setting("Show an answer while it is being written", True)
    max_file_mb: int = setting("Largest file that is fetched, megabytes", 20, ge=0, le=20)


class PluginChannel(ChannelRules):
    """A channel of an installed package, by the name of its entry point."""

    options: dict[str, str | int | float | bool] = setting(
        "What the channel wants to know", default_factory=dict
    )
    secrets: dict[str, SecretStr] = setting(
        "The same for secrets; they belong in .security.yml", default_factory=dict
    )


class Channels(Section):
    """Channels by name."""

    telegram: Telegram = Field(default_factory=Telegram)
    plugins: dict[str, PluginChannel] = setting(
        "Channels of installed packages, by name", default_factory=dict
    )

    def without_owners(self) -> list[str]:
        """Return a sentence for each served channel whose chats never change what agents obey."""
        found = {
            self.key(name): "names nobody" if channel.owners else "is empty"
            for name, channel in self.by_name().items()
            if channel.enabled and not channel.trusted
            if {str(each).strip() for each in channel.owners} <= NOBODY
        }
        return [
            f"channels.{key}.owners {what}, so persona, memory and skills are read-only from its chats: name "
            f"the owner there, or set channels.{key}.trusted to true."
            for key, what in found.items()
        ]

    def key(self, name: str) -> str:
        """Return a channel's name below ``channels`` in the settings."""
        return name if name == "telegram" else f"plugins.{name}"

    def by_name(self) -> dict[str, ChannelRules]:
        """Return all channels, served or not."""
        return {"telegram": self.telegram, **self.plugins}


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
    jwks_url: WebAddress | None = setting("The address where the issuer has its keys", None)
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
