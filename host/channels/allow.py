"""Who is on a list of ids (settings: "Channels"): the one place that reads ``allow_from`` and ``owners``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from host.channels.base import Sender

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


class AllowList(Names):
    """``allow_from``: empty and ``*`` let everyone in."""

    def allows(self, sender: Sender) -> bool:
        """Return whether the sender may write."""
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
