"""A channel's chats: who may use them and for what, their work side by side, an answer that is being made."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Final

import anyio
from anyio.abc import TaskGroup

from host.channels.base import TOPIC, Channel, ChannelFault, Sender, TryLater, Undeliverable
from host.channels.splitting import split
from shared.logging import Rounds
from shared.principals import OPERATOR, principal_of, stored_name
from shared.settings.access import ChannelRules
from shared.store.sql.chats import Chat
from shared.values import Event

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
        self.names_somebody = bool(self._entries)

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
        return self._approvers.names_somebody

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


logger = logging.getLogger("picoclaw.channels")

MOST_CHATS: Final = 64
"""Chats that are served at once; the others wait in the store."""

LOOK_EVERY_S: Final = 0.5
"""How often the store is asked for work, in seconds: tool servers and other processes make some as well."""

AFTER_A_FAULT_S: Final = 5.0


class Crowd:
    """Serves the chats that ``find`` names by ``serve``, which works until its chat has nothing more.

    A failure is logged and tried again after a pause; it holds up its own chat alone.
    """

    def __init__(
        self, find: Callable[[int], Awaitable[list[str]]], serve: Callable[[str], Awaitable[None]]
    ) -> None:
        self._find = find
        self._serve = serve
        self._busy: set[str] = set()
        self._woken = anyio.Event()

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        rounds = Rounds(logger, "A channel's work could not be looked for")
        async with anyio.create_task_group() as tasks:
            while True:
                self._woken = anyio.Event()
                with rounds:
                    await self._start(tasks)
                with anyio.move_on_after(LOOK_EVERY_S):
                    await self._woken.wait()

    async def _start(self, tasks: TaskGroup) -> None:
        for chat_id in await self._find(2 * MOST_CHATS):
            if len(self._busy) >= MOST_CHATS:
                return
            if chat_id not in self._busy:
                self._busy.add(chat_id)
                tasks.start_soon(self._one, chat_id)

    async def _one(self, chat_id: str) -> None:
        try:
            await self._serve(chat_id)
        except Exception:
            logger.exception("A chat's work failed inside the host", extra={"chat": chat_id})
            await anyio.sleep(AFTER_A_FAULT_S)
        finally:
            self._busy.discard(chat_id)
            self._woken.set()


FIRST_AFTER_S: Final = 1.0
"""An answer that is ready sooner is sent at once, whole."""

TYPING_EVERY_S: Final = 4.5
"""Messengers show typing for about five seconds."""

GOES_ON: Final = " …"

NoteDraft = Callable[[str], Awaitable[None]]


class Draft:
    """One answer in the making. ``stop`` it before the answer is delivered: no edit comes after that."""

    def __init__(
        self,
        channel: Channel,
        chat_id: str,
        *,
        reply_to: str | None,
        note: NoteDraft,
        draft_id: str | None = None,
    ) -> None:
        self._channel = channel
        self._chat_id = chat_id
        self._reply_to = reply_to
        self._note = note
        self._stopping = anyio.Event()
        self._text = ""
        self._shown = ""
        self.draft_id = draft_id

    async def show(self, events: AsyncIterator[Event]) -> None:
        """Follow a run's events until ``stop``; what the channel can't show now is left out."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._read, events)
            tasks.start_soon(self._type)
            await self._grow()
            tasks.cancel_scope.cancel()

    def stop(self) -> None:
        """Show nothing more; ``show`` returns once the call in flight is over."""
        self._stopping.set()

    async def _read(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if event.name == "chunk":
                self._text += event.data["text"]

    async def _type(self) -> None:
        while True:
            try:
                await self._channel.typing(self._chat_id)
            except Undeliverable:
                return
            except ChannelFault as fault:
                await anyio.sleep(_pause(fault))
            except Exception:
                logger.exception("A channel failed to show typing")
                return
            await anyio.sleep(TYPING_EVERY_S)

    async def _grow(self) -> None:
        pause = FIRST_AFTER_S
        while not await self._stopped_within(pause):
            pause = self._channel.edit_every_s
            if not self._channel.streams:
                continue
            try:
                # Never torn: a call that is still on its way could arrive after the whole answer.
                with anyio.CancelScope(shield=True):
                    await self._show_now()
            except ChannelFault as fault:
                pause = max(pause, _pause(fault))
            except Exception:
                logger.exception("A channel failed to show an answer in the making")
                pause = AFTER_A_FAULT_S

    async def _show_now(self) -> None:
        parts = split(self._text, self._channel.longest - len(GOES_ON))
        if not parts or parts[0] == self._shown:
            return
        if self.draft_id is None:
            self.draft_id = await self._channel.send(self._chat_id, parts[0] + GOES_ON, self._reply_to)
            await self._note(self.draft_id)
        else:
            await self._channel.edit(self._chat_id, self.draft_id, parts[0] + GOES_ON)
        self._shown = parts[0]

    async def _stopped_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._stopping.wait()
        return self._stopping.is_set()


def _pause(fault: ChannelFault) -> float:
    after = fault.after_s if isinstance(fault, TryLater) else None
    return AFTER_A_FAULT_S if after is None else after
