"""Calls and questions that wait for a person, in chats: a message each, with buttons for who may answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from host.channels.base import Button, Channel, ChannelDown, ChannelFault, Pressed, TryLater
from host.channels.chats import Rules
from host.runs.meter import Ledger
from shared.approval_values import ELICITATION, Answer, Approval, ApprovalStatus, Decision
from shared.clock import now_ms
from shared.errors import PicoError, Unavailable
from shared.store.sql.chats import Chat
from shared.untrusted import one_line

logger = logging.getLogger("picoclaw.channels")

LONGEST: Final = 3500
"""Characters of a request that is shown whole."""
LONGEST_LABEL: Final = 60
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

    async def show(self, request: Approval, chat: Chat, conversation_id: str) -> str:
        """Send a request to a chat and return the channel's id of the message. Raises ChannelFault."""
        shown = await self._channel.ask(chat.id, _text(request), self._buttons(request, chat))
        await self._approvals.show(request.id, (chat.channel, chat.id, shown, conversation_id))
        return shown

    def _buttons(self, request: Approval, chat: Chat) -> list[list[Button]]:
        if request.status is not ApprovalStatus.PENDING:
            return []
        asks = request.kind == "question"
        if not asks and not self._rules.has_approvers(chat):
            return []
        made = [Button(label, f"{name}.{request.id}") for name, (label, *_) in _choices(request).items()]
        rows = [[each] for each in made] if asks else [made[:2], made[2:]]
        return [row for row in rows if row]

    async def press(self, pressed: Pressed) -> None:
        """Take the answer that a pressed button is, and tell who pressed it. Raises Unavailable."""
        said = await self._pressed(pressed)
        await self.remove_buttons()
        await self._channel.acknowledge(pressed, said)

    async def _pressed(self, pressed: Pressed) -> str:
        name, _, approval_id = pressed.data.partition(".")
        request = await self._approvals.get(approval_id, None)
        choice = None if request is None else _choices(request).get(name)
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
            await self._channel.close(chat_id, message_id, f"{_text(request)}\n\n{_outcome(request)}")
        except (ChannelDown, TryLater):
            return False
        except Exception as error:
            if not isinstance(error, ChannelFault):  # The message is gone, or nobody is there to see it.
                logger.exception("A channel failed to remove buttons")
        return True


def _choices(request: Approval) -> dict[str, tuple[str, Decision, str | None]]:
    """Return what may be pressed, by its name; a call that isn't shown whole can only be denied."""
    whole = len(request.asked) <= LONGEST
    if request.kind == "question":
        options = enumerate(request.input.get("options") or () if whole else ())
        return {str(at): (_label(text), "answer", text) for at, text in options}
    names = BUTTONS if whole else ("deny",)
    return {name: (*BUTTONS[name], None) for name in names}


def _text(request: Approval) -> str:
    asked = request.asked
    if len(asked) > LONGEST:
        asked = asked[:LONGEST] + CUT.format(request.id)
    if request.kind == "question":
        return asked if request.reason == ELICITATION else f"{asked}\n\nA message here is the answer."
    whose = f" (subagent {request.subagent})" if request.subagent else ""
    return f"May I do this?{whose} A message here denies it.\n\n{asked}"


def _outcome(request: Approval) -> str:
    by = (request.decided_by or {}).get("name")
    said = f": {one_line(request.message)[:LONGEST_LABEL]}" if request.message else ""
    return f"{ENDED.get(request.status, ALLOWED)}{f' by {one_line(str(by))}' if by else ''}{said}"


def _label(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"
