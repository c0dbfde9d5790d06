"""Files that programs outside fetch and bring: found, opened and put in place here, carried by the host.

The host gets a descriptor and moves the bytes itself, so a slow client never holds the worker. Whatever is
brought has no name, or one that matches ``HIDDEN``, until it is whole.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from .. import syscalls
from ..confine.workspaces import remove_whole
from ..names import Refused, code_of, explain, new_name, quoted, require_good
from ..syscalls import held
from . import reading
from .paths import DIRECTORY, Location, Roots
from .reading import Answer, require_plain
from .writing import existing_file, kept

HIDDEN: Final = re.compile(r"\.picoclaw-[0-9a-f]{16}")
MOST_NAMES: Final = 100_000
UPLOAD_S: Final = 60.0  # one that stands still ends sooner
OF_TARGET: Final = "@move_to"
"""What the code of a refusal ends with that is the target's."""
DEEPEST: Final = 32
_NAMELESS_FAILS: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # open(2), O_TMPFILE


def etag_of(status: os.stat_result) -> str:
    """Return what changes whenever a file does, without its content being read."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(f"{part:x}" for part in parts)


def list_files(roots: Roots, arguments: Answer) -> Answer:
    """List what lies below a prefix in the order of the paths' bytes; links are not followed.

    ``after``: only what comes behind this path. At most ``MOST_NAMES`` are looked at.
    """
    walk = _Walk(os.fsencode(arguments["prefix"]), os.fsencode(arguments["after"]))
    files: list[Answer] = []
    with contextlib.suppress(FileNotFoundError), roots.directory(".") as directory:
        for entry in walk.below(directory, b"", 0):
            files.append(entry)
            if len(files) > arguments["limit"]:
                break
    return {"files": files, "incomplete": walk.incomplete}


class _Walk:
    """Goes through a tree in order, past whole directories that hold nothing that is asked for."""

    def __init__(self, prefix: bytes, after: bytes) -> None:
        self.incomplete = False
        self._prefix = prefix
        self._after = after
        self._left = MOST_NAMES

    def below(self, directory: int, above: bytes, level: int) -> Iterator[Answer]:
        keys: list[bytes] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if HIDDEN.fullmatch(entry.name):
                    continue
                self._left -= 1
                if self._left < 0:
                    self.incomplete = True
                    break
                keys.append(name)
                if entry.is_dir(follow_symlinks=False):
                    keys.append(name + b"/")
        for key in sorted(keys):
            if key.endswith(b"/"):
                yield from self._inside(directory, above + key, key, level)
            elif above + key > self._after and (above + key).startswith(self._prefix):
                yield from self._entry(directory, above + key, key)

    def _inside(self, directory: int, path: bytes, key: bytes, level: int) -> Iterator[Answer]:
        wanted = path.startswith(self._prefix) or self._prefix.startswith(path)
        if not wanted or (path < self._after and not self._after.startswith(path)):
            return
        if level + 1 >= DEEPEST:
            self.incomplete = True
            return
        try:
            opened = os.open(key[:-1], DIRECTORY, dir_fd=directory)
        except OSError as error:
            self.incomplete = self.incomplete or error.errno != errno.ENOENT
            return
        with held(opened) as descriptor:
            yield from self.below(descriptor, path, level + 1)

    def _entry(self, directory: int, path: bytes, name: bytes) -> Iterator[Answer]:
        try:
            said = path.decode()
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except UnicodeDecodeError:
            self.incomplete = True  # no address can name it
        except OSError:
            return  # gone meanwhile
        else:
            kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
            kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
            size = status.st_size if kind == "file" else 0
            yield {"path": said, "size": size, "modified_ms": status.st_mtime_ns // 10**6, "type": kind}


def open_file(roots: Roots, arguments: Answer) -> Answer:
    """Open a file for reading; the descriptor goes to the host."""
    path = arguments["path"]
    name = _below(path)
    # opening a device for reading could already do something
    with held(roots.open(name, os.O_PATH)) as pinned:
        require_plain(path, os.fstat(pinned))
    descriptor = roots.open(name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        require_plain(path, status := os.fstat(descriptor))
    except Refused:
        os.close(descriptor)
        raise
    return {"etag": etag_of(status), "descriptors": [descriptor]}


def begin_upload(roots: Roots, arguments: Answer) -> Answer:
    """Open a new file that has no name yet; the descriptor goes to the host.

    What can be refused before its content comes is. ``credit``: bytes of the file that it will replace;
    ``upload``: its name for ``reserve``.
    """
    existing = _place_of(roots, arguments)
    temporary, descriptor = _new_file(roots.workspace)
    return {
        "temporary": temporary,
        "credit": 0 if existing is None else existing.st_size,
        "counted": roots.quota is not None and roots.quota.most > 0,
        "begun": time.monotonic(),
        "upload": _upload(descriptor),
        "descriptors": [descriptor],
    }


def _upload(descriptor: int) -> int:
    return -1 - os.fstat(descriptor).st_ino % (1 << 62)  # no process has such a number


def _place_of(roots: Roots, arguments: Answer) -> os.stat_result | None:
    """Return the file that is where one is to come to lie, if a path is named; raises ``Refused``."""
    if (path := arguments.get("path")) is None:
        return None
    name, existing = path, None
    try:
        with roots.parent(_below(path), make=False) as location:
            name, existing = location.name, existing_file(location, path)
    except Refused as refused:
        if code_of(refused) != "ENOENT":  # its directory is made with it
            raise
    if existing is None:
        require_good(name)
    _require(path, arguments, existing)
    return existing


def _new_file(directory: int) -> tuple[str, int]:
    """Return a file without a name, or where the file system has none, one with a name of ours.

    It is locked while somebody has it open.
    """
    flags, name = os.O_RDWR | os.O_CLOEXEC, ""
    try:
        descriptor = os.open(".", flags | os.O_TMPFILE, 0o644, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NAMELESS_FAILS:
            raise
        name = _temporary_name()
        descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=directory)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return name, descriptor


def _temporary_name() -> str:
    return f".picoclaw-{os.urandom(8).hex()}"


def remove_abandoned(roots: Roots) -> None:
    """Remove what uploads have left that nobody goes on with."""
    with contextlib.suppress(OSError, Refused), roots.directory(".") as directory:
        with os.scandir(directory) as entries:
            left = [entry.name for entry in entries if HIDDEN.fullmatch(entry.name)]
        for name in left:
            with contextlib.suppress(OSError):
                _remove_unused(directory, name)


def _remove_unused(directory: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with held(os.open(name, flags, dir_fd=directory)) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else somebody still writes it
        os.unlink(name, dir_fd=directory)


def reserve(roots: Roots, arguments: Answer) -> Answer:
    """See that so many bytes more of an upload fit where they are to lie, and count them; ``held``: with what
    came before, as long as it goes on.
    """
    _place_of(roots, arguments)
    if roots.quota is not None:
        roots.quota.require(arguments["more"])
        if "upload" in arguments:
            roots.quota.note_nameless(arguments["held"], arguments["upload"], UPLOAD_S)
    return {}


def commit_upload(roots: Roots, arguments: Answer) -> Answer:
    """Put a file that is whole in its place, in one step."""
    path, (taken,) = arguments["path"], arguments["descriptors"]
    with roots.parent(_below(path), make=True) as location:
        existing = existing_file(location, path)
        _require(path, arguments, existing)
        size = os.fstat(taken).st_size
        if existing is None:
            new_name(location.directory, location.name)
        else:
            os.fchmod(taken, stat.S_IMODE(existing.st_mode) & 0o777)
        if roots.quota is not None:
            roots.quota.note_nameless(0, _upload(taken))
            roots.quota.require_named(size - (existing.st_size if existing else 0), arguments["begun"])
        reading.stop_clock()
        _name(roots.workspace, taken, arguments["temporary"], location, replaces=existing is not None)
        note = kept(location.directory)
        status = os.stat(location.name, dir_fd=location.directory, follow_symlinks=False)
    return {"created": existing is None, "etag": etag_of(status), "size": size, "note": note}


def _name(workspace: int, taken: int, temporary: str, location: Location, *, replaces: bool) -> None:
    """Give a file its name. A nameless one can't replace another without having a name of its own first."""
    here, name = location.directory, location.name
    if not temporary:
        source = syscalls.proc_path("self", "fd", taken)
        if not replaces:
            os.link(source, name, dst_dir_fd=here)
            return
        temporary = _temporary_name()
        os.link(source, temporary, dst_dir_fd=workspace)
    try:
        rename = os.replace if replaces else syscalls.rename_new
        rename(temporary, name, src_dir_fd=workspace, dst_dir_fd=here)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=workspace)
        raise


