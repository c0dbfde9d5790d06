"""Ticking inside the host (SCHEDULER=internal): due tasks run without anybody calling POST /task/check.

Either way, how late tasks are is told.

The database says when the next slot is; the scheduler sleeps until then and looks again every second, for
tool servers make tasks as well and the wall clock may jump. A look is one step down an index. Several hosts
may tick at once: claims in the store keep each slot to one run.

The heartbeat is an ordinary isolated task of the main conversation under a fixed id. One thing differs: its
prompt is MEMORY_DIR/HEARTBEAT.md as it is at that moment.
"""

import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from host.ports import Sandbox, SandboxFault, Trust, Workspace
from host.sandbox.client import HOST
from shared.clock import now_ms
from shared.errors import Duplicate, NotFound, PicoError
from shared.logging import Rounds
from shared.principals import OPERATOR, Reach
from shared.schedules import ON_TIME_MS
from shared.settings import Settings
from shared.store.sql.task_rows import ALL_QUIET
from shared.store.store import Store
from shared.task_edits import LONGEST_PROMPT
from shared.task_values import Task
from shared.tasks import TaskService

logger = logging.getLogger(__name__)

EXTERNAL: Final = (
    "SCHEDULER is external: due tasks, the heartbeat among them, run only when something calls "
    "POST /task/check, every minute for instance; SCHEDULER=internal has the host run them"
)

RunDue = Callable[[], Awaitable[object]]
"""Claims and runs one due slot to its end; what it returns is false if nothing could run."""

LOOK_EVERY_S: Final = 1.0
"""How often the next slot is asked for while the host sleeps, in seconds: other processes make tasks too."""

TRY_EVERY_S: Final = 60.0
"""How often a claim is tried though nothing is due, in seconds: so a dead host's slot is found.

Once in a lease where that is shorter: a slot is taken over within two leases.
"""


@dataclass(frozen=True, slots=True)
class Lateness:
    """How many tasks are overdue by more than two ticks, and how late the first is."""

    overdue: int
    seconds: int

    def note(self, mode: str, tasks: int) -> str | None:
        """Return what an operator should know, if anything."""
        if self.overdue:
            what = (
                EXTERNAL if mode == "external" else "see whether runs hang or MAX_CONCURRENT_RUNS is reached"
            )
            return f"{self.overdue} overdue, the first for {self.seconds} s. {what}"
        return EXTERNAL if mode == "external" and tasks else None


