"""Putting what moves in where it belongs: files into the workspace, settings beside ``config.json``.

Nothing that is there is ever changed. The workspace is the agents': no link in it is followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from host.moving_in.arrivals import Arrivals, Arriving, Broken
from shared import jsons
from shared.regular_files import read_regular
from shared.settings import Settings

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def place_files(files: list[Arriving], workspace: Path) -> tuple[int, list[str]]:
    """Copy the files that aren't there yet; return how many, and those whose place has something else."""
    workspace.mkdir(parents=True, exist_ok=True, mode=0o700)
    new, taken = 0, []
    for file in files:
        outcome = _place(file, workspace)
        new += outcome is True
        if outcome is None:
            taken.append(file.name)
    return new, taken


def _place(file: Arriving, workspace: Path) -> bool | None:
    """Return whether a file is new, None where its place is taken by something else."""
    *folders, name = Path(file.name).parts
    try:
        with _folder(workspace, folders) as folder:
            return _copy(file.source, folder, name)
    except FileExistsError:
        there = read_regular_or_none(workspace / file.name)
        return False if there == file.source.read_bytes() else None
    except OSError as error:
        raise Broken(f"{workspace / file.name}: {error.strerror}") from None


def read_regular_or_none(path: Path) -> bytes | None:
    """Return what a regular file holds, None for anything else."""
    with suppress(OSError):
        return read_regular(path, 1 << 30, follow=False)
    return None


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


def _copy(source: Path, folder: int, name: str) -> bool:
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
    return True


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
