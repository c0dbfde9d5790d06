"""What people bring in: messages, on the volume before they are confirmed, of who may write; and presses."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from host.channels.base import (
    Brought,
    Button,
    Channel,
    ChannelDown,
    ChannelFault,
    Incoming,
    Moved,
    Pressed,
    Sender,
    TryLater,
)
from host.channels.chats import Rules, Wake
from host.channels.messages import cleaned, to_update, usable
from host.channels.splitting import units
from host.runs.admission import RateLimit
from host.runs.meter import Ledger
from host.runs.principals import PrincipalCache
from shared.approval_values import ELICITATION, Answer, Approval, ApprovalStatus, Decision
from shared.clock import now_ms
from shared.errors import PicoError, Unavailable
from shared.store.sql.chats import Chat, Saying
from shared.store.store import Store
from shared.untrusted import one_line

logger = logging.getLogger("picoclaw.channels")

MOST_WAITING: Final = 100
"""Messages of a chat that may wait to be handled."""

TOO_OFTEN: Final = "You write faster than I am allowed to read, so I left out what came last. Wait a minute."
EDITS: Final = "I don't read edited messages. Send me what has changed as a new message."
TOO_MANY: Final = f"{MOST_WAITING} of your messages are waiting already, so I left out what came last."


class ChannelDoor:
    """Implements ``Door`` for one channel."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        principals: PrincipalCache,
        press: Callable[[Pressed], Awaitable[None]],
        *,
        wake: Wake,
        connected: Wake,
    ) -> None:
        self._store = store
        self._principals = principals
        self._rules = rules
        self._book = store.channels
        self._press = press
        self._wake = wake
        self._connected = connected
        # By when they were written: what piled up while the host was away did not come all at once.
        self._moment = 0.0
        self._rate = RateLimit(rules.settings.messages_per_minute, clock=lambda: self._moment)
        self._notices = RateLimit(1)
        self._log = RateLimit(1)
        self._turned_away = 0
        self._album = ("", "")

    def connected(self) -> None:
        """Say that the channel works."""
        self._connected()

    async def take(self, *messages: Brought) -> None:
        """Return when what may come in is on the volume. Raises PicoError."""
        stored = False
        for message in messages:
            if isinstance(message, Pressed):
                await self._pressed(message)
            elif isinstance(message, Moved):
                await self._book.move(self._rules.channel, message.chat_id, message.to)
                stored = True
            else:
                stored |= await self._one(message)
        if stored:
            # Also when nothing is new: what an earlier try stored may not be on the volume yet.
            await self._store.durable()
            self._wake()

    async def _pressed(self, pressed: Pressed) -> None:
        if self._rules.allows(pressed.sender) and await self._is_served(pressed):
            await self._press(pressed)
        else:
            self._turn_away(pressed)

    async def _one(self, message: Incoming) -> bool:
        if not (self._rules.allows(message.sender) and usable(message) and await self._is_served(message)):
            self._turn_away(message)
            return False
        if message.edited and self._rules.settings.edited_messages == "sender":
            await self._notify(message, EDITS)
            return True
        update = to_update(message)
        notice = await self._refusal(message, urgent=update.urgent)
        if notice is not None:
            await self._notify(message, notice)
        elif await self._book.receive(self._rules.channel, [update], now_ms()):
            # Only now: a message that can't be stored yet is brought again and again until it is.
            if not self._goes_on(message):
                self._rate.count(message.sender.id)
            self._album = (message.sender.id, message.album)
        return True

    def _goes_on(self, message: Incoming) -> bool:
        """Return whether it is a part of the album of which one came just now: they count as one message."""
        return bool(message.album) and self._album == (message.sender.id, message.album)

    async def _refusal(self, message: Incoming, *, urgent: bool) -> str | None:
        """Return why an allowed sender's message is not taken."""
        self._moment = float(message.sent_at or now_ms())
        if self._rate.retry_after(message.sender.id) is not None and not self._goes_on(message):
            return TOO_OFTEN
        if urgent:
            # Above all /stop, which makes the queue shorter.
            return None
        waiting = await self._book.waiting(self._rules.channel, message.chat_id)
        return TOO_MANY if waiting >= MOST_WAITING else None

    async def _notify(self, message: Incoming, notice: str) -> None:
        """Say once a minute that something was left out."""
        if self._notices.retry_after(message.chat_id) is not None:
            return
        self._notices.count(message.chat_id)
        now = now_ms()
        chat = self._chat(message)
        home = await self._book.enter(chat, now, trusted=self._rules.trusts(chat))
        saying = Saying(f"notice:{cleaned(message.update_id)}", notice)
        await self._book.say(self._rules.channel, message.chat_id, home, saying, now)

    def _chat(self, message: Incoming | Pressed) -> Chat:
        sender = Sender(message.sender.id, cleaned(message.sender.name))
        return self._rules.chat(message.chat_id, sender, private=message.private)

    async def _is_served(self, message: Incoming | Pressed) -> bool:
        """Return whether the chat's principal may act: a chat of one that may not is nobody else's."""
        return await self._principals.is_active(self._chat(message).principal_id)

    def _turn_away(self, message: Incoming | Pressed) -> None:
        self._turned_away += 1
        if self._log.retry_after("") is None:
            self._log.count("")
            logger.warning(
                "A sender who is not allowed was turned away",
                extra={
                    "channel": self._rules.channel,
                    "sender": message.sender.id[:100],
                    "messages": self._turned_away,
                },
            )
            self._turned_away = 0


