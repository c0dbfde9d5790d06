"""Workspaces and private directories: made for the sandbox's uid, counted, removed with the conversation."""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeVar

from .. import syscalls
from ..frames import Config, Place, close_all
from ..syscalls import held
from . import grants
from .privileges import Identity, adopt

PREFIX = "picoclaw-"  # as the host names them
LOCK = "lock"  # beside the private directories
ABANDONED_S = 60.0
REMOVE_WITHIN_S = 2.0


class Removed(Exception):
    """Somebody removed the directory of the private directories, as cleaners of /tmp do."""


class Places:
    """Where each conversation works."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._places: dict[str, Place] = {}
        self._held = _hold(config.temporary, os.O_CREAT)
        # Names in it can't be guessed, and nobody may list or watch them (inotify(7)), not even its owner: a
        # command may have the same uid.
        os.chmod(config.temporary, 0o311)  # noqa: S103 - others may pass through

    def of(
        self, conversation: str, workspace: str, words: Iterable[str] = (), config: Config | None = None
    ) -> Place:
        """Return the place of a conversation; made at its first use, and again if it was removed.

        ``config``: its principal's, if that isn't the operator. Raises ``OSError``, ``Removed``.
        """
        config = config or self._config
        above = self.shared(config.counted[0]) if config.most_bytes else self._config.temporary
        known = self._places.get(conversation)
        if known is not None and os.path.dirname(known.temporary) != above:
            self.forget(conversation)  # a quota was set or taken away
            known = None
        temporary = known.temporary if known else f"{above}/{os.urandom(16).hex()}"
        place = Place(workspace, temporary, tuple(words))
        if known != place or not os.path.isdir(temporary):
            self._make(place, config)
            self._places[conversation] = place
        return place

    def _make(self, place: Place, config: Config) -> None:
        workspace = place.workspace
        if config.counted:
            _make_closed(workspace, config)
        elif not os.path.isdir(workspace):
            os.makedirs(workspace, 0o755, exist_ok=True)
        if (config.own_uid or config.counted) and os.stat(workspace).st_uid == 0:
            adopt(workspace, Identity(config.uid, config.gid, own=True))
        try:
            _make_private(place, config)
        except FileNotFoundError:
            raise Removed(self._config.temporary) from None

    def shared(self, directory: str) -> str:
        """Return where the private directories of a principal with a quota lie, by its own directory."""
        return f"{self._config.temporary}/{directory.rsplit('/', 1)[1]}"

    def remove_abandoned(self) -> None:
        """Remove what processes left that were killed before they could; beside the work, in a process."""
        _beside(lambda: _remove_abandoned(os.path.dirname(self._config.temporary)))

    def forget(self, conversation: str) -> None:
        """Remove a conversation's private directory."""
        place = self._places.pop(conversation, None)
        if place is not None:  # a big tree must not keep others waiting
            _beside(lambda: remove_tree(place.temporary))

    def within(self, paths: Iterable[str]) -> list[str]:
        """Return the conversations that work in one of these directories or below it."""
        return [
            conversation
            for conversation, place in self._places.items()
            if any(grants.is_beneath(place.workspace, path) for path in paths)
        ]

    def remove_all(self) -> None:
        """Remove everything private."""
        self._places.clear()
        _remove_private(self._config.temporary)


def _make_closed(workspace: str, config: Config) -> None:
    """Make a directory that its owner alone may look into, below ones that nobody else may list."""
    above = os.path.dirname(workspace)
    for path in (os.path.dirname(above), above):
        _make_shared(path, config)
    with contextlib.suppress(FileExistsError):
        os.mkdir(workspace, 0o700)


def _make_shared(path: str, config: Config) -> None:
    if make_passable(path) and path in config.counted and config.gid is not None:
        os.chown(path, -1, config.gid)
        os.chmod(path, 0o751)  # noqa: S103 - its principal's own group may count what is in it


def make_passable(path: str) -> bool:
    """Make a directory that others pass through and may not list; return whether it was missing."""
    if os.path.isdir(path):
        return False
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o711)  # noqa: S103 - others may pass through
    return True


