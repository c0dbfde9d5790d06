"""Each waiting message becomes a command done or a run answered, in its chat's order, once.

The message stays in the store until its answer is there: a crash anywhere in between leaves it waiting, and
the run that it was given (noted before it began) says how far it came.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import anyio

from host.channels.base import Channel
from host.channels.chats import Crowd, Draft, Rules, Wake, sender_of
from host.channels.messages import Commands, InboxFiles, Stored, as_one, from_update
from host.runs.events import one_by_one
from host.runs.run import ActiveRun
from host.runs.service import RunService
from host.runs.spec import Attached, RunSpec
from shared import errors
from shared.clock import now_ms
from shared.ids import RUN, new_id
from shared.store.sql.chats import Saying, Update, told_of
from shared.store.store import Store
from shared.values import Idempotency, RunState

logger = logging.getLogger("picoclaw.channels")

BUSY_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
MOST_URGENT: Final = 100
ALBUM_QUIET_MS: Final = 1_000
"""An album is whole when nothing of it has come for so long: no messenger says which part is the last."""

MOST_OF_ALBUM: Final = 10
MOST_LOOKED_AT: Final = 30
TRIES: Final = 3
"""How often a message is handled that makes the host fail."""

SORRY: Final = "⚠️ Something went wrong inside the host, so I could not handle your message."

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Turn:
    """An update being handled, with the ``rest`` of its album."""

    update: Update
    message: Stored
    conversation_id: str
    rest: Sequence[Update] = ()


class Turns:
    """Handles one channel's updates."""

    def __init__(
        self,
        channel: Channel,
        store: Store,
        runs: RunService,
        commands: Commands,
        files: InboxFiles,
        rules: Rules,
        *,
        delivered: Wake,
    ) -> None:
        self._channel = channel
        self._store = store
        self._runs = runs
        self._commands = commands
        self._files = files
        self._rules = rules
        self._name = rules.channel
        self._book = store.channels
        self._delivered = delivered
        self._crowd = Crowd(self._chats, self._serve)
        self.run, self.wake = self._crowd.run, self._crowd.wake
        self._faults: dict[int, int] = {}

    async def _chats(self, limit: int) -> list[str]:
        for update in await self._book.urgent(self._name, limit=MOST_URGENT):
            await self._guarded(update, self._command_at_once)
        return await self._book.chats_waiting(self._name, limit=limit)

    async def _serve(self, chat_id: str) -> None:
        while (update := await self._book.next_update(self._name, chat_id)) is not None:
            await self._guarded(update, self._turn)

    async def _guarded(self, update: Update, handle: Callable[[Update], Awaitable[None]]) -> None:
        """Handle an update; one that keeps failing is given up, so that it holds up nothing for ever."""
        try:
            if await self._is_served(update):
                await handle(update)
            else:
                await self._book.settle(update.number, "", None, now_ms())
        except Exception:
            self._faults[update.number] = self._faults.get(update.number, 0) + 1
            if self._faults[update.number] < TRIES:
                raise
            logger.exception("A message is given up", extra={"channel": self._name})
            message = from_update(update, self._rules)
            await self._settle(_Turn(update, message, await self._commands.home(message)), SORRY)
        self._faults.pop(update.number, None)

    async def _is_served(self, update: Update) -> bool:
        whose = from_update(update, self._rules).chat.principal_id
        return await self._runs.principals.is_active(whose)

    async def _turn(self, update: Update) -> None:
        parts = await self._album(update)
        message = as_one(parts, self._rules)
        known = update.conversation_id if update.run_id else None
        turn = _Turn(update, message, known or await self._commands.home(message), parts[1:])
        if not self._rules.may_hear(message.chat, turn.conversation_id):
            # The settings changed while it waited: whose answer nobody may hear may not ask either.
            await self._settle(turn, None)
        elif not await self._command(turn):
            await self._converse(turn)

    async def _album(self, update: Update) -> list[Update]:
        """Return the update and what follows of its album, once nothing of it has come for a while."""
        album = update.body.get("album")
        while album:
            waiting = await self._book.next_updates(self._name, update.chat_id, limit=MOST_LOOKED_AT)
            mark = (album, update.body["sender_id"])
            parts = [each for each in waiting if (each.body.get("album"), each.body["sender_id"]) == mark]
            since = now_ms() - parts[-1].received_at
            if len(parts) >= MOST_OF_ALBUM or not 0 <= since < ALBUM_QUIET_MS:
                return parts
            await anyio.sleep((ALBUM_QUIET_MS - since) / 1000)
        return [update]

    async def _command_at_once(self, update: Update) -> None:
        message = from_update(update, self._rules)
        turn = _Turn(update, message, await self._commands.home(message))
        allowed = self._rules.may_hear(message.chat, turn.conversation_id)
        if not (allowed and await self._command(turn)):
            await self._settle(turn, None)

    async def _command(self, turn: _Turn) -> bool:
        said = await self._commands.answer(turn.message, turn.conversation_id)
        if said is None:
            return False
        # It is said where the chat is now: from a conversation it has left it would hear nothing.
        home = await self._commands.home(turn.message)
        await self._settle(replace(turn, conversation_id=home), said)
        return True

    async def _converse(self, turn: _Turn) -> None:
        answer = await self._ended(turn)
        if answer is None:
            turn, answer = await self._run(turn)
        text = self._text_of(answer)
        run_id = str(answer.get("run_id") or turn.update.update_id)
        await self._settle(turn, text, source=f"run:{run_id}")

    async def _ended(self, turn: _Turn) -> Answer | None:
        """Return the answer of the run that this update was given before a crash, if it may stand."""
        if turn.update.run_id is None:
            return None
        run = await self._store.runs.get(turn.conversation_id, turn.update.run_id)
        if run is None or run.state is RunState.RUNNING or run.code == "retryable":
            return None
        return run.answer

    async def _run(self, turn: _Turn) -> tuple[_Turn, Answer]:
        message = turn.message
        unique = message.message_id or turn.update.update_id
        attached = await self._files.store(message, unique, turn.conversation_id)
        pause = BUSY_PAUSE_S
        while True:
            try:
                return turn, await self._try(turn, attached)
            except errors.NotFound:
                # Deleted a moment ago: the chat gets another one.
                turn = replace(turn, conversation_id=await self._commands.home(turn.message))
            except errors.Draining:
                # The next start goes on with what is in the store.
                await anyio.sleep_forever()
            except (errors.ConversationBusy, errors.TooManyRequests, errors.Unavailable) as error:
                await anyio.sleep(error.retry_after or pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            except errors.PicoError as error:
                return turn, {"status": "error", "error": error.message, "result": ""}

    async def _try(self, turn: _Turn, attached: Attached | None) -> Answer:
        """Start the run and follow it to its end. Raises as ``RunService.start`` does."""
        update, message = turn.update, turn.message
        run_id = new_id(RUN)
        text = message.text.strip()
        spec = RunSpec(
            message=text or ("" if message.enclosed or attached else "[empty message]"),
            attached=attached,
            conversation_id=turn.conversation_id,
            sender=f"{self._name}:{message.chat.sender_id}",
            sender_name=message.display,
            by_owner=self._rules.owns(sender_of(message.chat)),
            enclosed=message.enclosed,
            idempotency=Idempotency(f"channel:{self._name}", update.update_id, ""),
            run_id=run_id,
            principal_id=message.chat.principal_id,
            deny_pending=True,
            door=self._name,
            chat=(self._name, update.chat_id, message.reply_to),
        )
        for part in (update, *turn.rest):
            await self._book.attach(part.number, run_id, turn.conversation_id)
        try:
            run = await self._runs.start(spec)
        except errors.KeyTaken as taken:
            return await self._runs.joined(taken.answer)
        return await self._shown(turn, run)

    async def _shown(self, turn: _Turn, run: ActiveRun) -> Answer:
        """Wait for the answer while the chat sees it grow."""
        number = turn.update.number
        draft = Draft(
            self._channel,
            turn.update.chat_id,
            reply_to=turn.message.reply_to,
            note=lambda draft_id: self._book.drafted(number, draft_id),
            draft_id=turn.update.draft_id,
        )
        lease = run.lease
        events = await self._runs.event_batches(lease.conversation_id, lease.run_id, after=0, run=run)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(draft.show, one_by_one(events))
            try:
                answer: Answer = await run.wait()
            except errors.PicoError as error:
                answer = {"status": "error", "run_id": lease.run_id, "error": error.message, "result": ""}
            finally:
                draft.stop()
        return answer

    async def _settle(self, turn: _Turn, text: str | None, *, source: str = "") -> None:
        """Store the answer and be done with the update."""
        number = turn.update.number
        now = now_ms()
        saying = None
        if text:
            update = await self._book.next_update(self._name, turn.update.chat_id)
            draft_id = update.draft_id if update is not None and update.number == number else None
            saying = Saying(
                source or f"update:{turn.update.update_id}", text, turn.message.reply_to, draft_id
            )
        try:
            await self._book.settle(number, turn.conversation_id, saying, now)
        except errors.NotFound:
            await self._book.settle(number, turn.conversation_id, None, now)
        for part in turn.rest:
            await self._book.settle(part.number, turn.conversation_id, None, now)
        await self._store.durable()
        self._delivered()

    def _text_of(self, answer: Answer) -> str:
        """Return what the chat is told of a run's end."""
        marker = self._runs.limits.end_marker
        text = str(answer.get("result") or "")
        text = text.replace(marker, "").strip() if marker else text
        return told_of(text, answer)
