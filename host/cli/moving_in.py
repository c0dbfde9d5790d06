"""``picoclaw import``: moving in from another system, or from another store of this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anyio
import typer

from host.cli.client import Json
from host.cli.start import take_settings
from host.cli.terminal import fail, out, print_json, shown
from host.moving_in import breakcafe, exported, sipeed
from host.moving_in.arrivals import Arrivals, Broken
from host.moving_in.placing import place_files, place_settings
from shared.clock import now_ms
from shared.errors import PicoError, StoreError
from shared.ids import new_id
from shared.settings import Settings
from shared.store.sql.arrivals import Moved

app = typer.Typer(
    help="Move in from breakcafe/picoclaw, sipeed/picoclaw, or another store. The host must be stopped.",
    no_args_is_help=True,
)

Home = Annotated[Path, typer.Argument(help="The home of that system; nothing in it is changed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]
Zone = Annotated[
    str | None, typer.Option("--timezone", help="Of its schedules; that of the settings otherwise.")
]


@app.command("breakcafe")
def import_breakcafe(home: Home, dry_run: DryRun = False, json: Json = False, timezone: Zone = None) -> None:
    """Take conversations, tasks, memory and skills of breakcafe/picoclaw (the folder above store/)."""

    def read(settings: Settings) -> Arrivals:
        return breakcafe.read(home, timezone=timezone or settings.timezone, now=now_ms())

    _move(read, dry_run, json)


@app.command("sipeed")
def import_sipeed(home: Home, dry_run: DryRun = False, json: Json = False, timezone: Zone = None) -> None:
    """Take conversations, tasks, memory, skills and settings of sipeed/picoclaw (~/.picoclaw)."""

    def read(settings: Settings) -> Arrivals:
        main = settings.main_conversation_id
        zone = timezone or settings.timezone
        return sipeed.read(home, timezone=zone, main_conversation_id=main, now=now_ms())

    _move(read, dry_run, json)


@app.command("picoclaw")
def import_picoclaw(
    file: Annotated[Path, typer.Argument(help="What `picoclaw store export` wrote.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take every row of another store of this system that isn't here yet."""
    _move(lambda _: exported.read(file), dry_run, json)


@dataclass(frozen=True, slots=True)
class Done:
    """What was made of what moved in."""

    moved: Moved
    files: int
    settings: list[Path]


def _move(read: Callable[[Settings], Arrivals], dry_run: bool, json: bool) -> None:
    settings = take_settings(os.environ, making=True)
    try:
        arrivals = read(settings)
    except Broken as error:
        fail(f"{error}. Nothing was changed.")
    try:
        done = None if dry_run else _carry_out(arrivals, settings)
    except StoreError as error:
        fail(str(error), 2 if error.hopeless else 1)
    except PicoError as error:
        fail(f"{error}. Mend it and import again: what is in the store already stays.")
    if json:
        print_json(_as_json(arrivals, done))
    else:
        _show(arrivals, done)


def _carry_out(arrivals: Arrivals, settings: Settings) -> Done:
    moved = anyio.run(_store, arrivals, settings)
    files, taken = place_files(arrivals.files, settings.memory_dir)
    arrivals.lost += [f"{name}: another file of this name is in the workspace and stays" for name in taken]
    return Done(moved, files, place_settings(arrivals, settings))


async def _store(arrivals: Arrivals, settings: Settings) -> Moved:
    from host.app import make_volumes, open_store

    make_volumes(settings)
    async with open_store(settings, new_id("import")) as store:
        moved = await store.arrivals.take(arrivals.rows)
        await store.durable()
    return moved


def _as_json(arrivals: Arrivals, done: Done | None) -> dict[str, object]:
    found = {table: len(rows) for table, rows in arrivals.rows.items()}
    body: dict[str, object] = {
        "found": found | {"files": len(arrivals.files)},
        "changed": arrivals.changed,
        "lost": arrivals.lost,
    }
    if done is not None:
        body |= {
            "new": {**done.moved.new, "files": done.files},
            "settings": [str(path) for path in done.settings],
        }
    return body


def _show(arrivals: Arrivals, done: Done | None) -> None:
    out.print("[bold]taken[/]" if done else "[bold]would be taken[/]")
    for table, rows in arrivals.rows.items():
        new = f", {done.moved.new[table]:,} of them new" if done else ""
        out.print(f"  {len(rows):,} {table.replace('_', ' ')}{new}")
    out.print(f"  {len(arrivals.files):,} files{f', {done.files:,} of them new' if done else ''}")
    for path in done.settings if done else ():
        out.print(f"  {shown(str(path))}", soft_wrap=True)
    for title, sentences in (("changed", arrivals.changed), ("lost", arrivals.lost)):
        if sentences:
            out.print(f"[bold]{title}[/]")
        for sentence in sentences:
            out.print(f"  {shown(sentence)}", soft_wrap=True)
    if done is None:
        out.print("\nNothing was changed. Without --dry-run it is.")
