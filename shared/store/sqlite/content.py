"""What a database file holds, row by row, and whose fault it is when it can't be read or written.

An error is the machine's, or a damaged file's: a full disk is never taken for a damaged file. The one is
mended and tried again, the other refused.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from shared import jsons
from shared.errors import StoreDamaged, StoreEnvironment, StoreError, StoreForbidden

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
MACHINE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
"""SQLite's result codes (sqlite.org/rescode.html) that say nothing about the content of a file."""


@contextmanager
def told_apart(place: str, path: Path, wanted: Callable[[], int] = int) -> Iterator[None]:
    """Raise what happens within as StoreEnvironment or StoreDamaged.

    ``place`` is the name by which an operator knows ``path``, where files are written; ``wanted``: how many
    bytes they take at most, 0 when that isn't known.
    """
    try:
        yield
    except OSError as error:
        raise _of_the_machine(error, error.errno in FULL, place, path, wanted) from error
    except sqlite3.Error as error:
        if is_damage(error):
            raise StoreDamaged(f"{place} ({path}) is damaged: {error}") from error
        full = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
        raise _of_the_machine(error, full, place, path, wanted) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite speaks of a file's content, not of the machine."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF not in MACHINE


def forbidden(path: Path) -> StoreForbidden:
    """Return the error that says whose a file is, and what gives it to this process."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        owner = f"uid {path.stat().st_uid}"
    except OSError:
        owner = "somebody else"
    return StoreForbidden(
        f"{path} belongs to {owner} and this process runs as uid {uid}: run `chown {uid}:{gid} {path}`"
    )


def must_be_file(path: Path) -> None:
    """Raise StoreEnvironment for what is there and no file: opening a pipe waits for ever."""
    with suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            reason = "Is a directory" if stat.S_ISDIR(mode) else "It is not a file"
            raise StoreEnvironment(f"{path} cannot be used: {reason}. Nothing was changed.")


def _of_the_machine(
    error: OSError | sqlite3.Error, full: bool, place: str, path: Path, wanted: Callable[[], int]
) -> StoreError:
    disk = os.statvfs(_existing(path))
    if disk.f_files and not disk.f_favail and (full or _cannot_open(error)):
        return StoreEnvironment(
            f"{place}: no file can be made in {path}: all its {disk.f_files:,} inodes are taken "
            f"({_reason(error)}). Nothing was changed. Remove files there, or choose another disk."
        )
    if full:
        free, most = shutil.disk_usage(_existing(path)).free, 0
        with suppress(OSError):
            most = wanted()
        room = f" and up to {most:,} bytes are wanted" if most else ""
        return StoreEnvironment(
            f"{place}: no room in {path}: {free:,} bytes are free{room} ({_reason(error)}). "
            "Nothing was changed. Make room there, or choose a larger disk."
        )
    if isinstance(error, OSError) and error.filename is not None:
        file = Path(os.fsdecode(error.filename))
        if isinstance(error, PermissionError):
            return forbidden(file)
        if not file.is_relative_to(path):
            return StoreEnvironment(f"{file} cannot be used: {error.strerror}")
    return StoreEnvironment(f"{place} ({path}) cannot be used: {_reason(error)}")


def _cannot_open(error: OSError | sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _reason(error: OSError | sqlite3.Error) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {os.fsdecode(error.filename)}"


PROBE_BYTES: Final = 65_536
"""What a turn may need on a disk."""

RESERVE_BYTES: Final = 4 << 20
"""Space beside the database for the log of a deletion."""


class Reserve:
    """Space on the local disk that is kept so that a conversation can be deleted when all else is taken."""

    def __init__(self, database: Path) -> None:
        self._path = f"{database}.reserve"
        self.keep()

    def keep(self) -> None:
        """Take it, if it can be had and isn't held."""
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            except OSError:
                os.truncate(descriptor, 0)  # part of it would only be taken from others
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Give it back."""
        with suppress(OSError):
            os.truncate(self._path, 0)


def try_disk(path: Path) -> None:
    """Write what a turn may need to a new file, and remove it; raises OSError."""
    try:
        path.write_bytes(bytes(PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Give a directory in TMPDIR that goes with the block; if the process is killed, a later host removes it.

    By its lock that host knows that it is one, and whether it is still used (``sandbox.worker`` looks).
    """
    with tempfile.TemporaryDirectory(prefix="picoclaw-") as folder, Path(folder, "lock").open("xb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(folder)


JSON_COLUMNS: Final = frozenset({"blocks", "usage", "answer", "data", "terms"})


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables in the order they were made: whatever points to another comes after it."""
    return [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
        )
    ]


def rows(connection: sqlite3.Connection, table: str, without: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield a table's rows by their columns' names, JSON read; raises StoreDamaged."""
    found = connection.execute(f"SELECT * FROM {table}")
    columns = [column[0] for column in found.description]
    for number, row in enumerate(found, start=1):
        values = zip(columns, row, strict=True)
        try:
            yield {name: value_of(name, value) for name, value in values if name not in without}
        except ValueError as error:
            raise StoreDamaged(f"{table} has a damaged row, number {number}: {error}") from error


def rows_of(database: Path, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of tables of a foreign database as they are; raises StoreError.

    A copy is read, with the log that may lie beside it, so that nothing changes where it lies.
    """
    with temporary_directory() as folder:
        for end in ("", "-wal"):
            if Path(f"{database}{end}").exists():
                shutil.copyfile(f"{database}{end}", folder / f"copy{end}")
        try:
            with closing(sqlite3.connect(folder / "copy")) as connection:
                connection.row_factory = sqlite3.Row
                return {
                    name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names
                }
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error


def is_of_breakcafe(database: Path) -> bool:
    """Return whether a file is a database of breakcafe/picoclaw; nobody has it open here."""
    if not database.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?immutable=1", uri=True)) as connection:
            columns = connection.execute("SELECT name FROM pragma_table_info('conversations')").fetchall()
    except sqlite3.Error:
        return False
    return ("last_assistant_uuid",) in columns


def value_of(name: str, value: Any) -> Any:
    """Return what a column holds, JSON read; raises ValueError."""
    return jsons.loads(value) if name in JSON_COLUMNS and value is not None else value


def faults_in(database: Path) -> list[str]:
    """Read a database to its last row and return what is wrong with it, a sentence each."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            faults = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
            faults += [f"foreign key: {tuple(row)}" for row in connection.execute("PRAGMA foreign_key_check")]
            for table in tables(connection):
                for _ in rows(connection, table):
                    pass
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            return [str(error)]
        except StoreDamaged as error:
            return [error.what]
    return faults
