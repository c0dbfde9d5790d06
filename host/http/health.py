"""GET /health and GET /ready: what anyone may know, and nothing that must stay secret."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.http.bodies import JSON
from host.runs.scheduler import lateness
from shared.clock import now_ms
from shared.errors import Unavailable
from shared.store.store import Store

logger = logging.getLogger("picoclaw.http")

PROBE_S: Final = 1.0
"""Seconds for which the outcome of a probe counts, whoever asks how often."""
ANSWER_S: Final = 2.0


class SandboxReport(Protocol):
    """What the sandbox found it can enforce."""

    @property
    def level(self) -> int: ...

    @property
    def landlock_abi(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Build:
    """What is running."""

    version: str
    commit: str
    time: str
    max_execution_ms: int


@dataclass(frozen=True, slots=True)
class Volumes:
    """Directories whose state is reported."""

    memory: Path
    skills: Path


class HealthApi:
    """The two routes that need no token."""

    def __init__(
        self,
        build: Build,
        volumes: Volumes,
        store: Store,
        *,
        ready: Callable[[], bool],
        sandbox: Callable[[], SandboxReport],
        channels: Callable[[], Mapping[str, str]],
        scheduler: str,
    ) -> None:
        self._scheduler = scheduler
        self._build = build
        self._volumes = volumes
        self._store = store
        self._looking: anyio.CapacityLimiter | None = None
        self._asked = anyio.Event()
        self._probed = anyio.Event()
        self._probed_at = -PROBE_S
        self._fault: str | None = None
        self._ready = ready
        self._sandbox = sandbox
        self._channels = channels

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def probe_when_asked(self) -> None:
        """Try the store whenever somebody wants to know; one that hangs holds up nobody else."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            self._fault = await self._probe()
            self._probed_at = anyio.current_time()
            probed, self._probed = self._probed, anyio.Event()
            probed.set()

    async def health(self, request: Request) -> Response:
        """Tell how the host is."""
        store_ok = await self._store_fault() is None
        database = await self._database(away=self._store.several_hosts and not store_ok)
        volumes = {**await self._directories(), "sessions": store_ok, "store": store_ok}
        sandbox = self._sandbox()
        well = database["ok"] and volumes["memory"] and store_ok
        return JSON(
            {
                "status": "ok" if well else "degraded",
                "version": self._build.version,
                "commit": self._build.commit,
                "build_time": self._build.time,
                "max_execution_ms": self._build.max_execution_ms,
                "database": database,
                "store": None if self._store.origin is None else self._store.origin._asdict(),
                "volumes": volumes,
                "sandbox": {"level": sandbox.level, "landlock_abi": sandbox.landlock_abi},
                "channels": dict(self._channels()),
                "scheduler": await self._lateness(database["tasks"]),
            }
        )

    async def ready(self, request: Request) -> Response:
        """Tell whether requests are welcome."""
        if not self._ready():
            raise Unavailable("The host is starting or stopping.", code="not_ready", retry_after=1)
        fault = await self._store_fault()
        if fault is not None:
            raise Unavailable(fault, code="not_ready", retry_after=2)
        return JSON({"status": "ready"})

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

    async def _directories(self) -> dict[str, bool]:
        """Return how the directories are; their file system may hang, and then the answer is no."""
        self._looking = self._looking or anyio.CapacityLimiter(1)
        with anyio.move_on_after(ANSWER_S):
            return await anyio.to_thread.run_sync(
                _look, self._volumes, abandon_on_cancel=True, limiter=self._looking
            )
        return {"memory": False, "skills": False}

    async def _probe(self) -> str | None:
        try:
            await self._store.probe()
        except Unavailable as error:
            return error.message
        except Exception:
            logger.exception("The store could not be tried")
            return "The store fails."
        return None

    async def _database(self, *, away: bool) -> dict[str, Any]:
        try:
            if away:
                raise Unavailable("It wouldn't answer this either.")
            counts = await self._store.counts()
        except Exception:  # noqa: BLE001 - whatever ails the database, /health says so instead of failing
            return {"ok": False, "conversations": None, "tasks": None}
        return {"ok": True, "conversations": counts.conversations, "tasks": counts.tasks}

    async def _lateness(self, tasks: int | None) -> dict[str, Any]:
        late = None
        with suppress(Exception):
            late = None if tasks is None else await lateness(self._store, now_ms())
        return {
            "mode": self._scheduler,
            "overdue": None if late is None else late.overdue,
            "note": None if late is None else late.note(self._scheduler, tasks or 0),
        }


def _look(volumes: Volumes) -> dict[str, bool]:
    return {"memory": os.access(volumes.memory, os.W_OK | os.X_OK), "skills": volumes.skills.is_dir()}
