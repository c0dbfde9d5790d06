"""``picoclaw store`` where DATABASE_URL is set: PostgreSQL's own programs do the work, or are named."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import unquote, urlsplit, urlunsplit

from shared.errors import StoreError, StoreRefused

DUMP: Final = ("pg_dump", "--format=custom", "--no-password")
INSTEAD: Final = {
    "backup": 'pg_dump --format=custom --file={} "$DATABASE_URL"',
    "check": 'pg_dump "$DATABASE_URL" >/dev/null',
    "restore": 'pg_restore --clean --if-exists --single-transaction --dbname="$DATABASE_URL" {}',
    "rollback": "createdb NEW; pg_restore --dbname=NEW FILE, a backup made before the migration",
    "compact": 'vacuumdb --full "$DATABASE_URL"',
    "salvage": 'pg_dump --table=NAME "$DATABASE_URL", one table after the other',
    "export": "picoclaw store migrate --to sqlite --store-dir DIR; picoclaw store export --store-dir DIR",
}
"""What does the same as a command of ``picoclaw store``. ``{}`` is the file."""


def backup(url: str, target: Path) -> int:
    """Write a whole dump to a new file, for ``pg_restore``; returns its size in bytes. Raises StoreError."""
    if target.exists():
        raise StoreError(f"{target} exists already: choose a new name")
    part = target.with_name(f"{target.name}.tmp")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        _dump(url, part, refuse_to="backup")
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def check(url: str) -> None:
    """Read every row, as a backup does; raises StoreError with the server's words."""
    _dump(url, None, refuse_to="check")


def refuse(command: str, file: Path | None = None, why: str = "is about STORE_DIR") -> NoReturn:
    """Raise StoreRefused with what does the same for a PostgreSQL."""
    raise StoreRefused(
        f"The store is the PostgreSQL of DATABASE_URL, and `picoclaw store {command}` {why}. "
        f"Run: {INSTEAD[command].format(file)}   (--store-dir names a volume all the same)"
    )


def _dump(url: str, target: Path | None, *, refuse_to: str) -> None:
    program = shutil.which(DUMP[0])
    if program is None:
        refuse(refuse_to, target, "needs pg_dump, which is not installed here")
    parts = urlsplit(url)
    # Command lines are shown to everybody on the machine.
    place = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", "@"))
    secret = {} if parts.password is None else {"PGPASSWORD": unquote(parts.password)}
    done = subprocess.run(  # noqa: S603 - the operator's own program and address, no shell
        [program, *DUMP[1:], *([f"--file={target}"] if target else []), urlunsplit(place)],
        env={**os.environ, **secret}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StoreError(f"The database cannot be read to its end: {' '.join(done.stderr.split())}")
