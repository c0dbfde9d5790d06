"""``picoclaw import``: moving in from another system, or from another store of this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from host.cli.start import take_settings
from host.cli.terminal import fail, out, print_json, shown
from host.moving_in import breakcafe, exported, sipeed
from host.moving_in.arrivals import Arrivals, Broken
from host.moving_in.placing import place_files, place_settings
from shared.clock import now_ms
from shared.errors import PicoError, StoreError
from shared.ids import new_id
from shared.settings import Settings

app = typer.Typer(
    help="Move in from breakcafe/picoclaw, sipeed/picoclaw, or another store. The host must be stopped.",
    no_args_is_help=True,
)

Home = Annotated[Path, typer.Argument(help="The home of that system; nothing in it is changed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Zone = Annotated[
    str | None, typer.Option("--timezone", help="Of its schedules; that of the settings otherwise.")
]


@app.command("breakcafe")
def import_breakcafe(home: Home, dry_run: DryRun = False, json: Json = False, timezone: Zone = None) -> None:
    """Take conversations, tasks, memory and skills of breakcafe/picoclaw (the folder above store/)."""
    _move(lambda own: breakcafe.read(home, timezone or own.timezone, now_ms()), dry_run, json)


@app.command("sipeed")
def import_sipeed(home: Home, dry_run: DryRun = False, json: Json = False, timezone: Zone = None) -> None:
    """Take conversations, tasks, memory, skills and settings of sipeed/picoclaw (~/.picoclaw)."""
    _move(
        lambda own: sipeed.read(home, timezone or own.timezone, own.main_conversation_id, now_ms()),
        dry_run,
        json,
    )


@app.command("picoclaw")
def import_picoclaw(
    file: Annotated[Path, typer.Argument(help="What `picoclaw store export` wrote.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take every row of another store of this system that isn't here yet."""
    _move(lambda _: exported.read(file), dry_run, json)


def _move(read: Callable[[Settings], Arrivals], dry_run: bool, json: bool) -> None:
    settings = take_settings(os.environ, making=True)
    try:
        arrivals = read(settings)
    except Broken as error:
        fail(f"{error}. Nothing was changed.")
    found = {table: len(rows) for table, rows in arrivals.rows.items()} | {"files": len(arrivals.files)}
    body: dict[str, Any] = {"found": found}
    try:
        body |= {} if dry_run else _carry_out(arrivals, settings)
    except StoreError as error:
        fail(str(error), 2 if error.hopeless else 1)
    except PicoError as error:
        fail(f"{error}. Mend it and import again: what is in the store already stays.")
    body |= {"changed": arrivals.changed, "lost": arrivals.lost}
    (print_json if json else _show)(body)


def _carry_out(arrivals: Arrivals, settings: Settings) -> dict[str, Any]:
    new = anyio.run(_store, arrivals, settings)
    files, taken = place_files(arrivals.files, settings.memory_dir)
    arrivals.lost += [f"{name}: another file of this name is in the workspace and stays" for name in taken]
    made = [str(path) for path in place_settings(arrivals, settings)]
    return {"new": {**new, "files": files}, "settings": made}


async def _store(arrivals: Arrivals, settings: Settings) -> dict[str, int]:
    from host.volumes import make_volumes, open_store

    made = make_volumes(settings)
    async with open_store(settings, new_id("import"), made=made) as store:
        new = await store.arrivals.take(arrivals.rows)
        await store.durable()
    return new


def _show(body: dict[str, Any]) -> None:
    new = body.get("new")
    out.print("[bold]would be taken[/]" if new is None else "[bold]taken[/]")
    for table, count in body["found"].items():
        fresh = "" if new is None else f", {new.get(table, 0):,} of them new"
        out.print(f"  {count:,} {table.replace('_', ' ')}{fresh}")
    for title in ("settings", "changed", "lost"):
        if body.get(title):
            out.print(f"[bold]{title}[/]")
        for sentence in body.get(title, ()):
            out.print(f"  {shown(sentence)}", soft_wrap=True)
    if new is None:
        out.print("\nNothing was changed. Without --dry-run it is.")
