"""Putting what moves in where it belongs: files into the workspace, settings beside ``config.json``.

Nothing that is there is ever changed. The workspace is the agents': no link in it is followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from host.moving_in.arrivals import LARGEST_FILE, Arrivals, Broken
from shared import jsons
from shared.regular_files import read_regular
from shared.settings import Settings

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def place_files(files: Mapping[str, Path], workspace: Path) -> tuple[int, list[str]]:
    """Copy the files that aren't there yet; return how many, and those whose place has something else."""
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
