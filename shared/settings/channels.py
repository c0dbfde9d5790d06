"""The ``channels`` section of ``config.json``: who may talk to the agent from where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints

from shared.settings.section import Section, setting

Ids = tuple[str | int, ...]
PrincipalId = Annotated[
    str, StringConstraints(pattern=r"^(operator|prin-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
]
Edits = Literal["agent", "sender"]


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
    api_base: str = setting("Address of the Bot API", "https://api.telegram.org", pattern=r"^https?://")
    webhook_url: str | None = setting(
        "This host's public address; Telegram then calls it instead of being asked",
        None,
        pattern=r"^https?://",
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
        return [
            f"channels.{self.key(name)}.owners is empty, so persona, memory and skills are read-only from "
            f"its chats: name the owner there, or set channels.{self.key(name)}.trusted to true."
            for name, channel in self.by_name().items()
            if channel.enabled and not channel.trusted and not channel.owners
        ]

    def key(self, name: str) -> str:
        """Return a channel's name below ``channels`` in the settings."""
        return name if name == "telegram" else f"plugins.{name}"

    def by_name(self) -> dict[str, ChannelRules]:
        """Return all channels, served or not."""
        return {"telegram": self.telegram, **self.plugins}
