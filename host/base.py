"""What the host stands on and ``/health`` tells of: settings, store, sandbox, the model's process.

It is opened first, when a quarter of the program is not imported yet. ``/health`` answers from then on, and
the rest (``host.parts``) is opened behind it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from host.models.access import ModelAccess
from host.sandbox import Sandbox
from host.sandbox_settings import sandbox_policy
from host.telemetry import Telemetry, open_telemetry
from host.telemetry.counts import Metrics
from shared.clock import now_ms
from shared.errors import Misconfigured
from shared.redact import Redactor
from shared.settings import Settings
from shared.store import open_host_store
from shared.store.sql.retention import DAY_MS, Retention
from shared.store.store import Store


def make_volumes(settings: Settings) -> None:
    """Make the directories that are missing; raises Misconfigured with what mends one that can't be used."""
    volumes = {
        "STORE_DIR": settings.store_dir,
        "MEMORY_DIR": settings.memory_dir,
        "LOCAL_DB_PATH": settings.local_db_path.parent,
    }
    for name, path in volumes.items():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise Misconfigured(f"{name}: {path} is not a directory") from None
        except OSError as error:
            raise Misconfigured(f"{name}: {path} cannot be made ({error.strerror}). {_cure(path)}") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise Misconfigured(f"{name}: {path} cannot be written. {_cure(path)}")


def _cure(path: Path) -> str:
    """Return whose the nearest directory is that exists, and what gives it to the host's user."""
    place = path
    while not place.is_dir() and place != place.parent:
        place = place.parent
    uid, gid = os.geteuid(), os.getegid()
    owner = place.stat().st_uid
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a read-only file system: mount a writable volume there"
    return (
        f"{place} belongs to uid {owner} and the host runs as uid {uid}: "
        f"run `chown -R {uid}:{gid} {place}` once, or start the host as uid {owner} "
        f"(docker run --user {owner}; in Kubernetes fsGroup: {gid})"
    )


logger = logging.getLogger("picoclaw.host")


@dataclass(frozen=True, slots=True)
class Base:
    """The base of one host. Made by ``open_base``."""

    settings: Settings
    owner: str
    stop: Callable[[str], None]
    redactor: Redactor
    telemetry: Telemetry
    metrics: Metrics
    models: ModelAccess
    store: Store
    sandbox: Sandbox


@asynccontextmanager
async def open_base(settings: Settings, owner: str, stop: Callable[[str], None]) -> AsyncIterator[Base]:
    """Open the base, and close it in the reverse order. Raises Misconfigured, StoreError, Unavailable."""
    _check(settings)
    redactor = Redactor(settings.secret_values())
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(open_telemetry(settings, redactor))
        models = ModelAccess(settings, telemetry.ask, redactor.text)
        stack.push_async_callback(models.aclose)
        await _start_model_process(models)
        make_volumes(settings)
        store = await _open_store(settings, owner)
        stack.push_async_callback(store.close)
        await _recover(store, settings, owner)
        sandbox = await stack.enter_async_context(Sandbox(sandbox_policy(settings)))
        yield Base(settings, owner, stop, redactor, telemetry, Metrics(), models, store, sandbox)


def _check(settings: Settings) -> None:
    org = settings.org_dir
    if org is not None and org.resolve().is_relative_to(settings.memory_dir.resolve()):
        raise Misconfigured("ORG_DIR: must not be inside the workspace, where agents could write it")


async def _start_model_process(models: ModelAccess) -> None:
    """Have it load the SDK beside the start, so that the first turn doesn't wait for it."""
    try:
        await models.load()
    except Exception:
        logger.exception("The model's client could not be made; the first run will say so")


async def _open_store(settings: Settings, owner: str) -> Store:
    """Open the store of the settings: PostgreSQL for several hosts, else the volume and its database."""
    retention = Retention(
        outbound_ms=settings.outbound_ttl_days * DAY_MS, task_log=settings.task_log_retention
    )
    if settings.database_url is None:
        return open_host_store(
            store_dir=settings.store_dir,
            local_db=settings.local_db_path,
            owner=owner,
            retention=retention,
            store_id=settings.store_id,
        )
    from shared.store.postgres.database import Place
    from shared.store.postgres.opening import open_shared_store

    place = Place(
        settings.database_url.get_secret_value(),
        owner=owner,
        connections=settings.database_connections,
        pooled=settings.database_pooler,
    )
    tools = settings.database_tools_url
    if settings.channels.telegram.enabled:
        logger.warning("Several hosts may share this store: switch channels on at one of them only")
    # The tool servers' door stands there, although no database does.
    settings.local_db_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return await open_shared_store(
        place, retention, tools_url=None if tools is None else tools.get_secret_value()
    )


async def _recover(store: Store, settings: Settings, owner: str) -> None:
    """End what an earlier host left running.

    Who holds the volume is alone, so nobody else can be at it. Where several hosts serve one store, only what
    outlived its lease is a dead host's.
    """
    now, alone = now_ms(), not store.several_hosts
    ended = await store.runs.recover(now, all_but=owner if alone else None)
    released = await store.tasks.recover(now, all_but=owner) if alone else 0
    if ended or released:
        logger.warning("Recovered after a crash", extra={"runs": len(ended), "task_claims": released})
    await store.conversations.ensure(settings.main_conversation_id, now)
    await store.durable()
