"""GET /health and GET /ready: what anyone may know, and nothing that must stay secret."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Literal, NotRequired

import anyio
from starlette.requests import Request

from host.http.routing import Api, operation
from host.runs.scheduler import lateness
from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxReport, commands_own
from host.volumes import ANSWER_S, Looks
from shared.approval_values import Waiting
from shared.clock import now_ms
from shared.errors import Unavailable
from shared.settings import Settings
from shared.shapes import Shape
from shared.store.store import Store

logger = logging.getLogger("picoclaw.http")

PROBE_S: Final = 1.0
"""Seconds for which the outcome of a probe counts, whoever asks how often."""

ChannelState = Literal["ok", "retrying", "off"]


class DatabaseShape(Shape):
    """The database, as /health sees it."""

    ok: bool
    conversations: int | None
    tasks: int | None


class VolumesShape(Shape):
    """Whether each volume can be used."""

    memory: bool
    skills: bool
    sessions: bool
    store: bool


class StoreShape(Shape):
    """Which store is on the volume, and whether this start made it."""

    id: str
    new: bool


class SandboxShape(Shape):
    """What the sandbox enforces, once that was tried; ``own_uid``: commands run as a uid of their own.

    ``isolation``: how far principals are apart, ``visible``: what commands of one see of others all the same.
    """

    state: Literal["testing", "tested"]
    level: NotRequired[int]
    landlock_abi: NotRequired[int]
    own_uid: NotRequired[bool]
    isolation: NotRequired[Literal["uid", "weak", "none"]]
    visible: NotRequired[list[str]]


class SchedulerShape(Shape):
    """What runs due tasks, how many are overdue by more than two minutes, what to know of it if anything."""

    mode: Literal["internal", "external"]
    overdue: int | None
    note: str | None


STUCK_MIN: Final = 15
STUCK: Final = (
    "What people answered {} minutes ago has not gone on: see whether places to run or budgets are spent"
)


class ApprovalsStateShape(Shape):
    """What to know of steps that people have answered, if anything."""

    note: str | None


class HealthShape(Shape):
    """How the host is."""

    status: Literal["ok", "degraded"]
    version: str
    commit: str
    build_time: str
    max_execution_ms: int
    database: DatabaseShape
    store: StoreShape | None
    volumes: VolumesShape
    sandbox: SandboxShape
    channels: dict[str, ChannelState]
    scheduler: SchedulerShape
    approvals: ApprovalsStateShape


class ReadyShape(Shape):
    """Requests are welcome."""

    status: Literal["ready"]


def _shown(report: SandboxReport) -> SandboxShape:
    if not report.tested:
        return {"state": "testing"}
    return {
        "state": "tested",
        "level": report.level,
        "landlock_abi": report.landlock_abi,
        "own_uid": report.own_uid,
        "isolation": report.isolation.level,
        "visible": list(report.isolation.visible),
    }


def stuck(waiting: Waiting) -> str | None:
    """Return what an operator should know of steps that were answered, if anything."""
    minutes = waiting.ready_ms // 60_000
    return STUCK.format(minutes) if minutes >= STUCK_MIN else None


class HealthApi(Api):
    """The two routes that need no token."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sandbox: Sandbox,
        *,
        ready: Callable[[], bool],
        channels: Callable[[], Mapping[str, ChannelState]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._sandbox = sandbox
        self._ready = ready
        self._channels = channels
        self._looks = Looks()
        self._asked = anyio.Event()
        self._probed = anyio.Event()
        self._probed_at = -PROBE_S
        self._fault: str | None = None

    async def probe_when_asked(self) -> None:
        """Try the store whenever somebody wants to know; one that hangs holds up nobody else."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            self._fault = await self._probe()
            self._probed_at = anyio.current_time()
            probed, self._probed = self._probed, anyio.Event()
            probed.set()

    @operation("GET", "/health", open=True)
    async def health(self, request: Request) -> HealthShape:
        """How the host is."""
        settings, origin, report = self._settings, self._store.origin, self._sandbox.report
        store_ok = await self._store_fault() is None
        away = self._store.several_hosts and not store_ok
        database = await self._database(away=away, to_operator=request.scope["operator"])
        memory, skills = await self._directories()
        return {
            "status": "ok" if database["ok"] and memory and store_ok else "degraded",
            "version": settings.version,
            "commit": settings.build_commit,
            "build_time": settings.build_time,
            "max_execution_ms": settings.max_execution_ms,
            "database": database,
            "store": None if origin is None else {"id": origin.id, "new": origin.new},
            "volumes": {"memory": memory, "skills": skills, "sessions": store_ok, "store": store_ok},
            "sandbox": _shown(report),
            "channels": dict(self._channels()),
            "scheduler": await self._lateness(database["tasks"]),
            "approvals": {"note": await self._stuck() if database["tasks"] is not None else None},
        }

    @operation("GET", "/ready", open=True, errors=(503,))
    async def ready(self, request: Request) -> ReadyShape:
        """Whether requests are welcome."""
        if not self._ready():
            raise Unavailable("The host is starting or stopping.", code="not_ready", retry_after=1)
        fault = await self._store_fault()
        if fault is not None:
            raise Unavailable(fault, code="not_ready", retry_after=2)
        return {"status": "ready"}

    async def _store_fault(self) -> str | None:
        """Return what keeps the next request from being stored; who asks within a second gets one answer."""
        # What a write met since the last probe counts at once.
        if anyio.current_time() >= self._probed_at + PROBE_S or not self._store.volume_ok():
            probed = self._probed
            self._asked.set()
            with anyio.move_on_after(ANSWER_S) as waiting:
                await probed.wait()
            if waiting.cancelled_caught:
                return "The store does not answer."
        return self._fault

    async def _directories(self) -> tuple[bool, bool]:
        """Return how memory and skills are; their file system may hang, and then the answer is no."""
        try:
            return await self._looks(self._look)
        except (Unavailable, OSError):
            return False, False

    def _look(self) -> tuple[bool, bool]:
        memory, skills = self._settings.memory_dir, self._settings.skills_dir
        return os.access(memory, os.W_OK | os.X_OK) or commands_own(memory), os.path.isdir(skills)

    async def _probe(self) -> str | None:
        try:
            await self._store.probe()
        except Unavailable as error:
            return error.message
        except Exception:
            logger.exception("The store could not be tried")
            return "The store fails."
        return None

    async def _database(self, *, away: bool, to_operator: bool) -> DatabaseShape:
        try:
            if away:
                raise Unavailable("It wouldn't answer this either.")
            counts = await self._store.counts()
        except Exception:  # noqa: BLE001 - whatever ails the database, /health says so instead of failing
            return {"ok": False, "conversations": None, "tasks": None}
        if counts.others and not to_operator:
            # How much others have is none of a principal's business.
            return {"ok": True, "conversations": None, "tasks": None}
        return {"ok": True, "conversations": counts.conversations, "tasks": counts.tasks}

    async def _stuck(self) -> str | None:
        with suppress(Exception):
            return stuck(await self._store.approvals.waiting(now_ms()))
        return None

    async def _lateness(self, tasks: int | None) -> SchedulerShape:
        mode = self._settings.scheduler
        if tasks is not None:
            with suppress(Exception):
                late = await lateness(self._store, now_ms())
                return {"mode": mode, "overdue": late.overdue, "note": late.note(mode, tasks)}
        return {"mode": mode, "overdue": None, "note": None}
