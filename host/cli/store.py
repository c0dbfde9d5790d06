"""``picoclaw store``: the store that the host would use, as an operator handles it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
import typer

from host.cli.client import Json, host_settings
from host.cli.terminal import err, named, out, print_json, shown, tell, whole
from shared import jsons
from shared.errors import StoreError, StoreRefused
from shared.store.volume import operator
from shared.store.volume.opening import must_be, newest_copy
from shared.untrusted import one_line

if TYPE_CHECKING:
    from shared.settings import Settings
    from shared.store.copying import Tell
    from shared.store.postgres.database import Database, Place

app = typer.Typer(no_args_is_help=True)

StoreDir = Annotated[
    Path | None, typer.Option("--store-dir", help="The volume; that of the settings otherwise.")
]

RENAMED = "The store is {} from now on: where STORE_ID is set, change it."
VOLUME_ALONE = (
    "the volume, with everything acknowledged until now; "
    "not the file at LOCAL_DB_PATH, which its host works on"
)


@app.callback()
def store() -> None:
    """Check, back up, restore, roll back, salvage, fold, export, migrate STORE_DIR."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="A backup; the store otherwise.")] = None,
    store_dir: StoreDir = None,
    json: Json = False,
) -> None:
    """Read everything that is stored, or in a backup; exit 1 on a fault. A host may be running."""
    url, volume = (None, Path()) if file is not None else _store(store_dir)
    if url is not None:
        _dump(url, None, refuse_to="check")  # reads every row, as a backup does
        tell({"checked": "every row", "faults": []}, "Every row of the database can be read.", json=json)
        return
    report = operator.check(volume) if file is None else operator.check_backup(file)
    checked = VOLUME_ALONE if report.holder else "everything"
    if json:
        print_json({"checked": checked, **asdict(report)})
    else:
        _show(report, checked)
    if report.faults:
        raise typer.Exit(1)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new file.", callback=named)],
    store_dir: StoreDir = None,
    json: Json = False,
) -> None:
    """Write everything acknowledged so far to one file (SQLite; pg_dump's). A host may be running."""
    url, volume = _store(store_dir)
    size = operator.backup(volume, target) if url is None else dump(url, target)
    tell({"file": str(target), "bytes": size}, f"{size:,} bytes in {shown(str(target))}", json=json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A file made by backup.")],
    store_dir: StoreDir = None,
    json: Json = False,
) -> None:
    """Make a backup the newest state. The host must be stopped; it uses the backup at its next start."""
    store_id = operator.restore(_volume(store_dir, "restore", source), source)
    words = f"Restored from {shown(str(source))}. The host uses it at its next start."
    tell({"store_id": store_id}, f"{words}\n{RENAMED.format(store_id)}", json=json)


@app.command()
def rollback(store_dir: StoreDir = None, json: Json = False) -> None:
    """Go back to what was stored before the last migration, for the program before. The host must be stopped.

    What came since is lost: `backup` keeps it.
    """
    copy, version = newest_copy(_volume(store_dir, "rollback"))
    store_id = operator.restore(copy.parent, copy)
    words = (
        f"The store is as it was before its migration, with schema version {version}.\n"
        f"Start the program of that time; this one would migrate it again.\n{RENAMED.format(store_id)}"
    )
    tell({"store_id": store_id, "schema_version": version}, words, json=json)


@app.command()
def salvage(
    target: Annotated[Path, typer.Argument(help="A new file.", callback=named)],
    source: Annotated[
        Path | None, typer.Option("--from", help="A damaged database or backup; the volume otherwise.")
    ] = None,
    store_dir: StoreDir = None,
    json: Json = False,
) -> None:
    """Write what can be read of a damaged volume to a new file, and list what is lost. Nothing else changes.

    Whole conversations come first. Look at the file with `check`, and put it in place with `restore`.
    """
    found = operator.save_what_can_be_read(source or _volume(store_dir, "salvage"), target)
    if json:
        print_json({"file": str(target), "whole": found.whole, "known": found.known, "lost": found.lost})
        return
    out.print(f"{found.sentence} and are in {shown(str(target))}.")
    for loss in found.lost:
        out.print(f"[bold red]lost[/]  {shown(loss)}", soft_wrap=True)