def abandon_upload(roots: Roots, arguments: Answer) -> Answer:
    """Forget a file that will not be whole, and remove it where it has a name."""
    if roots.quota is not None:
        roots.quota.note_nameless(0, arguments["upload"])
    if HIDDEN.fullmatch(arguments["temporary"]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(arguments["temporary"], dir_fd=roots.workspace)
    return {}


def delete_path(roots: Roots, arguments: Answer) -> Answer:
    """Remove a file, a link or an empty directory, or with ``recursive`` any directory."""
    path = arguments["path"]
    with roots.parent(_below(path), make=False, follow=False) as location:
        status = os.stat(location.name, dir_fd=location.directory, follow_symlinks=False)
        _require(path, arguments, status)
        reading.stop_clock()
        if arguments["recursive"]:
            remove_whole(location.directory, location.name)
        else:
            single = os.rmdir if stat.S_ISDIR(status.st_mode) else os.unlink
            single(location.name, dir_fd=location.directory)
        kept(location.directory)
    return {}


def move_path(roots: Roots, arguments: Answer) -> Answer:
    """Give a file or directory another path, at which there must be nothing."""
    path, target = arguments["path"], arguments["target"]
    with roots.parent(_below(path), make=False, follow=False) as source:
        status = os.stat(source.name, dir_fd=source.directory, follow_symlinks=False)
        _require(path, arguments, status)
        try:
            with roots.parent(_below(target), make=True, follow=False) as place:
                new_name(place.directory, place.name)
                reading.stop_clock()
                syscalls.rename_new(
                    source.name, place.name, src_dir_fd=source.directory, dst_dir_fd=place.directory
                )
                kept(place.directory)
        except (Refused, OSError) as error:
            sentence = str(error) if isinstance(error, Refused) else explain(target, error)
            raise Refused(sentence, f"{code_of(error)}{OF_TARGET}") from None
    return {}


def _below(path: str) -> str:
    """Return a path as names in the workspace alone: ``~`` is a name like any other."""
    return f"./{path}"


def _require(path: str, arguments: Answer, existing: os.stat_result | None) -> None:
    """Raise ``Refused`` unless what is there is what the caller takes it for.

    ``match``: ETags of which it must have one, or ``*``; ``unless``: of which it must have none.
    """
    match, unless = arguments.get("match"), arguments.get("unless")
    tag = None if existing is None else etag_of(existing)
    if match is not None and not (tag is not None and ("*" in match or tag in match)):
        raise Refused(f"{quoted(path)} is not the file that If-Match names", "precondition_failed")
    if unless is not None and tag is not None and ("*" in unless or tag in unless):
        raise Refused(f"{quoted(path)} is there, which If-None-Match excludes", "precondition_failed")


TRANSFERS: Final[dict[str, Callable[[Roots, Answer], Answer]]] = {
    operation.__name__: operation
    for operation in (
        *(list_files, open_file, begin_upload, reserve),
        *(commit_upload, abandon_upload, delete_path, move_path),
    )
}
"""For the host's routes alone, below the workspace's root whatever the settings open to the tools."""