def _make_private(place: Place, config: Config) -> None:
    if config.most_bytes:
        _make_shared(os.path.dirname(place.temporary), config)
    with contextlib.suppress(FileExistsError):
        os.mkdir(place.temporary, 0o700)
        os.mkdir(place.home, 0o700)
        if config.uid is not None and config.gid is not None:
            for path in (place.home, place.temporary):  # in what it has given away root may not write
                os.chown(path, config.uid, config.gid)


def _hold(path: str, made: int = 0) -> int:
    """Lock a directory, by a file in it, for as long as this process lives (flock(2))."""
    descriptor = os.open(f"{path}/{LOCK}", os.O_RDWR | made | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _beside(work: Callable[[], None]) -> None:
    """Do it in a process that has no socket of ours: if we die meanwhile, the host is told at once."""
    if os.fork() == 0:
        try:
            syscalls.close_all_but()
            work()
        finally:
            os._exit(0)


def _remove_abandoned(parent: str) -> None:
    for name in os.listdir(parent):
        if name.startswith(PREFIX):
            _remove_if_abandoned(f"{parent}/{name}")


def _remove_if_abandoned(path: str) -> None:
    """Remove a directory of ours that nobody holds and that is not so young that its holder may come.

    What has no lock in it is somebody's who likes the name, and so is a link.
    """
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if ours and time.time() - status.st_mtime > ABANDONED_S:
            with syscalls.held(_hold(path)):  # fails while its process lives
                _remove_private(path)


def _remove_private(directory: str) -> None:
    """Remove a directory of ours, and those in it, which may be several uids'."""
    os.chmod(directory, 0o700)
    for name in os.listdir(directory):
        _remove_any(f"{directory}/{name}")
    remove_tree(directory)


def _remove_any(path: str) -> None:
    """Remove a directory, one of root's with those in it."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        ours = status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)
        (_remove_private if ours and not status.st_uid else remove_tree)(path)


def remove(paths: Iterable[str]) -> list[str]:
    """Remove directories of principals, and return those that are still there.

    A command that is being ended may still write for a moment.
    """
    left, deadline = list(paths), time.monotonic() + REMOVE_WITHIN_S
    while left and time.monotonic() < deadline:
        for path in left:
            _remove_any(path)
        left = [path for path in left if os.path.lexists(path)]
        time.sleep(0.02 if left else 0)
    return left


def remove_tree(path: str) -> None:
    """Remove a directory of any depth without ever following a link; what can't be removed stays.

    Root empties it as its owner: it need not have the right to pass over permissions (CAP_DAC_OVERRIDE).
    """
    with contextlib.suppress(OSError):
        owner = os.lstat(path).st_uid
        ours = os.geteuid()
        try:
            if ours == 0:
                os.seteuid(owner)
            empty(path)
        finally:
            os.seteuid(ours)
        os.rmdir(path)


def empty(path: str) -> None:
    """Remove what is in a directory, likewise.

    Directories below are moved to the top and emptied there one by one, so that neither the stack nor the
    number of open descriptors grows with the depth.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    with contextlib.suppress(OSError), syscalls.held(os.open(path, flags)) as top:
        empty_all(top)


def empty_all(top: int) -> None:
    """Remove what is in a directory that is held open, likewise."""
    moved = itertools.count()
    pending = _empty(top, top, moved)
    while pending:
        name = pending.pop()
        with contextlib.suppress(OSError):
            with syscalls.held(_open_up(top, name)) as below:
                pending += _empty(below, top, moved)
            os.rmdir(name, dir_fd=top)


def remove_whole(directory: int, name: str) -> None:
    """Remove what a directory has under a name, with all that is in it; raises OSError."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=directory)
        return
    with syscalls.held(_open_up(directory, name)) as top:
        empty_all(top)
    os.rmdir(name, dir_fd=directory)


def _open_up(directory: int, name: str) -> int:
    """Open a directory for emptying, whatever its mode; pinned first, so that no link can take its place."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW
    with syscalls.held(os.open(name, os.O_PATH | flags, dir_fd=directory)) as pinned:
        os.chmod(syscalls.proc_path("self", "fd", pinned), 0o700)
    return os.open(name, os.O_RDONLY | flags, dir_fd=directory)


def _empty(directory: int, top: int, moved: Iterator[int]) -> list[str]:
    """Remove the files of a directory; returns its directories by the names they now have at the top."""
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    directories: list[str] = []
    for name, is_directory in names:
        with contextlib.suppress(OSError):
            if not is_directory:
                os.unlink(name, dir_fd=directory)
            elif directory == top:
                directories.append(name)
            else:
                os.close(_open_up(directory, name))  # moving it needs the right to write in it
                new = f".removed-{next(moved)}"
                os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
                directories.append(new)
    return directories


_LONGEST: Final = 2000  # characters of a path from one open directory; no call takes more than PATH_MAX
_MOST_BASES: Final = 100
_LEGIBLE: Final = stat.S_IRUSR | stat.S_IXUSR
_TRIES: Final = 10
T = TypeVar("T")


class Uncountable(Exception):
    """Directories lie too deep in each other, or are closed again as often as they are opened up."""


def below(directory: str) -> Iterator[os.stat_result | None]:
    """Yield all files below a directory, also in what its owner has closed; None for what is uncountable."""
    bases, pending = list[int](), [(0, directory)]
    try:
        while pending:
            number, path = pending.pop()
            close_all(bases[number:])  # the last comes first: what lies below these is done
            del bases[number:]
            for inner, status in _inside(path, bases):
                yield status
                if status is not None and stat.S_ISDIR(status.st_mode):
                    pending.append((len(bases), inner))
    finally:
        close_all(bases)


def _inside(path: str, bases: list[int]) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield what is in a directory by its path, None where that can't be told to the end."""
    try:
        with contextlib.suppress(OSError), held(_opened(path, bases)) as here:
            path = _from_here(path, here, bases)
            for name, status in _entries(here):
                yield f"{path}/{name}", status
    except Uncountable:
        yield path, None


def _from_here(path: str, here: int, bases: list[int]) -> str:
    """Return how paths below a directory begin: at a base of its own where they would grow too long."""
    if bases and len(path) <= _LONGEST:
        return path
    if len(bases) >= _MOST_BASES:
        raise Uncountable
    bases.append(os.dup(here))
    return "."


def _entries(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    way = [syscalls.proc_path("self", "fd", directory)]
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except PermissionError:
                yield entry.name, _let_in(partial(entry.stat, follow_symlinks=False), way)
            except OSError:
                continue  # gone meanwhile


def _opened(path: str, bases: list[int]) -> int:
    """Open a directory below the last base, or by its whole path. Raises ``OSError``, ``Uncountable``."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if not bases:
        return _let_in(partial(os.open, path, flags), [path])
    parts = path.split("/")
    way = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return _let_in(partial(os.open, path, flags | os.O_NOFOLLOW, dir_fd=bases[-1]), way, bases[-1])


def _let_in(look: Callable[[], T], way: list[str], base: int | None = None) -> T:
    """Return what a look tells that wants to be let into the directories on its ``way``: of ours, those that
    are closed are opened up. Raises ``OSError``, ``Uncountable`` where commands close them again and again.
    """
    closed = False
    for _ in range(_TRIES):
        try:
            return look()
        except PermissionError:
            closed = _open_up_all(way, base) or closed
    if closed:
        raise Uncountable
    return look()


def _open_up_all(way: list[str], base: int | None) -> bool:
    """Open up what on a way is closed, and return whether something is. Raises ``OSError`` for another's."""
    try:
        return sum(_open_up_ours(place, base) for place in way) > 0
    except PermissionError:
        return True  # what is above was closed again


def _open_up_ours(place: str, base: int | None) -> bool:
    flags = os.O_PATH | os.O_DIRECTORY | (0 if base is None else os.O_NOFOLLOW)
    with held(os.open(place, flags, dir_fd=base)) as pinned:
        status = os.fstat(pinned)
        if status.st_uid != os.geteuid():
            raise FileNotFoundError(errno.ENOENT, "another's, nothing to us")
        closed = status.st_mode & _LEGIBLE != _LEGIBLE
        if closed:
            os.chmod(syscalls.proc_path("self", "fd", pinned), stat.S_IMODE(status.st_mode) | _LEGIBLE)
    return closed