@app.command()
def compact(store_dir: StoreDir = None, json: Json = False) -> None:
    """Fold the history into one snapshot, so that no deleted byte is left. The host must be stopped."""
    size = operator.compact(_volume(store_dir, "compact"))
    tell({"volume_bytes": size}, f"{size:,} bytes are left on the volume.", json=json)


@app.command()
def export(store_dir: StoreDir = None) -> None:
    """Write every row as a line of JSON, and at the end how many they are. A host may be running."""
    number = 0
    for row in operator.export(_volume(store_dir, "export")):
        sys.stdout.write(one_line(jsons.dumps(row)) + "\n")
        number += 1
    sys.stdout.write(jsons.dumps({"table": "end", "rows": number}) + "\n")


Engine = Literal["postgres", "sqlite"]


@app.command()
def migrate(
    to: Annotated[Engine, typer.Option("--to", help="The engine that gets everything.")],
    store_dir: StoreDir = None,
    json: Json = False,
) -> None:
    """Copy everything between STORE_DIR and DATABASE_URL, compare both, and change nothing on the source.

    All hosts must be stopped. A copy that was broken off goes on where it is run again.
    """
    settings = host_settings()
    volume = store_dir or settings.store_dir
    must_be(volume, settings.store_id if to == "postgres" else None)
    counts = _copied(settings, volume, to)
    said = f"{sum(counts.values()):,} rows in {len(counts)} tables are the same on both sides."
    tell(counts, said, json=json)


def _copied(settings: Settings, volume: Path, to: Engine) -> dict[str, int]:
    """Copy everything and return the rows of each table; raises StoreError."""
    from shared.store.copying import publish, to_postgres, to_sqlite
    from shared.store.postgres.database import Place

    if settings.database_url is None:
        raise StoreError("DATABASE_URL is not set: it says which PostgreSQL is meant")
    place = Place(settings.database_url.get_secret_value(), connections=2, pooled=settings.database_pooler)
    if to == "postgres":
        return anyio.run(_with, place, partial(to_postgres, volume))
    if operator.has_store(volume):
        raise StoreError(f"There is a store in {volume}: choose an empty directory")
    work_file = settings.local_db_path.with_name("migrating.db")
    counts = anyio.run(_with, place, partial(to_sqlite, work_file))
    publish(work_file, volume)
    return counts


async def _with(place: Place, copy: Callable[[Database, Tell], Awaitable[dict[str, int]]]) -> dict[str, int]:
    from shared.store.postgres.database import Database
    from shared.store.postgres.migrations import migrate as migrate_schema
    from shared.store.postgres.opening import in_sentences

    database = Database(place)
    try:
        with in_sentences("DATABASE_URL"):
            await migrate_schema(database)
            return await copy(database, lambda table, rows: err.print(f"{table}  {rows:,}"))
    finally:
        await database.close()


def _store(store_dir: Path | None) -> tuple[str | None, Path]:
    """Return what is meant: the database's address where the host would use one, else the volume.

    A volume has to hold the store that STORE_ID names.
    """
    store_id = os.environ.get("STORE_ID", "").strip() or None
    if store_dir is None:
        settings = host_settings()
        if settings.database_url is not None:
            return settings.database_url.get_secret_value(), settings.store_dir
        store_dir, store_id = settings.store_dir, settings.store_id
    must_be(store_dir, store_id)
    return None, store_dir


def _volume(store_dir: Path | None, command: str, file: Path | None = None) -> Path:
    """Return the volume; raises StoreRefused where the host would use a database instead."""
    url, volume = _store(store_dir)
    if url is not None:
        refuse_postgres(command, file)
    return volume


