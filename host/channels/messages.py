"""What a person's message becomes: stored while it waits, its files fetched, its commands answered."""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import anyio

from host.channels.base import Attachment, Channel, ChannelFault, Incoming, Sender, TryLater
from host.channels.chats import Rules, sender_of
from host.ports import SandboxFault
from host.runs.attachments import INBOX, Attachments, line, safe_name
from host.runs.service import RunService
from host.runs.spec import Attached
from shared.clock import now_ms
from shared.errors import NotRunning
from shared.ids import MESSAGE, new_id
from shared.principals import Reach, principal_of
from shared.shapes import task_view
from shared.store.sql.chats import Chat, NewUpdate, Update
from shared.store.store import Store
from shared.task_values import Task
from shared.tasks import TaskService
from shared.values import Block, Enclosed, Lease

LONGEST_TEXT: Final = 100_000
LONGEST_ENCLOSED: Final = 5_000
MOST_ENCLOSED: Final = 10
LONGEST_NAME: Final = 120
MOST_ATTACHMENTS: Final = 10
LONGEST_ID: Final = 200

CHAT_ID: Final = re.compile(r"[A-Za-z0-9._@+-]{1,100}")
URGENT: Final = frozenset({"/stop", "/tasks", "/start", "/help"})
"""Commands that don't wait for the run in front of them."""

EDITED: Final = "[The sender edited an earlier message. It reads now:]\n\n"

_MEDIA_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)
_COMMAND: Final = re.compile(r"(/[a-z_]{1,32})(?:\s+|$)", re.I)


@dataclass(frozen=True, slots=True)
class Stored:
    """A message read back from an update's body."""

    chat: Chat
    display: str
    text: str
    enclosed: tuple[Enclosed, ...]
    message_id: str | None
    attachments: tuple[Attachment, ...]

    @property
    def command(self) -> str | None:
        """The command that the message begins with."""
        return command_in(self.text)

    @property
    def reply_to(self) -> str | None:
        """What an answer replies to: among several people it has to be seen whom it is for."""
        return None if self.chat.private else self.message_id


def command_in(text: str) -> str | None:
    """Return the command that a text begins with, such as ``/new``."""
    found = _COMMAND.match(text)
    return found[1].lower() if found else None


def usable(message: Incoming) -> bool:
    """Return whether the channel keeps its promise about ids, on which ours rest."""
    ids = (message.update_id, message.sender.id)
    return CHAT_ID.fullmatch(message.chat_id) is not None and all(0 < len(each) <= LONGEST_ID for each in ids)


def to_update(message: Incoming) -> NewUpdate:
    """Return the message as it is stored."""
    text = (EDITED if message.edited else "") + cleaned(message.text)[:LONGEST_TEXT]
    quoted = (Enclosed("reply", message.quoted),) if message.quoted else ()
    body: dict[str, Any] = {
        "sender_id": cleaned(message.sender.id),
        "sender_name": cleaned(message.sender.name)[:LONGEST_NAME],
        "display": cleaned(message.sender.display)[:LONGEST_NAME],
        "private": message.private,
        "text": text,
        "enclosed": [_enclosed(each) for each in (*quoted, *message.enclosed)[:MOST_ENCLOSED]],
        "album": cleaned(message.album),
        "message_id": None if message.message_id is None else cleaned(message.message_id)[:LONGEST_ID],
        "attachments": [_attachment(each) for each in message.attachments[:MOST_ATTACHMENTS]],
    }
    urgent = command_in(text) in URGENT
    return NewUpdate(cleaned(message.update_id), message.chat_id, body, urgent)


def from_update(update: Update, rules: Rules) -> Stored:
    """Read a stored message back; whose its chat is, the rules say as they are now."""
    body = update.body
    sender = Sender(body["sender_id"], body["sender_name"])
    return Stored(
        chat=rules.chat(update.chat_id, sender, private=body["private"]),
        display=body["display"] or body["sender_name"] or body["sender_id"],
        text=body["text"],
        enclosed=tuple(Enclosed(**each) for each in body.get("enclosed", ())),
        message_id=body["message_id"],
        attachments=tuple(Attachment(**each) for each in body["attachments"]),
    )


