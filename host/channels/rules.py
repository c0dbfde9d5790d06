"""The rules of one channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from host.channels.base import TOPIC, Sender
from shared.channel_values import Chat
from shared.principals import OPERATOR, principal_of, stored_name
from shared.settings.channels import ChannelRules

EVERYONE: Final = "*"


class Names:
    """A list such as ``allow_from``: ``123``, ``@name``, ``telegram:123``, ``123|name`` (both must match).

    Names are compared without regard to case, as Telegram does. An entry that is empty, or lacks one of its
    two halves, matches nobody.
    """

    def __init__(self, entries: Iterable[str | int], channel: str) -> None:
        listed = [str(entry).strip() for entry in entries]
        self.empty = not listed
        self.everyone = EVERYONE in listed
        self._entries = tuple(_parsed(listed, channel))

    def names(self, sender: Sender) -> bool:
        """Return whether an entry means this sender; ``*`` means nobody in particular."""
        name = sender.name.casefold()
        return any(
            (identity is None or identity == sender.id) and (wanted is None or wanted == name)
            for identity, wanted in self._entries
        )

    def allow(self, sender: Sender) -> bool:
        """Return whether ``allow_from`` lets a sender write: empty and ``*`` let everyone in."""
        return self.empty or self.everyone or self.names(sender)


def _parsed(entries: Iterable[str], channel: str) -> Iterator[tuple[str | None, str | None]]:
    """Yield ``(id, name)`` of each entry that means somebody; None where it doesn't say."""
    for entry in entries:
        text = entry.removeprefix(f"{channel}:")
        if not text or text == EVERYONE:
            continue
        if "|" in text:
            identity, _, name = (part.strip() for part in text.partition("|"))
            name = name.removeprefix("@").casefold()
            if identity and name:
                yield identity, name
        elif text.startswith("@"):
            if len(text) > 1:
                yield None, text[1:].casefold()
        else:
            yield text, None


class Rules:
    """Who may use one channel, and for what."""

    def __init__(self, channel: str, settings: ChannelRules, main_conversation_id: str) -> None:
        self.channel = channel
        self.settings = settings
        self.main = main_conversation_id
        self._allowed = Names(settings.allow_from, channel)
        self._owners = Names(settings.owners, channel)
        approvers = settings.owners if settings.approvers is None else settings.approvers
        self._approvers = Names(approvers, channel)
        self._principals = {
            name.removeprefix(f"{channel}:"): whose for name, whose in settings.principals.items()
        }

    def allows(self, sender: Sender) -> bool:
        """Return whether the sender may write at all."""
        return self._allowed.allow(sender)

    def owns(self, sender: Sender) -> bool:
        """Return whether the sender may use the main conversation. ``*`` makes nobody an owner."""
        return self._owners.names(sender)

    def approves(self, sender: Sender) -> bool:
        """Return whether the sender may allow and deny calls. ``*`` makes nobody an approver."""
        return self.allows(sender) and self._approvers.names(sender)

    def has_approvers(self, chat: Chat) -> bool:
        """Return whether somebody in the chat may allow and deny calls, or may be."""
        if chat.private:
            return self.approves(sender_of(chat))
        return not self._approvers.empty

    def trusts(self, chat: Chat) -> bool:
        """Return whether a conversation begun in a chat may change what agents obey."""
        return self.settings.trusted or (chat.private and self.owns(sender_of(chat)))

    def chat(self, chat_id: str, sender: Sender, *, private: bool) -> Chat:
        """Return a chat, of the principal that it is mapped to: by its own id, a private one by its sender's.

        A topic of a mapped group belongs to that group's principal.
        """
        group = chat_id.partition(TOPIC)[0] if self.channel == "telegram" else chat_id
        names = (chat_id, group, *([sender.id] if private else []))
        whose = next((self._principals[name] for name in names if name in self._principals), OPERATOR)
        return Chat(self.channel, chat_id, private, sender.id, sender.name, whose)

    def main_of(self, chat: Chat) -> str:
        """Return the main conversation of the chat's principal."""
        return stored_name(chat.principal_id, self.main)

    def may_hear(self, chat: Chat, conversation_id: str) -> bool:
        """Return whether a chat, by who spoke in it last, may be told what the conversation says."""
        sender = sender_of(chat)
        mapped = self.chat(chat.id, sender, private=chat.private)
        if principal_of(conversation_id) != mapped.principal_id or not self.allows(sender):
            return False
        return conversation_id != self.main_of(mapped) or (chat.private and self.owns(sender))


def sender_of(chat: Chat) -> Sender:
    """Return who spoke last in a chat."""
    return Sender(chat.sender_id, chat.sender_name)


Wake = Callable[[], None]
"""Says that there is something to do."""