def _show(report: operator.Report, checked: str) -> None:
    if report.volume_bytes:
        out.print(f"store          {report.store_id or 'without a readable identity'}")
        out.print(f"held by        {report.holder or 'nobody'}")
        out.print(f"on the volume  {report.snapshots} snapshots, {report.segments} segments, ", end="")
        out.print(f"{report.volume_bytes:,} bytes")
    out.print(f"database       {report.database_bytes:,} bytes, schema version {report.schema_version}")
    out.print(
        f"content        {report.conversations:,} conversations, {report.messages:,} messages, ", end=""
    )
    out.print(f"{report.tasks:,} tasks")
    out.print(f"checked        {checked}", soft_wrap=True)
    for fault in report.faults:
        out.print(f"[bold red]fault[/]          {shown(fault)}", soft_wrap=True)
    if not report.faults:
        out.print("Everything is sound.")


PG_DUMP: Final = ("pg_dump", "--format=custom", "--no-password")
RESTORE: Final = "pg_restore --no-owner --no-privileges"
"""Roles may have other names there; what the tool servers' role needs, a host grants at its start."""
INSTEAD: Final = {
    "backup": 'pg_dump --format=custom --file={} "$DATABASE_URL"',
    "check": 'pg_dump "$DATABASE_URL" >/dev/null',
    "restore": f'{RESTORE} --clean --if-exists --single-transaction --dbname="$DATABASE_URL" {{}}',
    "rollback": f"createdb NEW; {RESTORE} --dbname=NEW FILE, a backup made before the migration",
    "compact": 'vacuumdb --full "$DATABASE_URL"',
    "salvage": 'pg_dump --table=NAME "$DATABASE_URL", one table after the other',
    "export": "picoclaw store migrate --to sqlite --store-dir DIR; picoclaw store export --store-dir DIR",
}
"""What does the same as a command of ``picoclaw store``. ``{}`` is the file."""


def dump(url: str, target: Path) -> int:
    """Write a whole dump to a new file, for ``pg_restore``; returns its size in bytes. Raises StoreError."""
    if target.exists():
        raise StoreError(f"{target} exists already: choose a new name")
    with whole(target) as part:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _dump(url, part, refuse_to="backup")
    return target.stat().st_size


def refuse_postgres(command: str, file: Path | None = None, why: str = "is about STORE_DIR") -> NoReturn:
    """Raise StoreRefused with what does the same for a PostgreSQL."""
    raise StoreRefused(
        f"The store is the PostgreSQL of DATABASE_URL, and `picoclaw store {command}` {why}. "
        f"Run: {INSTEAD[command].format(file)}   (--store-dir names a volume all the same)"
    )


def _dump(url: str, target: Path | None, *, refuse_to: str) -> None:
    program = shutil.which(PG_DUMP[0])
    if program is None:
        refuse_postgres(refuse_to, target, "needs pg_dump, which is not installed here")
    place, password = _without_password(url)
    secret = {} if password is None else {"PGPASSWORD": password}
    done = subprocess.run(  # noqa: S603 - the operator's own program and address, no shell
        [program, *PG_DUMP[1:], *([f"--file={target}"] if target else []), place],
        env={**os.environ, **secret}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise StoreError(f"The database cannot be read to its end: {' '.join(done.stderr.split())}")


def _without_password(url: str) -> tuple[str, str | None]:
    """Return an address for a command line, which is shown to everybody on the machine, and the password."""
    parts = urlsplit(url)
    said = parts.password
    password = dict(parse_qsl(parts.query)).get("password") if said is None else unquote(said)
    query = "&".join(each for each in parts.query.split("&") if not each.startswith("password="))
    # Not urlunsplit: without a host (a socket's directory is a parameter) it leaves out the two slashes.
    return f"{parts.scheme}://{parts.netloc.replace(f':{said}@', '@')}{parts.path}?{query}", password
