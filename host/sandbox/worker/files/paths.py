"""Names that the model gave, turned into descriptors without ever leaving the allowed roots.

Every open goes through openat2(2) below a root, with ``RESOLVE_BENEATH`` and ``RESOLVE_NO_MAGICLINKS``: the
kernel refuses ``..``, links and races that lead outside while it walks. Landlock stands behind it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self

from .. import syscalls
from ..confine.grants import expand, is_beneath
from ..frames import DEVICES, STREAMS, Config, Place
from ..limits.quota import Quota
from ..names import OUTSIDE, READ_ONLY, Refused, Words, alike, explain, quoted, require_good

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS: Final = 8
_OTHER_HOME: Final = re.compile(r"~[A-Za-z_+-][\w-]*(/|$)")  # as a shell understands it


class RootPath(NamedTuple):
    """A directory (or file) that names may be found under; ``follow`` as for grants.

    ``hard_links``: files there may have other names, for who installed them made those, and no agent can.
    """

    path: str
    writable: bool
    follow: bool = True
    hard_links: bool = False


def root_paths(config: Config, place: Place) -> list[RootPath]:
    """Return the roots, the workspace first. Looks globs up, so it must be called before confinement."""
    roots = [RootPath(place.workspace, True), RootPath(place.temporary, True)]
    roots += [RootPath(path, True, follow) for path, follow in expand(config.write_paths)]
    roots += [RootPath(path, False, follow) for path, follow in expand(config.read_paths)]
    roots += [RootPath(path, False, hard_links=True) for path in config.skill_paths]
    roots += [RootPath(path, False, follow=False) for path in config.readable]
    if not config.restrict_to_workspace:
        roots.append(RootPath("/", True, hard_links=True))
    elif config.allow_read_outside_workspace:
        roots.append(RootPath("/", False, hard_links=True))
    return roots


class _Root(NamedTuple):
    path: str
    descriptor: int
    writable: bool
    resolve: int
    hard_links: bool


class Location(NamedTuple):
    """A directory held open and a name in it; ``quota``: what counts what is written there."""

    directory: int
    name: str
    quota: Quota | None = None


class Roots:
    """The directories that names may be found under, held open while used.

    ``home`` is what ``~`` means. ``locks`` is a file that all workers have open; one that changes a file
    holds a lock there meanwhile, in a place that belongs to the file's name. ``words`` can't be changed.
    """

    def __init__(
        self,
        known: Iterable[RootPath],
        home: str = "~",
        locks: int | None = None,
        words: Words | None = None,
        quota: Quota | None = None,
    ) -> None:
        self.quota = quota
        self._roots: list[_Root] = []
        self._words = words
        self._home = home
        self._locks = locks
        for root in known:
            self._open(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for root in self._roots:
            os.close(root.descriptor)

    def _open(self, root: RootPath) -> None:
        path = root.path
        flags = os.O_PATH | os.O_CLOEXEC | (0 if root.follow else os.O_NOFOLLOW)
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags)
            beneath = syscalls.RESOLVE_IN_ROOT if path == "/" else syscalls.RESOLVE_BENEATH
            resolve = beneath | syscalls.RESOLVE_NO_MAGICLINKS
            name = path.rstrip("/") or "/"
            self._roots.append(_Root(name, descriptor, root.writable, resolve, root.hard_links))

    def open(self, path: str, flags: int, mode: int = 0, *, write: bool = False) -> int:
        """Open ``path`` (relative to the workspace). Raises ``Refused`` with a sentence."""
        root, below = self._find(path, write=write)
        try:
            return self._open_below(root, below, flags, mode)
        except OSError as error:
            raise Refused(explain(path, error)) from error

    def _open_below(self, root: _Root, below: str, flags: int, mode: int = 0) -> int:
        if stat.S_ISDIR(os.fstat(root.descriptor).st_mode):
            return syscalls.openat2(root.descriptor, below, flags, mode, root.resolve)
        if below != ".":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return os.open(root.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)

    @property
    def workspace(self) -> int:
        """The workspace's descriptor. Raises ``Refused`` if it is gone."""
        return self._find(".", write=True)[0].descriptor

    def hard_links(self, path: str) -> bool:
        """Return whether a file there may have other names."""
        return self._find(path, write=False)[0].hard_links

    @contextlib.contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """Hold a directory open for reading."""
        with syscalls.held(self.open(path, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
            yield descriptor

    @contextlib.contextmanager
    def parent(self, path: str, *, make: bool, follow: bool = True) -> Iterator[Location]:
        """Hold the directory of a file to be written open; links at the end are followed inside the root,
        unless ``follow`` is False.

        No other worker writes the file meanwhile. ``make``: create missing directories. Raises ``Refused``.
        """
        root, below = self._find(path, write=True)
        if path.endswith("/"):
            raise Refused(f"{quoted(path)} names a directory, as it ends in /; give the name of a file")
        for _ in range(_MAX_LINKS):
            directory, name = os.path.split(below.rstrip("/"))
            if name in ("", ".", ".."):
                raise Refused(f"{quoted(path)} is a directory")
            descriptor = self._held(root, directory or ".", path, make=make)
            target = syscalls.link_target(descriptor, name) if follow else None
            if target is None:
                try:
                    self._require_changeable(descriptor, name, path)
                    with self._locked(descriptor, name):
                        counts = self.quota if root is self._roots[0] else None
                        yield Location(descriptor, name, counts)
                finally:
                    os.close(descriptor)
                return
            os.close(descriptor)
            if target.startswith("/") and root.path != "/":
                raise Refused(f"{quoted(path)} {OUTSIDE} (a link to an absolute path)")
            below = f"{directory}/{target}" if directory and target[0] != "/" else target.lstrip("/")
        raise Refused(f"{quoted(path)}: too many links")

    @contextlib.contextmanager
    def _locked(self, directory: int, name: str) -> Iterator[None]:
        """Hold the lock of a name in a directory: one of the whole process (fcntl_locking(2)), which no
        command can hold, for it has no descriptor of the file.
        """
        if self._locks is None:
            yield
            return
        status = os.fstat(directory)
        key = f"{status.st_dev} {status.st_ino} {name}".encode("utf-8", "surrogateescape")
        place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 2
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, place)

    def _require_changeable(self, directory: int, name: str, path: str) -> None:
        if self._words is not None and self._words.cover_entry(directory, name):
            raise Refused(f"{quoted(path)} {READ_ONLY}", "read_only")

    def _held(self, root: _Root, directory: str, path: str, *, make: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            return self._open_below(root, directory, flags)
        except FileNotFoundError as error:
            if not make:
                raise Refused(f"{quoted(path)}: no such directory") from error
        except OSError as error:
            raise Refused(explain(path, error)) from error
        try:
            return self._make(root, directory, path)
        except OSError as error:
            raise Refused(explain(path, error)) from error

    def _make(self, root: _Root, directory: str, path: str) -> int:
        """Create the missing directories one by one, each below the root."""
        require_good(directory)
        current = os.dup(root.descriptor)
        walked = "."
        for part in directory.split("/"):
            walked = f"{walked}/{part}"
            if part not in ("", ".", ".."):
                self._require_changeable(current, part, path)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            flags = os.O_RDONLY | os.O_DIRECTORY
            following = syscalls.openat2(root.descriptor, walked, flags, 0, root.resolve)
            os.close(current)
            current = following
        return current

    def offer(self, path: str) -> str:
        """Return half a sentence that offers a name which looks like the one that is missing in a path."""
        while path := path.rstrip("/"):
            path, name = os.path.split(path)
            with contextlib.suppress(Refused), self.directory(path or ".") as directory:
                return alike(directory, name)
        return ""

    def _find(self, path: str, *, write: bool) -> tuple[_Root, str]:
        if "\0" in path:
            raise Refused("a path can't contain a NUL byte")
        if not path:
            raise Refused("the path is empty")
        if path == "~" or path.startswith("~/"):
            path = self._home + path[1:]
        elif _OTHER_HOME.match(path):
            raise Refused(f"{quoted(path)} {OUTSIDE}; a file of that name is ./{quoted(path)}")
        if not self._roots:
            raise Refused(f"{quoted(path)}: the directory it lies in is gone", "ENOENT")
        everything = [root for root in self._roots if root.path == "/" and (root.writable or not write)]
        if not path.startswith("/"):
            if not everything:
                return self._roots[0], path
            path = f"{self._roots[0].path}/{path}"
        for candidate in (path, os.path.normpath(path)):
            for root in sorted(self._roots, key=lambda r: -len(r.path)):
                if is_beneath(candidate.rstrip("/") or "/", root.path) and (root.writable or not write):
                    root = everything[0] if everything and not root.hard_links else root
                    return root, candidate[len(root.path) :].lstrip("/") or "."
        raise Refused(f"{quoted(path)} {OUTSIDE}")


def is_device(path: str) -> bool:
    """Return whether a path names one of the devices that are safe for all tools."""
    return path in DEVICES or path in STREAMS
