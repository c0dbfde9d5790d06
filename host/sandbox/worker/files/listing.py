"""Listing directories, bounded in depth and number, what all of it takes, and removing a folder."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from ..names import Refused, quoted
from ..syscalls import held
from . import bounds
from .formats import Answer, kind_of
from .paths import DIRECTORY, Roots

LIST_ENTRIES: Final = 500
LIST_ENTRIES_MAX: Final = 5000
LIST_CHARACTERS: Final = 200_000
LIST_DEPTH_MAX: Final = 8


def list_dir(roots: Roots, arguments: Answer) -> Answer:
    """Names, kinds and sizes in a stable order; bounded in depth and number."""
    path = arguments.get("path") or "."
    depth = min(max(1, arguments.get("depth") or 1), LIST_DEPTH_MAX)
    limit = min(max(1, arguments.get("limit") or LIST_ENTRIES), LIST_ENTRIES_MAX)
    listing = _Listing(limit)
    with roots.directory(path) as directory:
        listing.walk(directory, "", depth)
    count = len(listing.lines)
    note = f"; cut after {count}, more follow (raise limit or list a subdirectory)" if listing.cut else ""
    return {"text": "\n".join([f"[{quoted(path)}: {count} entries{note}]", *listing.lines])}


class _Listing:
    """Collects lines until a limit."""

    def __init__(self, limit: int) -> None:
        self.lines: list[str] = []
        self.cut = False
        self._limit = limit
        self._room = LIST_CHARACTERS

    def walk(self, directory: int, prefix: str, depth: int) -> None:
        for name in sorted(self._names(directory)):
            if len(self.lines) >= self._limit or self._room <= 0:
                self.cut = True
                return
            self._entry(directory, prefix, name, depth)

    def _names(self, directory: int) -> list[str]:
        """Return the names, at most so many that a giant directory can't fill the memory."""
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(names) >= 20 * LIST_ENTRIES_MAX:
                    self.cut = True
                    break
                names.append(entry.name)
        return names

    def _entry(self, directory: int, prefix: str, name: str, depth: int) -> None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return  # gone meanwhile
        line = _line(quoted(f"{prefix}{name}"), status)
        self.lines.append(line)
        self._room -= len(line)
        if depth > 1 and stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(OSError), held(os.open(name, DIRECTORY, dir_fd=directory)) as below:
                self.walk(below, f"{prefix}{name}/", depth - 1)


def remove_folder(roots: Roots, arguments: Answer) -> Answer:
    """Remove a folder and the files in it. What folders it holds stays, and so does it.

    For the host alone: no tool of an agent has this name.
    """
    path = arguments["path"]
    above, name = os.path.split(path)
    bounds.end()
    with contextlib.suppress(Refused, FileNotFoundError), roots.directory(above or ".") as directory:
        with held(os.open(name, DIRECTORY, dir_fd=directory)) as folder:
            _remove_files(folder)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=directory)
    return {"text": f"ok: removed {path}"}


def usage(roots: Roots, arguments: Answer) -> Answer:
    """Return what a principal's directories hold, in bytes; counted within the last ``max_age_s`` seconds."""
    return {"used": 0 if roots.quota is None else roots.quota.counted(arguments["max_age_s"])}


def _remove_files(folder: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(IsADirectoryError):
                os.unlink(entry.name, dir_fd=folder)


def _line(name: str, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return f"{name}/"
    if stat.S_ISREG(status.st_mode):
        return f"{name}  {status.st_size}"
    return f"{name}  ({kind_of(status.st_mode)})"
