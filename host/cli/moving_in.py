"""``picoclaw init`` and ``picoclaw import``: a new home, and moving in from elsewhere.

Neither touches what is there.
"""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

import anyio
import typer
from ruamel.yaml import YAML

from host.cli.client import Json
from host.cli.start import HOMES_MODE, take_settings, write_new
from host.cli.terminal import fail, out, print_json, shown, tell
from host.moving_in import breakcafe, sipeed
from host.moving_in.arrivals import LARGEST_FILE, Arrivals, Broken, read_export
from shared import jsons
from shared.clock import now_ms
from shared.errors import PicoError, StoreError
from shared.ids import new_id
from shared.secrets import read_regular
from shared.settings import Settings, load
from shared.settings.security_yml import NAME

NEW_HOME: Final = Path(__file__).with_name("new_home")
"""What ``init`` puts into a home."""

NEXT = """

Next:
  picoclaw secrets set model_list.default.api_keys   the model's key (or ANTHROPIC_API_KEY)
  picoclaw doctor                                    check everything
  picoclaw serve                                     start the host
  picoclaw chat                                      talk to it"""


def init(json: Json = False) -> None:
    """Make a home: config.json, .security.yml with an API token, workspace; changes nothing that is there."""
    settings = load(os.environ, making=True)
    made = [
        *_directories(HOMES_MODE, settings.home),
        *_directories(0o755 if HOMES_MODE & 1 else 0o700, settings.skills_dir),
        *_directories(0o700, settings.config_dir, settings.memory_dir, settings.local_db_path.parent),
        *_file(settings.config_path, _new("config.json")),
        *_file(settings.config_dir / NAME, new_secrets()),
        *_file(settings.memory_dir / "CLAUDE.md", _new("persona.md")),
    ]
    lines = [f"made {shown(str(path))}" for path in made]
    words = "\n".join(lines or ["Everything is there already; nothing was changed."])
    tell({"made": [str(path) for path in made]}, words + NEXT, json=json)


def new_secrets() -> str:
    """Return a .security.yml with secrets that were just made."""
    made = {name: secrets.token_urlsafe(32) for name in ("token", "seal_key")}
    return Template(_new("security.yml")).substitute(made)


def _new(name: str) -> str:
    return (NEW_HOME / name).read_text("utf-8")


def _directories(mode: int, *paths: Path) -> list[Path]:
    return [path for path in paths if _directory(path, mode)]


def _directory(path: Path, mode: int) -> bool:
    if path.exists():
        return False
    try:
        path.mkdir(parents=True, mode=mode)
        path.chmod(mode)
    except OSError as error:
        fail(f"{path} cannot be made: {error.strerror}", 2)
    return True


def _file(path: Path, text: str) -> list[Path]:
    try:
        return [path] if write_new(path, text) else []
    except OSError as error:
        fail(f"{path} cannot be made: {error.strerror}", 2)


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
    _move(lambda _: read_export(file), dry_run, json)


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


DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def place_files(files: Mapping[str, Path], workspace: Path) -> tuple[int, list[str]]:
    """Copy the files that aren't there yet; return how many, and those whose place has something else.

    Nothing that is there is changed. The workspace is the agents': no link in it is followed.
    """
    workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    new, taken = 0, []
    for place, source in files.items():
        *folders, name = Path(place).parts
        try:
            with _folder(workspace, folders) as folder:
                _copy(source, folder, name)
            new += 1
        except FileExistsError:
            if not _is_same(workspace / place, source):
                taken.append(place)
        except OSError as error:
            raise Broken(f"{workspace / place}: {error.strerror}") from None
    return new, taken


def _is_same(path: Path, source: Path) -> bool:
    with suppress(OSError):
        return read_regular(path, LARGEST_FILE, follow=False) == source.read_bytes()
    return False


@contextmanager
def _folder(workspace: Path, folders: list[str]) -> Iterator[int]:
    """Open a folder of the workspace, made where it is missing."""
    here = os.open(workspace, DIRECTORY)
    owner = os.fstat(here)
    try:
        for name in folders:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=here)
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=here, follow_symlinks=False)
            below = os.open(name, DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def _copy(source: Path, folder: int, name: str) -> None:
    """Copy a file whole or not at all: under another name first (link(2) refuses a place that is taken)."""
    partial = f".{name[:200]}.moving"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    owner = os.fstat(folder)
    try:
        with source.open("rb") as came, os.fdopen(os.open(partial, NEW, 0o600, dir_fd=folder), "wb") as made:
            shutil.copyfileobj(came, made)
            os.fchmod(made.fileno(), 0o600 | source.stat().st_mode & 0o100)
            os.fchown(made.fileno(), owner.st_uid, owner.st_gid)
            made.flush()
            os.fsync(made.fileno())
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)


def place_settings(arrivals: Arrivals, settings: Settings) -> list[Path]:
    """Write the configuration and its secrets where there are none; return what was made."""
    config, secrets = settings.config_path, settings.config_dir / ".security.yml"
    if not arrivals.config:
        return []
    for path in (config, secrets):
        if path.exists():
            arrivals.lost.append(f"{path} is there already and stays: the settings of the home aren't taken")
            return []
    yaml, text = YAML(), StringIO()
    yaml.dump(arrivals.secrets, text)
    settings.config_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path, content in ((secrets, text.getvalue()), (config, jsons.dumps(arrivals.config, indented=True))):
        with os.fdopen(os.open(path, NEW, 0o600), "w", encoding="utf-8") as file:
            file.write(content)
    return [config, secrets]