LONGEST_REQUEST: Final = 3500
"""UTF-16 code units of a request that is shown whole, where a message may have so many and ``BESIDE``."""
BESIDE: Final = 500
"""UTF-16 code units that stand around a request, and tell how it was decided."""
LONGEST_LABEL: Final = 60
BLANK: Final = "(blank)"
CUT: Final = (
    "\n…\n\nThis is too long to be shown here whole. See GET /approvals/{}, or the console, and answer there."
)
NOT_YOURS: Final = "You may not answer this."
NOTHING: Final = "Nothing waits here any more."
DONE: Final = "Done."
BUTTONS: Final[dict[str, tuple[str, Decision]]] = {
    "allow": ("Allow", "allow"),
    "deny": ("Deny", "deny"),
    "keep": ("Allow this call in this conversation", "allow"),
}
ENDED: Final = {
    ApprovalStatus.DENIED: "🚫 Denied",
    ApprovalStatus.ANSWERED: "💬 Answered",
    ApprovalStatus.EXPIRED: "⌛ Nobody answered in time",
    ApprovalStatus.DROPPED: "🚫 Cancelled",
}
ALLOWED: Final = "✅ Allowed"


class Cards:
    """Shows requests in one channel's chats, takes presses, and removes the buttons of what is decided."""

    def __init__(self, channel: Channel, ledger: Ledger, rules: Rules) -> None:
        self._channel = channel
        self._ledger = ledger
        self._rules = rules
        self._approvals = ledger.store.approvals
        self._unnoted: dict[str, anyio.Event] = {}
        self._room = max(min(LONGEST_REQUEST, channel.longest - BESIDE), 0)

    async def show(self, request: Approval, chat: Chat, conversation_id: str) -> str:
        """Send a request to a chat and return the channel's id of the message. Raises ChannelFault."""
        noted = self._unnoted[request.id] = anyio.Event()
        try:
            asked = _request_text(request, self._room)
            shown = await self._channel.ask(chat.id, asked, self._buttons(request, chat))
            await self._approvals.show(request.id, (chat.channel, chat.id, shown, conversation_id))
        finally:
            self._unnoted.pop(request.id, None)
            noted.set()
        return shown

    def _buttons(self, request: Approval, chat: Chat) -> list[list[Button]]:
        if request.status is not ApprovalStatus.PENDING:
            return []
        asks = request.kind == "question"
        if not asks and not self._rules.has_approvers(chat):
            return []
        choices = _choices(request, self._room).items()
        made = [Button(label, f"{name}.{request.id}") for name, (label, *_) in choices]
        rows = [[each] for each in made] if asks else [made[:2], made[2:]]
        return [row for row in rows if row]

    async def press(self, pressed: Pressed) -> None:
        """Take the answer that a pressed button is, and tell who pressed it. Raises Unavailable."""
        said = await self._pressed(pressed)
        await self.remove_buttons()
        await self._channel.acknowledge(pressed, said)

    async def _pressed(self, pressed: Pressed) -> str:
        name, _, approval_id = pressed.data.partition(".")
        if (noted := self._unnoted.get(approval_id)) is not None:
            await noted.wait()  # A button may be pressed before its message's id has come back.
        request = await self._approvals.get(approval_id, None)
        choice = None if request is None else _choices(request, self._room).get(name)
        home = None if request is None else self._home(request, pressed)
        if request is None or choice is None or home is None:
            return NOTHING
        sender = pressed.sender
        chat = self._rules.chat(pressed.chat_id, sender, private=pressed.private)
        may = request.kind == "question" or self._rules.approves(sender)
        if not (may and self._rules.may_hear(chat, home)):
            return NOT_YOURS
        who = {"principal_id": chat.principal_id, "token_id": None, "name": sender.display or sender.name}
        by = {**who, "door": chat.channel, "address": f"{chat.channel}:{sender.id}"}
        _, decision, message = choice
        answer = Answer(decision, by, message, request.input_sha256, remember=name == "keep")
        try:
            await self._approvals.decide(approval_id, None, answer, now_ms())
        except Unavailable:
            raise
        except PicoError as error:
            return error.message
        self._ledger.counts.approvals_decided[request.kind, decision] += 1
        await self._ledger.store.durable()
        return DONE

    def _home(self, request: Approval, pressed: Pressed) -> str | None:
        """Return in which conversation the chat was shown the request, None if it wasn't."""
        here = [self._rules.channel, pressed.chat_id]
        return next((place[3] for place in request.shown if list(place[:2]) == here), None)

    async def remove_buttons(self) -> None:
        """Say how requests were decided in the messages that show them, without buttons."""
        for request in await self._approvals.shown_and_decided():
            for place in request.shown:
                if place[0] == self._rules.channel and await self._closed(request, place):
                    await self._approvals.show(request.id, place, ends=True)

    async def _closed(self, request: Approval, place: Sequence[str]) -> bool:
        _, chat_id, message_id, _ = place
        try:
            told = f"{_request_text(request, self._room)}\n\n{_outcome(request)}"
            await self._channel.close(chat_id, message_id, told)
        except (ChannelDown, TryLater):
            return False
        except Exception as error:
            if not isinstance(error, ChannelFault):  # The message is gone, or nobody is there to see it.
                logger.exception("A channel failed to remove buttons")
        return True