def as_one(parts: Sequence[Update], rules: Rules) -> Stored:
    """Return the message that an album's updates are together: one text, all files."""
    read = [from_update(part, rules) for part in parts]
    # Each part of a forwarded album says so, and one of them has the words.
    enclosed = dict.fromkeys(each for one in read for each in one.enclosed)
    worded = {(each.kind, each.who, each.id) for each in enclosed if each.text}
    return replace(
        read[0],
        text="\n\n".join(one.text for one in read if one.text.strip()),
        enclosed=tuple(e for e in enclosed if e.text or (e.kind, e.who, e.id) not in worded),
        attachments=tuple(each for one in read for each in one.attachments),
    )


def cleaned(text: str) -> str:
    """Return text that every part of the host can hold: no NUL, no halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _attachment(attachment: Attachment) -> dict[str, Any]:
    kind = cleaned(attachment.media_type)[:LONGEST_NAME]
    return {
        **asdict(attachment),
        "id": cleaned(attachment.id),
        "name": cleaned(attachment.name)[:LONGEST_ID],
        "media_type": kind if _MEDIA_TYPE.fullmatch(kind) else "",
    }


def _enclosed(enclosed: Enclosed) -> dict[str, str]:
    text = cleaned(enclosed.text)
    return {
        "kind": cleaned(enclosed.kind)[:LONGEST_NAME],
        "text": text if len(text) <= LONGEST_ENCLOSED else f"{text[:LONGEST_ENCLOSED]}… [cut]",
        "who": cleaned(enclosed.who)[:LONGEST_NAME],
        "id": cleaned(enclosed.id)[:LONGEST_ID],
    }


logger = logging.getLogger("picoclaw.channels")

TRIES: Final = 4
PAUSE_S: Final = 2.0
_UNSAFE: Final = re.compile(r"[^\w.-]+")


def place_of(message: Stored, number: int, attachment: Attachment, unique: str) -> str:
    """Return where an attachment is written: the same place if it has to be fetched again."""
    prefix = _UNSAFE.sub("_", unique) + (f"-{number}" if number else "")
    chat = _UNSAFE.sub("_", f"{message.chat.channel}-{message.chat.id}")
    return f"{INBOX}/{chat}/{prefix}-{safe_name(attachment.name)}"


class InboxFiles:
    """Fetches attachments into ``inbox/`` of the workspace; says where they are, what the model is shown."""

    def __init__(self, channel: Channel, attachments: Attachments) -> None:
        self._channel = channel
        self._attachments = attachments

    async def store(self, message: Stored, unique: str, conversation_id: str) -> Attached | None:
        """Fetch and write all attachments for a conversation: a line for each, also for what could not be
        kept; None if there are none.
        """
        if not message.attachments:
            return None
        whose = principal_of(conversation_id), conversation_id
        lines, blocks = list[str](), list[Block]()
        for number, attachment in enumerate(message.attachments):
            path = place_of(message, number, attachment, unique)
            said, block = await self._one(attachment, path, whose)
            lines.append(said)
            blocks += [] if block is None else [block]
        return Attached(new_id(MESSAGE), tuple(lines), tuple(blocks), already_placed)

    async def _one(
        self, attachment: Attachment, path: str, whose: tuple[str, str]
    ) -> tuple[str, Block | None]:
        name = safe_name(attachment.name)
        if (attachment.size or 0) > self._channel.largest_file:
            return f"[Attached: {name}, not fetched: larger than {self._channel.largest_file} bytes]", None
        try:
            data = await self._fetched(attachment)
        except ChannelFault as fault:
            logger.warning("An attachment could not be fetched", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be fetched]", None
        if len(data) > self._channel.largest_file:
            return f"[Attached: {name}, not kept: larger than {self._channel.largest_file} bytes]", None
        try:
            await self._attachments.save(*whose, path, data)
            seen = await self._attachments.seen(data, path)
            await self._attachments.keep(*whose, seen.copies)
        except SandboxFault as fault:
            logger.warning("An attachment could not be written", extra={"error": str(fault)})
            return f"[Attached: {name}, which could not be written]", None
        of = ", of the message replied to" if attachment.replied else ""
        return line(path, attachment.media_type, len(data), seen.why, of), seen.block

    async def _fetched(self, attachment: Attachment) -> bytes:
        for attempt in range(TRIES - 1):
            try:
                return await self._channel.fetch(attachment)
            except TryLater as fault:
                await anyio.sleep(PAUSE_S * 2**attempt if fault.after_s is None else fault.after_s)
        return await self._channel.fetch(attachment)


async def already_placed(lease: Lease) -> None:
    """Be ``Attached.place`` of what was written when it was fetched: it is the same if it comes again."""


MOST_TASKS: Final = 20
LONGEST_PROMPT: Final = 80

GREETING: Final = """I am {name}. Write to me, and I answer here.