async def lateness(store: Store, now: int) -> Lateness:
    """Look how late tasks are; bounded by an index, however many there are."""
    overdue = await store.tasks.count_due(now - ON_TIME_MS)
    first = await store.tasks.next_due() if overdue else None
    return Lateness(overdue, 0 if first is None else (now - first) // 1000)


@dataclass(eq=False)
class Scheduler:
    """Runs due tasks, at most ``most`` at once, until it is cancelled; a failure never ends it."""

    store: Store
    run_due: RunDue
    _: KW_ONLY
    most: int
    now: Callable[[], int] = now_ms
    look_every_s: float = LOOK_EVERY_S
    try_every_s: float = TRY_EVERY_S
    _serving: int = field(default=0, init=False)
    _failures: int = field(default=0, init=False)
    _woken: anyio.Event = field(default_factory=anyio.Event, init=False)
    _rounds: Rounds = field(init=False)

    def __post_init__(self) -> None:
        self._rounds = Rounds(logger, "The scheduler could not look for due tasks")

    def wake(self) -> None:
        """Look again now: a task was made, changed or resumed."""
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled; the runs in flight are cancelled with it."""
        async with anyio.create_task_group() as servers:
            while True:
                self._woken = anyio.Event()
                await self._start_servers(servers)
                with anyio.move_on_after(self.try_every_s):
                    await self._sleep_until_due()

    async def _start_servers(self, servers: TaskGroup) -> None:
        """Start as many servers as there are due tasks, but no more than may run at once."""
        due = 0
        with self._rounds:
            due = await self.store.tasks.count_due(self.now())
        # One even when nothing is due: a dead host's claim shows only when somebody tries.
        for _ in range(min(max(due, 1), self.most - self._serving)):
            self._serving += 1
            servers.start_soon(self._serve)

    async def _sleep_until_due(self) -> None:
        """Return when a slot is due or somebody called ``wake``, after one look's time at the earliest."""
        while True:
            ahead = await self._seconds_ahead()
            with anyio.move_on_after(ahead if 0 < ahead < self._pause() else self._pause()):
                await self._woken.wait()
                return
            if await self._seconds_ahead() <= 0:
                return

    async def _seconds_ahead(self) -> float:
        """Return how long the next slot is away, by the wall clock as it is now."""
        with self._rounds:
            if (slot := await self.store.tasks.next_due()) is not None:
                return (slot - self.now()) / 1000
        return self.try_every_s

    def _pause(self) -> float:
        """Return the time between two looks: longer and longer while starting tasks fails."""
        return float(min(self.look_every_s * 2.0 ** min(self._failures, 10), self.try_every_s))

    async def _serve(self) -> None:
        """Run due slots one after another until there are none."""
        try:
            while await self.run_due():
                self._failures = 0
        except PicoError as error:
            # Draining, at capacity, volume not writable: the slot was given back and is due again.
            if not self._failures:
                logger.warning("A due task could not be started: %s", error.message)
            self._failures += 1
        except Exception:
            self._failures += 1
            logger.exception("A due task could not be run")
        else:
            self._failures = 0
        finally:
            self._serving -= 1


TASK_ID: Final = "task-heartbeat"
FILE: Final = "HEARTBEAT.md"
PROMPT: Final = (
    f"This is a heartbeat. Below is {FILE}. Do what it asks for now, if anything. "
    f"If there is nothing people should hear about, answer with {ALL_QUIET} and nothing else."
)

_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_NOTHING: Final = re.compile(r"#.*|//.*|\[//\]:.*|[-*+_=>`~ ]*|(?:[-*+]|\d+[.)])(?: \[[ xX]?\])?")

ReadFile = Callable[[str], Awaitable[str | None]]
"""Reads a file of the workspace through the sandbox; None when it is absent."""


class Heartbeat:
    """Keeps the heartbeat's task and words its prompt; leaves all other tasks alone."""

    def __init__(self, tasks: TaskService, read: ReadFile, *, conversation_id: str, minutes: int) -> None:
        self._tasks = tasks
        self._read = read
        self._conversation_id = conversation_id
        self._own = Reach(conversation_id, OPERATOR)
        self._minutes = minutes

    async def arrange(self, *, enabled: bool) -> None:
        """Make, adjust or remove the task, as the settings say; called once at the host's start."""
        if not enabled:
            await self._remove()
            return
        every = str(self._minutes * 60_000)
        try:
            # The same interval again leaves the next slot where it is, so a restart is no extra heartbeat.
            await self._tasks.update(TASK_ID, self._own, {"schedule_value": every})
        except NotFound:
            # Another host that starts at the same moment may have made it just now.
            with suppress(Duplicate):
                await self._make(every)

    async def _make(self, every: str) -> None:
        await self._tasks.schedule(
            reach=self._own,
            conversation_id=self._conversation_id,
            prompt=PROMPT,
            schedule_type="interval",
            schedule_value=every,
            context_mode="isolated",
            catch_up="skip",
            id=TASK_ID,
        )

    def owns(self, task: Task) -> bool:
        """Return whether this is the heartbeat's task."""
        return task.id == TASK_ID and task.conversation_id == self._conversation_id

    async def prompt(self, task: Task) -> str:
        """Return what the agent is told: the task's prompt, and for the heartbeat the file with it."""
        if not self.owns(task):
            return task.prompt
        content = await self._read(FILE) or ""
        return f"{task.prompt}\n\n{content}"[:LONGEST_PROMPT] if asks_for_something(content) else task.prompt

    def answer(self, task: Task, prompt: str) -> str | None:
        """Return what is answered without asking the model: a file without words asks for nothing."""
        return ALL_QUIET if self.owns(task) and prompt == task.prompt else None

    async def _remove(self) -> None:
        try:
            await self._tasks.cancel(TASK_ID, self._own)
        except NotFound:
            return


async def arranged(store: Store, tasks: TaskService, sandbox: Sandbox, settings: Settings) -> Heartbeat:
    """Return the heartbeat of the settings, its task as they want it."""

    async def read(path: str) -> str | None:
        asked = {"path": path, "limit": LONGEST_PROMPT}
        try:
            answer = await sandbox.file(Workspace(HOST, sandbox.root, Trust.MAIN), "read_text", asked)
        except SandboxFault:
            return None
        return str(answer.get("text"))

    heartbeat = Heartbeat(
        tasks, read, conversation_id=settings.main_conversation_id, minutes=settings.heartbeat.interval
    )
    await heartbeat.arrange(enabled=settings.heartbeat.enabled)
    await store.durable()
    return heartbeat


def asks_for_something(content: str) -> bool:
    """Return whether a Markdown file has more than comments, headings, rules and points without a text."""
    lines = _COMMENT.sub("", content.replace("\ufeff", "")).splitlines()
    return any(not _NOTHING.fullmatch(line.strip()) for line in lines)
