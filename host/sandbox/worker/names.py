"""Names of files as people and models read them, those that only look alike, and those that are read-only."""

import contextlib
import errno
import json
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from . import syscalls

_SHOWN: Final = 4096  # characters; no path of a file is longer
_LOOKED_AT: Final = 20_000  # names in a directory


OUTSIDE: Final = "is outside the workspace"


class Refused(Exception):
    """A sentence for the model; ``code`` says to programs why."""

    def __init__(self, sentence: str, code: str = "refused") -> None:
        super().__init__(sentence)
        self.code = code


def code_of(error: Refused | OSError) -> str:
    """Return the code of a refusal, which for a failed call is the errno's name."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return errno.errorcode.get(cause.errno or 0, "EIO")
    return error.code if isinstance(error, Refused) else "EIO"


def quoted(name: str) -> str:
    r"""Return a name so that it fills one line and can't be misread: as it is, or quoted as in JSON.

    Bytes that are no UTF-8 become ``\xff``.
    """
    if len(name) > _SHOWN:
        name = f"{name[:_SHOWN]}..."
    if name.isprintable() and name == name.strip() and not any(part in name for part in ('"', "\\", "  ")):
        return name
    return f'"{"".join(map(_escaped, name))}"'


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return json.dumps(letter)[1:-1] if letter in '"\\' or not letter.isprintable() else letter


def require_good(name: str) -> None:
    """Refuse a name that nobody would choose for something new. Raises ``Refused``."""
    if "\\" in name:
        raise Refused(f"{quoted(name)}: a new name can't contain a backslash; write / between directories")
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        raise Refused(f"{quoted(name)}: a new name can't contain line ends or other control characters")


def new_name(directory: int, name: str) -> str:
    """Check a name that is to be made; returns a note for the answer if one that looks alike is there."""
    require_good(name)
    return "" if name.isascii() and " " not in name else alike(directory, name)


def alike(directory: int, name: str) -> str:
    """Return half a sentence that offers the name which is there for one that isn't, or nothing."""
    wanted = _essence(name)
    with os.scandir(directory) as entries:
        for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
            if _essence(entry.name) == wanted:
                shown, exact = quoted(entry.name), json.dumps(entry.name)
                return f"; there is {shown}" + ("" if shown in exact else f", written {exact}")
    return ""


_PLAIN: Final = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2012\u2013\u2014\u2212", "''\"\"-----")
"""Quotation marks, hyphens and dashes that programs put in place of those on the keyboard."""


def _essence(name: str) -> str:
    """Return what is left of a name without what the eye does not see: Unicode form, kind of space, case."""
    normal = unicodedata.normalize("NFKC", name).casefold().translate(_PLAIN)
    seen = (" " if letter.isspace() else letter for letter in normal if unicodedata.category(letter) != "Cf")
    return "".join(seen).strip()


_SENTENCES: Final = {
    errno.ENOENT: "no such file or directory",
    errno.EXDEV: OUTSIDE,
    errno.ELOOP: "the links in it lead round in a circle, or to what no tool may follow",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.EISDIR: "is a directory",
    errno.ENXIO: "is not a regular file",
    errno.ENAMETOOLONG: "the name is too long (255 bytes between two slashes, 4096 in all)",
    errno.EFBIG: "the file would be larger than the limit",
    errno.ENOSPC: "no space left on the disk",
    errno.EEXIST: "already exists",
    errno.EROFS: "the file system is read-only",
}


def explain(path: str, error: OSError) -> str:
    """Return a sentence about a failed call on ``path``."""
    sentence = _SENTENCES.get(error.errno or 0) or os.strerror(error.errno or errno.EIO).lower()
    return f"{quoted(path)} {sentence}" if sentence.startswith("is ") else f"{quoted(path)}: {sentence}"


READ_ONLY: Final = "is read-only in this conversation"
_MOST_LINKS: Final = 40  # path_resolution(7)


class Words:
    """What is obeyed, by names relative to the workspace; nothing without names.

    ``besides``: names of directories that are covered too, wherever links in them lead.
    """

    def __init__(self, workspace: str, names: Iterable[str], besides: Iterable[str] = ()) -> None:
        self._workspace = os.path.realpath(workspace)
        self._names = tuple(names)
        self._besides = tuple(besides)

    def __bool__(self) -> bool:
        return bool(self._names or self._besides)

    def cover(self, path: str) -> bool:
        """Return whether changing a name, by its real path, would change what is obeyed: it is one of them,
        beneath or above one. Letter case is passed over, as some file systems do.
        """
        mine = f"{path.casefold()}/"
        return any(mine.startswith(theirs) or theirs.startswith(mine) for theirs in self._paths())

    def hold(self, path: str) -> bool:
        """Return whether a file, by its real path, is one of them or beneath one."""
        mine = f"{path.casefold()}/"
        return any(mine.startswith(theirs) for theirs in self._paths())

    def cover_entry(self, directory: int, name: str) -> bool:
        """Return ``cover`` of a name in a directory that is held open."""
        return bool(self) and self.cover(f"{real_path(directory)}/{name}")

    def _paths(self) -> Iterator[str]:
        """Yield them, and what links of these names and in these directories lead through and to now, each
        with a slash behind it.
        """
        for name in (*self._besides, *self._names):
            path = f"{self._workspace}/{name}"
            yield f"{path}/".casefold()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for link in _links(path, inside=name not in self._besides):
                    yield from (f"{place}/".casefold() for place in _way(link))


def _links(path: str, *, inside: bool) -> Iterator[str]:
    """Yield a path that is a link, and where it is a directory the links in that, if they count too."""
    kind = os.lstat(path).st_mode
    if stat.S_ISLNK(kind):
        yield path
    if inside and not stat.S_ISREG(kind):
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            yield from [entry.path for entry in entries if entry.is_symlink()]


def _way(path: str) -> Iterator[str]:
    """Yield every link that a path leads through, and where it ends."""
    at, rest, left = "", path.split("/")[::-1], _MOST_LINKS
    while rest and left:
        name = rest.pop()
        if name == "..":
            at = at.rpartition("/")[0]
        elif name not in ("", "."):
            above, at = at, f"{at}/{name}"
            if os.path.islink(at):
                yield at
                target, left = os.readlink(at), left - 1
                at = "" if target.startswith("/") else above
                rest += target.split("/")[::-1]
    yield at


def real_path(descriptor: int) -> str:
    """Return where an open file is."""
    return os.readlink(syscalls.proc_path("self", "fd", descriptor))