/new begins a new conversation
/stop stops what I am doing
/tasks lists what is scheduled in this conversation"""
OWNERS_GREETING: Final = "\n/main enters the main conversation, or leaves it"

NEW: Final = "This is a new conversation. What was scheduled in the one before goes on."
NOT_NEW: Final = "The main conversation goes on and on. /main leaves it."
STOPPING: Final = "Stopping."
NOTHING_RUNS: Final = "Nothing is running."
NO_TASKS: Final = "Nothing is scheduled in this conversation."
ENTERED: Final = "You are in the main conversation now. /main leaves it."
LEFT: Final = "You have left the main conversation."
ONLY: Final = "\n\nI read nothing but {0} of that message. Send the rest as one of its own."
OWNERS_ONLY: Final = "Only its owners may use the main conversation, and only in a private chat."


class Commands:
    """Answers the commands of one channel's chats: /start, /new, /stop, /tasks, and /main for owners."""

    def __init__(self, store: Store, runs: RunService, tasks: TaskService, rules: Rules) -> None:
        self._runs = runs
        self._task_service = tasks
        self._rules = rules
        self._book = store.channels

    async def home(self, message: Stored) -> str:
        """Return the conversation that the chat is in, and may be in."""
        trusted = self._rules.trusts(message.chat)
        conversation_id = await self._book.enter(message.chat, now_ms(), trusted=trusted)
        if conversation_id == self._rules.main_of(message.chat) and not self._is_owner(message):
            await self._book.leave(message.chat.channel, message.chat.id, conversation_id)
            conversation_id = await self._book.enter(message.chat, now_ms(), trusted=trusted)
        return conversation_id

    async def answer(self, message: Stored, conversation_id: str) -> str | None:
        """Do what a command asks for and return what to say; None if the message is none of ours."""
        said = await self._obeyed(message, conversation_id)
        # What stands behind /start comes of a link: nobody wrote it.
        more = message.command != "/start" and (message.text.split()[1:] or message.attachments)
        return said + ONLY.format(message.command) if said and more else said

    async def _obeyed(self, message: Stored, conversation_id: str) -> str | None:
        match message.command:
            case "/start" | "/help":
                return self._greeting(message)
            case "/new":
                return await self._new(message, conversation_id)
            case "/stop":
                return await self._stop(conversation_id)
            case "/tasks":
                return await self._tasks(message, conversation_id)
            case "/main":
                return await self._main(message, conversation_id)
        return None

    def _greeting(self, message: Stored) -> str:
        greeting = GREETING.format(name=self._runs.limits.assistant_name)
        return greeting + OWNERS_GREETING if self._is_owner(message) else greeting

    async def _new(self, message: Stored, conversation_id: str) -> str:
        if conversation_id == self._rules.main_of(message.chat):
            return NOT_NEW
        await self._book.begin_anew(message.chat, now_ms(), trusted=self._rules.trusts(message.chat))
        return NEW

    async def _stop(self, conversation_id: str) -> str:
        try:
            await self._runs.cancel(conversation_id)
        except NotRunning:
            return NOTHING_RUNS
        return STOPPING

    async def _tasks(self, message: Stored, conversation_id: str) -> str:
        only = None if conversation_id == self._rules.main_of(message.chat) else conversation_id
        page = await self._task_service.list(Reach(only, message.chat.principal_id), limit=MOST_TASKS)
        lines = [_task_line(task) for task in page.items]
        if page.next_cursor is not None:
            lines.append("…")
        return "\n".join(lines) or NO_TASKS

    async def _main(self, message: Stored, conversation_id: str) -> str:
        main = self._rules.main_of(message.chat)
        if not self._is_owner(message):
            return OWNERS_ONLY
        if conversation_id == main:
            await self._book.leave(message.chat.channel, message.chat.id, main)
            return LEFT
        await self._book.join(message.chat, main)
        return ENTERED

    def _is_owner(self, message: Stored) -> bool:
        return message.chat.private and self._rules.owns(sender_of(message.chat))


def _task_line(task: Task) -> str:
    prompt = task.prompt if len(task.prompt) <= LONGEST_PROMPT else f"{task.prompt[:LONGEST_PROMPT]}…"
    view = task_view(task)
    when = f"next {view['next_run_local']}" if view["next_run_local"] else "no next run"
    status = "overdue" if view["overdue"] else task.status.value
    one_line = " ".join(prompt.split())
    return f"- {one_line} ({task.schedule_type} {task.schedule_value}, {status}, {when})"