def _choices(request: Approval, room: int) -> dict[str, tuple[str, Decision, str | None]]:
    """Return what may be pressed, by its name; a call that isn't shown whole can only be denied."""
    asked, labels = _shown(request)
    whole = units(asked) <= room
    if request.kind == "question":
        options = enumerate(zip(labels, _options(request), strict=True) if whole else ())
        return {str(at): (_label(shown), "answer", text) for at, (shown, text) in options}
    names = BUTTONS if whole else ("deny",)
    return {name: (*BUTTONS[name], None) for name in names}


def _options(request: Approval) -> Sequence[str]:
    return request.input.get("options") or ()


def _shown(request: Approval) -> tuple[str, list[str]]:
    """Return all that a person has to see of a request, and a question's options.

    Where a button is too short for one, they have numbers and stand in the text too.
    """
    lines = [one_line(text) if text.strip() else BLANK for text in _options(request)]
    if all(len(line) <= LONGEST_LABEL for line in lines):
        return request.asked, lines
    lines = [f"{at}. {line}" for at, line in enumerate(lines, 1)]
    return "\n\n".join([request.asked, *lines]), lines


def _request_text(request: Approval, room: int) -> str:
    asked, _ = _shown(request)
    if units(asked) > room:
        cut = asked.encode("utf-16-le", "replace")[: 2 * room].decode("utf-16-le", "ignore")
        asked = cut + CUT.format(request.id)
    if request.kind == "question":
        return asked if request.reason == ELICITATION else f"{asked}\n\nA message here is the answer."
    whose = f" (subagent {request.subagent})" if request.subagent else ""
    return f"May I do this?{whose} A message here denies it.\n\n{asked}"


def _outcome(request: Approval) -> str:
    by = (request.decided_by or {}).get("name")
    said = f": {_label(request.message)}" if request.message else ""
    return f"{ENDED.get(request.status, ALLOWED)}{f' by {_label(str(by))}' if by else ''}{said}"


def _label(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"
