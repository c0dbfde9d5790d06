"""Directories: listing and removing them, and one look at what the host wants to know of one (``survey``).

The host asks for a few texts and the skills at the beginning of every turn, so the answer is a stamp of what
is there, and the content only if the stamp is not the one that the host knows. The stamp holds inode, size
and change time (which, unlike the modification time, no agent can set): a tenth of the cost of reading.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from ..confine.workspaces import remove_whole
from ..names import Refused, explain, quoted
from ..syscalls import held
from . import reading
from .paths import DIRECTORY, Roots
from .reading import Answer, kind_of, regular

SKILL_FILE: Final = "SKILL.md"
NAMES_LOOKED_AT: Final = 10_000  # of a directory of skills, before it is sorted and cut
SETTLED_NS: Final = 2_000_000_000  # a change this young may be followed by one with the same time stamp


def survey(roots: Roots, arguments: Answer) -> Answer:
    """Answer ``{stamp}`` if it is ``known``, else ``{stamp, texts, skills, more}``.

    Arguments: ``texts`` is a list of ``{names, limit, tail}``, of which the first name that exists is read:
    ``limit`` bytes, and the last ``tail`` bytes of a longer file; ``skills`` a directory or None, ``most``
    how many of its folders are looked at (in the order of their names), ``limit`` how many bytes of each
    SKILL.md are read.
    Answer: ``texts`` in their order, each ``{name, text, size}`` (and ``tail``), ``{name, fault}`` or None;
    ``skills`` with ``{folder, text, size}`` or ``{folder, fault}``; ``more`` is how many were left out;
    ``links`` whether a link leads to any of it. A stamp is empty while what it covers has just been changed.
    Of a directory that will be made where nobody can watch (``unborn``) both say so while there is none.
    """
    directory = arguments["skills"]
    with contextlib.ExitStack() as held:
        shelf = _held(roots, directory, held)
        folders, more = _folders(shelf, arguments["most"])
        names = [name for wanted in arguments["texts"] for name in wanted["names"]]
        top = _held(roots, ".", held)
        looks = [(top, name, name) for name in names]
        linked = [name for name in folders if _is_link(shelf, name, unknown=True)]
        looks += [
            (-1 if name in linked else shelf, f"{name}/{SKILL_FILE}", _skill_path(directory, name))
            for name in folders
        ]
        unborn = top < 0 and arguments.get("unborn", False)
        stamp = "" if unborn else _stamp(roots, looks)
        if stamp and stamp == arguments["known"]:
            return {"stamp": stamp}
        places = [(top, directory or ".")] + [(at, name) for at, name, _ in looks if at >= 0]
        links = unborn or bool(linked) or any(_is_link(at, name) for at, name in places)
    texts = [_first(roots, **wanted) for wanted in arguments["texts"]]
    skills = [
        {"folder": folder.encode("utf-8", "replace").decode()}
        | _content(roots, _skill_path(directory, folder), arguments["limit"])
        for folder in folders
    ]
    return {"stamp": stamp, "texts": texts, "skills": skills, "more": more, "links": links}


def _held(roots: Roots, directory: str | None, held: contextlib.ExitStack) -> int:
    """Return a descriptor of a directory, -1 if there is none."""
    with contextlib.suppress(Refused):
        return -1 if directory is None else held.enter_context(roots.directory(directory))
    return -1


def _folders(shelf: int, most: int) -> tuple[list[str], int]:
    """Return the folders' names, sorted, and how many more there are; links count, hidden names don't."""
    names = [] if shelf < 0 else sorted(_visible(shelf))
    return names[:most], max(0, len(names) - most)


def _visible(descriptor: int) -> Iterator[str]:
    with os.scandir(descriptor) as entries:
        for _, entry in zip(range(NAMES_LOOKED_AT), entries, strict=False):
            if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir(follow_symlinks=False)):
                yield entry.name


def _is_link(directory: int, name: str, *, unknown: bool = False) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    return unknown


def _skill_path(directory: str, folder: str) -> str:
    return f"{directory}/{folder}/{SKILL_FILE}"


def _stamp(roots: Roots, looks: list[tuple[int, str, str]]) -> str:
    """Return a digest of what is at each (directory, name in it, path from the root)."""
    digest = hashlib.blake2b(digest_size=16)
    newest = 0
    for directory, name, path in looks:
        status = _status(roots, directory, name, path)
        mark = "-"
        if status is not None:
            newest = max(newest, status.st_ctime_ns)
            mark = (
                f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            )
        digest.update(os.fsencode(f"{path}\0{mark}\n"))
    return digest.hexdigest() if newest < time.time_ns() - SETTLED_NS else ""


def _status(roots: Roots, directory: int, name: str, path: str) -> os.stat_result | None:
    """Look at a file. Links (``directory`` -1) are followed only below the root: elsewhere a foreign file
    system could hang us. Of one that leads elsewhere or nowhere the link itself counts.
    """
    status = None
    try:
        if directory >= 0:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                return status
        with held(roots.open(path, os.O_PATH)) as descriptor:
            return os.fstat(descriptor)
    except (OSError, Refused):
        return status


def _first(roots: Roots, names: list[str], limit: int, tail: int = 0) -> Answer | None:
    for name in names:
        found = _content(roots, name, limit, tail)
        if "missing" not in found:
            return {"name": name} | found
    return None


def _content(roots: Roots, path: str, limit: int, tail: int = 0) -> Answer:
    try:
        with regular(roots, path) as descriptor:
            size = os.fstat(descriptor).st_size
            found: Answer = {"text": os.pread(descriptor, limit, 0).decode("utf-8", "replace"), "size": size}
            if tail and size > limit:
                found["tail"] = os.pread(descriptor, tail, size - tail).decode("utf-8", "replace")
            return found
    except Refused as refusal:
        missing = isinstance(refusal.__cause__, FileNotFoundError)
        return {"fault": str(refusal)} | ({"missing": True} if missing else {})
    except OSError as error:
        return {"fault": explain(path, error)}


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


_FOR_GOOD: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTEMPTY})


def remove_folder(roots: Roots, arguments: Answer) -> Answer:
    """Remove what has the name of a folder of the host's, with all that is in it. What may not be removed
    stays: no later try would do more.

    For the host alone: no tool of an agent has this name.
    """
    path = arguments["path"]
    above, name = os.path.split(path)
    reading.stop_clock()
    with contextlib.suppress(Refused), roots.directory(above or ".") as directory:
        try:
            remove_whole(directory, name)
        except OSError as error:
            if error.errno not in _FOR_GOOD:
                raise
    return {"text": f"ok: removed {path}"}


def usage(roots: Roots, arguments: Answer) -> Answer:
    """Return what a principal's directories hold, in bytes; counted within the last ``max_age_s`` seconds."""
    return {"used": 0 if roots.quota is None else roots.quota.counted(arguments["max_age_s"])}


def _line(name: str, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return f"{name}/"
    if stat.S_ISREG(status.st_mode):
        return f"{name}  {status.st_size}"
    return f"{name}  ({kind_of(status.st_mode)})"
