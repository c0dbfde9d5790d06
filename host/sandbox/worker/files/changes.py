"""What has changed in the workspace since a moment: a note of what was there, and what differs from it."""

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import Final

from ..names import Refused, code_of
from ..syscalls import held
from .paths import DIRECTORY, Roots
from .reading import Answer, regular, require_plain
from .transfer import DEEPEST, HIDDEN, MOST_NAMES

LOOKED_S: Final = 0.25
HASHED_S: Final = 2.0
HASHED_BYTES: Final = 64 << 20
MOST: Final = 200
"""Changes that are told."""
_LEFT_OUT: Final = re.compile(
    rf"conversations(?:/|\Z)|(?:.*/)?(?:\.git(?:/|\Z)|{HIDDEN.pattern}|\.[0-9a-f]{{16}}\.tmp)"
)
"""The archive, what git keeps, and what is not whole yet."""

Seen = dict[str, tuple[int, int, int]]
"""Of each file its inode, size and time of change."""


class _Look:
    """One look at all files in the order of their paths, not for ever; ``end`` is how far it came, "": to the
    end.
    """

    def __init__(self, directory: int) -> None:
        self.end = ""
        self._left = MOST_NAMES
        self._until = time.monotonic() + LOOKED_S
        self.files: Seen = dict(self._below(directory, "", 0))

    def _below(self, directory: int, above: str, level: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        with os.scandir(directory) as entries:
            names = sorted(each.name + "/" * each.is_dir(follow_symlinks=False) for each in entries)
        for name in names:
            path = above + name
            self._left -= 1
            if self.end or self._left < 0 or time.monotonic() > self._until:
                self.end = self.end or path
                return
            if _LEFT_OUT.match(path):
                continue
            with contextlib.suppress(OSError):
                if not name.endswith("/"):
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield path, (status.st_ino, status.st_size, status.st_mtime_ns)
                elif level < DEEPEST:
                    with held(os.open(name, DIRECTORY, dir_fd=directory)) as inner:
                        yield from self._below(inner, path, level + 1)


def mark_files(roots: Roots, arguments: Answer) -> Answer:
    """Note what is there in a file of the host's, which brings it along again to ``changed_files``."""
    with roots.directory(".") as directory:
        look = _Look(directory)
    lines = [f"{inode:x} {size:x} {changed:x} {path}" for path, (inode, size, changed) in look.files.items()]
    (note,) = arguments["descriptors"]
    with open(note, "wb", closefd=False) as file:
        file.write("\0".join([look.end, *lines]).encode(errors="surrogateescape"))
    return {}


def changed_files(roots: Roots, arguments: Answer) -> Answer:
    """Return what tools have ``written`` (paths: created or modified), and what differs from a mark."""
    written = arguments["written"].items()
    changes = {path: (change, "tool") for path, change in written if not _LEFT_OUT.match(path)}
    more = False
    if arguments["descriptors"]:
        before, cut = _noted(arguments["descriptors"][0])
        with roots.directory(".") as directory:
            now = _Look(directory)
        more = bool(cut or now.end)
        far = min(filter(None, (cut, now.end)), default="")
        for path, change in _differences(before, now.files):
            if not far or path < far:
                changes.setdefault(path, (change, "seen"))
    until, found = time.monotonic() + HASHED_S, list[Answer]()
    for path, (change, by) in sorted(changes.items()):
        entry = _entry(roots, path, change, until)
        if entry is not None:
            found.append({**entry, "by": by})
    return {"changes": found[:MOST], "more": more or len(found) > MOST}


def _noted(note: int) -> tuple[Seen, str]:
    end, *lines = os.pread(note, os.fstat(note).st_size, 0).decode(errors="surrogateescape").split("\0")
    parts = (line.split(" ", 3) for line in lines)
    return {path: (int(inode, 16), int(size, 16), int(at, 16)) for inode, size, at, path in parts}, end


def _differences(before: Seen, now: Seen) -> Iterator[tuple[str, str]]:
    for path in before.keys() | now.keys():
        if path not in now:
            yield path, "deleted"
        elif before.get(path) != now[path]:
            yield path, "modified" if path in before else "created"


def _entry(roots: Roots, path: str, change: str, until: float) -> Answer | None:
    """Return a change as it is now; None: a file that came and went, one that no address can name, or what
    lies in a closed directory.
    """
    try:
        path.encode()
        pinned = roots.open(f"./{path}", os.O_PATH)
    except UnicodeEncodeError:
        return None
    except (Refused, OSError) as error:
        gone = {"path": path, "size": 0, "sha256": None, "change": "deleted"}
        return None if change == "created" or code_of(error) == "EACCES" else gone
    with contextlib.suppress(Refused), held(pinned):
        require_plain(path, status := os.fstat(pinned))
        sha256 = _digest(roots, path) if status.st_size <= HASHED_BYTES and time.monotonic() < until else None
        change = "modified" if change == "deleted" else change
        return {"path": path, "size": status.st_size, "sha256": sha256, "change": change}
    return None


def _digest(roots: Roots, path: str) -> str | None:
    """Return the SHA-256 of a plain file, None if it may not be read."""
    with (
        contextlib.suppress(Refused, OSError),
        regular(roots, f"./{path}") as descriptor,
        open(descriptor, "rb", closefd=False) as file,
    ):
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None
