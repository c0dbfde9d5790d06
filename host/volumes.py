"""The directories that a host needs, and the store that it opens."""

import asyncio
import errno
import logging
import os
import shlex
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from host.sandbox.policy import commands_own
from shared.clock import DAY_MS
from shared.errors import Misconfigured, Unavailable
from shared.settings import Settings
from shared.store import open_host_store
from shared.store.sql.lifetimes import Retention
from shared.store.store import Store

logger = logging.getLogger("picoclaw.host")

T = TypeVar("T")
ANSWER_S: Final = 2.0
"""How long a look at directories waits for their file system, in seconds."""

NEW_STORE: Final = "A new store was made in %s; its STORE_ID is %s"
WAS_EMPTY: Final = (
    "STORE_DIR %s was empty: a new store was made there. If one should be there, stop this host and mount "
    "its volume. STORE_ID=%s makes every later start refuse any other store, or none"
)


class Looks:
    """Looks at directories, one at a time: their file system may hang, and nobody waits for that thread.

    ``wait_s``: how long a look may take before it counts as hanging, in seconds. ``of``: what they look at.
    """

    def __init__(self, wait_s: float = ANSWER_S, of: str = "A file system") -> None:
        self._wait_s = wait_s
        self._of = of
        self._turn = anyio.Lock()
        self._last: Future[Any] | None = None
        self._begun = 0.0

    async def __call__(self, look: Callable[[], T]) -> T:
        """Return what a look returns; raises Unavailable where it, or the one before it, hangs."""
        with anyio.move_on_after(self._wait_s):
            async with self._turn:
                last, now = self._last, anyio.current_time()
                if last is not None and not last.done() and now < self._begun + self._wait_s:
                    with suppress(Exception):  # whoever asked for it has left
                        await asyncio.wrap_future(last)
                if last is None or last.done():
                    made = Future[T]()
                    self._last, self._begun = made, now
                    made.set_running_or_notify_cancel()
                    # A daemon: the end of the process doesn't wait for it either.
                    threading.Thread(target=_look, args=(look, made), daemon=True).start()
                    return await asyncio.wrap_future(made)
        raise Unavailable(f"{self._of} does not answer: try again", retry_after=5)


def _look(look: Callable[[], T], made: Future[T]) -> None:
    try:
        made.set_result(look())
    except Exception as error:  # noqa: BLE001 - the caller's, whatever it is
        made.set_exception(error)


def make_volumes(settings: Settings) -> bool:
    """Make the directories that are missing; raises Misconfigured with what mends one that can't be used.

    Returns whether the home is new, or `init` or `dev` made it, so that no volume with a store can be missed.
    """
    for fault in misplaced(settings):
        raise Misconfigured(fault)
    made = settings.database_url is None and _is_first_start(settings.home, settings.store_dir)
    for name, path in {**settings.store_dirs, "MEMORY_DIR": settings.memory_dir}.items():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise Misconfigured(f"{name}: {path} is not a directory") from None
        except OSError as error:
            raise Misconfigured(
                f"{name}: {path} cannot be made ({error.strerror}).{cure(path, error)}"
            ) from None
        usable = os.access(path, os.R_OK | os.W_OK | os.X_OK)
        if not usable and not (name == "MEMORY_DIR" and commands_own(path)):
            raise Misconfigured(f"{name}: {path} cannot be written.{cure(path, PermissionError())}")
    org = settings.org_dir
    if org is not None and org.resolve().is_relative_to(settings.memory_dir.resolve()):
        raise Misconfigured("ORG_DIR: must not be inside the workspace, where agents could write it")
    return made


def misplaced(settings: Settings) -> Iterator[str]:
    """Yield what lies in the place of a directory; a directory in the place of the database."""
    folders = {
        **settings.store_dirs,
        "MEMORY_DIR": settings.memory_dir,
        "PRINCIPALS_DIR": settings.principals_dir,
        "SKILLS_DIR": settings.skills_dir,
        "BUILT_IN_SKILLS_DIR": settings.built_in_skills_dir,
    }
    for name, path in folders.items():
        if path is not None and os.path.exists(path) and not os.path.isdir(path):
            yield f"{name}: {path} is not a directory"
    if os.path.isdir(database := settings.local_db_path):
        yield f"LOCAL_DB_PATH: {database} is a directory; name a file, such as {database / 'picoclaw.db'}"


def _is_first_start(home: Path, store_dir: Path) -> bool:
    try:
        return (
            home in store_dir.parents
            and not store_dir.exists()
            and (not home.exists() or any(home.iterdir()))
        )
    except OSError:
        return False


def cure(path: Path, error: OSError) -> str:
    """Return what gives a directory to the host's user. Nothing that is only above it changes hands."""
    if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
        return ""
    place = nearest(path)
    uid, gid = os.geteuid(), os.getegid()
    owner = place.stat().st_uid
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f" {place} is on a read-only file system: mount a writable volume there"
    if owner == uid:
        return f" The permissions of {place} forbid it to its owner: run {shown('chmod', 'u+rwx', place)}"
    belongs = f" {place} belongs to uid {owner} and the host runs as uid {uid}: "
    if place != path:
        made = shown("install", "-d", "-o", uid, "-g", gid, path)
        return f"{belongs}make it for the host, as root: {made}, or name another directory"
    return (
        f"{belongs}run {shown('chown', '-R', f'{uid}:{gid}', place)} once, or start the host as uid {owner} "
        f"(docker run --user {owner}; in Kubernetes fsGroup: {gid})"
    )


def nearest(path: Path) -> Path:
    """Return the directory itself, or the nearest one above it that can be seen from here."""
    return next(place for place in (path, *path.parents) if os.path.isdir(place))


def shown(*words: object) -> str:
    """Return a command for a sentence, to be pasted as it stands."""
    return f"`{shlex.join(map(str, words))}`"


@asynccontextmanager
async def open_store(settings: Settings, owner: str, *, made: bool) -> AsyncIterator[Store]:
    """Open the store of the settings: PostgreSQL for several hosts, else the volume and its database.

    ``made``: what ``make_volumes`` returned.
    """
    store = await _opened(settings, owner, made=made)
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


async def _opened(settings: Settings, owner: str, *, made: bool) -> Store:
    retention = Retention(
        outbound_ms=settings.outbound_ttl_days * DAY_MS,
        task_log=settings.task_log_retention,
        approvals_ms=settings.approvals_ttl_days * DAY_MS,
        audit_ms=settings.audit_ttl_days * DAY_MS,
        dead_ms=settings.deliveries_ttl_days * DAY_MS,
        responses_ms=settings.responses_ttl_days * DAY_MS,
    )
    if settings.database_url is None:
        opened = partial(
            open_host_store,
            store_dir=settings.store_dir,
            local_db=settings.local_db_path,
            owner=owner,
            retention=retention,
            store_id=settings.store_id,
        )
        # A volume that doesn't answer keeps nobody from stopping the host.
        store = await anyio.to_thread.run_sync(opened, abandon_on_cancel=True)
        if store.origin is not None and store.origin.new:
            say, sentence = (logger.info, NEW_STORE) if made else (logger.warning, WAS_EMPTY)
            say(sentence, settings.store_dir, store.origin.id)
        return store
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
    return await open_shared_store(
        place, retention, tools_url=None if tools is None else tools.get_secret_value()
    )
