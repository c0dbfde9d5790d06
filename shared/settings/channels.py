"""The ``channels`` section of ``config.json``: who may talk to the agent from where."""

from __future__ import annotations

from pydantic import Field, SecretStr

from shared.settings.section import Section

Ids = tuple[str | int, ...]


class Telegram(Section):
    """A Telegram bot."""

    enabled: bool = Field(default=False, description="Serve this channel")
    token: SecretStr | None = Field(default=None, description="The bot's token; it belongs in .security.yml")
    allow_from: Ids = Field(
        default=(),
        description='Who may write: `123`, `"@name"`, `"telegram:123"`, `"123|name"`; `["*"]` is everyone',
    )
    owners: Ids = Field(default=(), description="Ids that may use the main conversation")
    api_base: str = Field(
        default="https://api.telegram.org", pattern=r"^https?://", description="Address of the Bot API"
    )


class Channels(Section):
    """Channels by name."""

    telegram: Telegram = Field(default_factory=Telegram)
