"""What a channel is: it brings messages of people in through a door, and carries messages out to chats.

Everything else is done for it, the same for all channels: who may write, rates, storing before confirming,
order, runs, commands, retries, splitting, telling of failures (docs/channels.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Protocol

from shared.values import Enclosed

TOPIC: Final = "_"
"""Stands between a Telegram chat and its topic in ``Incoming.chat_id``."""


class ChannelFault(Exception):
    """Something about a channel went wrong; the sentence is for people and holds no secret."""


class ChannelDown(ChannelFault):
    """The channel cannot work now: it is started again after a pause."""


class TryLater(ChannelFault):
    """A message could not be delivered now; ``after_s`` seconds is how long to wait, if anyone knows."""

    def __init__(self, sentence: str, after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.after_s = after_s


class Undeliverable(ChannelFault):
    """A message will never be delivered: the chat is gone, or doesn't want it."""


class ChatMoved(ChannelFault):
    """The chat has another id now, ``to``."""

    def __init__(self, to: str) -> None:
        super().__init__(f"the chat is {to} now")
        self.to = to


class Gone(ChannelFault):
    """The message that was to be edited isn't there any more."""


class Forged(ChannelFault):
    """A webhook call that doesn't come from whom it claims."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who wrote: the channel's id for them, their name there (without ``@``), how they are called."""

    id: str
    name: str = ""
    display: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message; ``id`` is what ``Channel.fetch`` takes, ``size`` in bytes.

    ``replied``: it is a file of the message that was replied to.
    """

    id: str
    name: str
    media_type: str = ""
    size: int | None = None
    replied: bool = False


@dataclass(frozen=True, slots=True)
class Incoming:
    """A person's message. ``update_id`` is the same whenever the channel brings it again.

    ``chat_id``: letters, digits and ``. _ @ + -``; a topic of a chat is a chat of its own. ``private``:
    nobody but the sender is in the chat. ``text``: the sender's own words. ``enclosed``: what else there is
    (replied to, forwarded, a place); ``quoted``: the same as a ``reply`` whose writer isn't known.
    ``message_id``: what an answer in a group replies to. ``sent_at``: milliseconds since the epoch, now if
    the channel doesn't know. ``album``: messages with the same one are one message. ``edited``: the text
    takes the place of one that came before.
    """

    update_id: str
    chat_id: str
    sender: Sender
    text: str
    private: bool = True
    quoted: str = ""
    message_id: str | None = None
    attachments: tuple[Attachment, ...] = ()
    sent_at: int | None = None
    enclosed: tuple[Enclosed, ...] = ()
    album: str = ""
    edited: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A chat has the id ``to`` from now on, and keeps its conversations."""

    chat_id: str
    to: str


@dataclass(frozen=True, slots=True)
class Button:
    """What stands on a button, and what the channel brings back when it is pressed (at most 64 bytes)."""

    label: str
    data: str


@dataclass(frozen=True, slots=True)
class Pressed:
    """Somebody pressed a button of ``Channel.ask``; ``id`` is what ``Channel.acknowledge`` takes."""

    id: str
    chat_id: str
    sender: Sender
    data: str
    private: bool = True


Brought = Incoming | Moved | Pressed


class Door(Protocol):
    """The one way in."""

    async def take(self, *messages: Brought) -> None:
        """Return when what may come in is on the volume; only then may the channel confirm it.

        Raises PicoError when it cannot be stored: bring it again later.
        """

    def connected(self) -> None:
        """Say that the channel works."""


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """What a third-party channel is made with: its name in the settings, its options and secrets."""

    name: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Channel(ABC):
    """A way to reach people. ``receive`` and ``send`` are all that one needs.

    ``longest``: UTF-16 code units that one message may have, 128 or more, with buttons 600 or more.
    ``streams``: ``edit`` works, and may be called every ``edit_every_s`` seconds. ``largest_file``: bytes
    that ``fetch`` may return. ``has_buttons``: ``ask`` and ``close`` work.
    """

    longest: int = 4000
    streams: bool = False
    edit_every_s: float = 2.0
    largest_file: int = 20_000_000
    has_buttons: bool = False

    @abstractmethod
    async def receive(self, door: Door) -> None:
        """Bring messages until cancelled. Raises ChannelDown, or anything else, to be started again."""

    @abstractmethod
    async def send(self, chat_id: str, text: str, reply_to: str | None) -> str:
        """Deliver a message and return the channel's id of it. Raises TryLater, Undeliverable, ChatMoved."""

    async def send_file(self, chat_id: str, file: BinaryIO, name: str, caption: str) -> None:
        """Deliver a file with a line of text. Raises TryLater, Undeliverable, ChatMoved."""
        from host.channels.splitting import split  # Here: a host without channels has no use for it.

        for part in split(f"{caption}\n[{name}: files can't be sent here]", self.longest):
            await self.send(chat_id, part, None)

    async def edit(self, chat_id: str, message_id: str, text: str) -> None:
        """Replace a message; the same text again is no fault. Raises TryLater, Undeliverable, Gone."""
        raise Gone("this channel cannot edit")

    async def delete(self, chat_id: str, message_id: str) -> None:  # noqa: B027 - not every channel can
        """Remove a message, if it is still there. Raises TryLater."""

    async def ask(self, chat_id: str, text: str, buttons: Sequence[Sequence[Button]]) -> str:
        """Send a text as it is, with rows of buttons; return the channel's id of it. Raises as ``send``."""
        raise Undeliverable("this channel has no buttons")

    async def close(self, chat_id: str, message_id: str, text: str) -> None:
        """Replace a message of ``ask`` by a text without buttons. Raises as ``edit``."""
        raise Gone("this channel has no buttons")

    async def acknowledge(self, pressed: Pressed, text: str) -> None:  # noqa: B027 - not every channel can
        """Tell whoever pressed a button what came of it; nothing is raised."""

    async def typing(self, chat_id: str) -> None:  # noqa: B027 - not every channel can
        """Show for a few seconds that an answer is on its way. Raises ChannelFault."""

    async def fetch(self, attachment: Attachment) -> bytes:
        """Return an attachment's bytes. Raises TryLater, Undeliverable."""
        raise Undeliverable("this channel has no files")

    async def webhook(self, headers: Mapping[str, str]) -> None:
        """Check who calls ``POST /channels/<name>/webhook``, before its body is read. Raises Forged."""
        raise Forged("this channel has no webhook")

    async def called(self, body: bytes) -> Sequence[Brought]:
        """Return what a checked webhook call brought. Raises ValueError when it makes no sense."""
        return ()

    async def aclose(self) -> None:  # noqa: B027 - not every channel can
        """Let go of connections."""
