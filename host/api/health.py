"""GET /health and GET /ready: what anyone may know, and nothing that must stay secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from host.api.responses import JSON
from shared.errors import Unavailable
from shared.store.contract import Store


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
    store: Path


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
    ) -> None:
        self._build = build
        self._volumes = volumes
        self._store = store
        self._ready = ready
        self._sandbox = sandbox
        self._channels = channels

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """Tell how the host is."""
        database = await self._database()
        store_ok = self._store_ok(database["ok"])
        volumes = {
            "memory": _writable(self._volumes.memory),
            "skills": self._volumes.skills.is_dir(),
            "sessions": store_ok,
            "store": store_ok,
        }
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
                "volumes": volumes,
                "sandbox": {"level": sandbox.level, "landlock_abi": sandbox.landlock_abi},
                "channels": dict(self._channels()),
            }
        )

    async def ready(self, request: Request) -> Response:
        """Tell whether requests are welcome."""
        if not self._ready():
            raise Unavailable("The host is starting or stopping.", code="not_ready", retry_after=1)
        if self._store.several_hosts and not self._store.volume_ok():
            raise Unavailable("The database cannot be reached.", code="not_ready", retry_after=2)
        return JSON({"status": "ready"})

    def _store_ok(self, database_ok: bool) -> bool:
        if self._store.several_hosts:
            return database_ok
        return self._store.volume_ok() and _writable(self._volumes.store)

    async def _database(self) -> dict[str, Any]:
        try:
            counts = await self._store.counts()
        except Exception:  # noqa: BLE001 - whatever ails the database, /health says so instead of failing
            return {"ok": False, "conversations": None, "tasks": None}
        return {"ok": True, "conversations": counts.conversations, "tasks": counts.tasks}


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK)
