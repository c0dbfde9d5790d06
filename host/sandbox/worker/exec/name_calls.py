"""Calls that make, change or remove names, made by the reaper for commands that may not change all of them.

Landlock can't take a name out of a directory that may be written. So the kernel hands such calls over
(seccomp_unotify(2)), and none of them continues, for the caller could change the path meanwhile: the
directory is pinned with an ``O_PATH`` descriptor, its place is looked up, and the call is made below it, with
the same uid and no more rights.
"""

import contextlib
import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from .. import syscalls
from ..confine.grants import is_beneath
from ..names import Words, real_path
from ..syscalls import AT_FDCWD

_ID_VALID: Final = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_PATH_MAX: Final = 4096
_STREAMS: Final = {b"/dev/stdin": b"0", b"/dev/stdout": b"1", b"/dev/stderr": b"2"}
_DESCRIPTORS: Final = (b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/")


class Call(NamedTuple):
    """A pending call: where it waits, who made it, and its arguments."""

    listener: int
    identity: int
    thread: int
    arguments: tuple[int, ...]

    def require_waiting(self) -> None:
        """Raise ``OSError`` if the caller is gone: what was read by its number may be another's."""
        fcntl.ioctl(self.listener, _ID_VALID, struct.pack("=Q", self.identity))


def open_from(start: int, name: bytes, flags: int, thread: int) -> int:
    """Open a path as the caller would, but for links of /proc that lead out of it."""
    # such a name means the caller's descriptor, not ours
    number = _STREAMS.get(name) or next((name[len(p) :] for p in _DESCRIPTORS if name.startswith(p)), b"")
    if number.isdigit():
        return os.open(syscalls.proc_path(thread, "fd", int(number)), flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return syscalls.openat2(start, name, flags, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    raise PermissionError(errno.EPERM, "magic link")


def owned(descriptor: int, stack: contextlib.ExitStack) -> int:
    """Return a descriptor that is closed with the stack."""
    stack.callback(os.close, descriptor)
    return descriptor


def caller_descriptor(call: Call, number: int, stack: contextlib.ExitStack) -> int:
    """Pin what a descriptor of the caller's is (``AT_FDCWD``: its working directory)."""
    known = signed(number)
    link = "cwd" if known == syscalls.AT_FDCWD else f"fd/{known}"
    return owned(os.open(syscalls.proc_path(call.thread, link), os.O_PATH | os.O_CLOEXEC), stack)


def signed(value: int) -> int:
    """Read an argument as a C int."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def memory(thread: int, address: int, size: int) -> bytes:
    """Read the caller's memory."""
    with open(syscalls.proc_path(thread, "mem"), "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size)


def string(thread: int, address: int) -> bytes:
    """Read a C string, page by page: the next page need not be mapped."""
    data = b""
    while len(data) < _PATH_MAX:
        part = memory(thread, address + len(data), 4096 - (address + len(data)) % 4096)
        text, end, _ = part.partition(b"\0")
        data += text
        if end:
            return data
    raise OSError(errno.ENAMETOOLONG, "path too long")


_MAX_LINKS: Final = 8
_AT_EMPTY_PATH, _AT_REMOVEDIR, _AT_SYMLINK_FOLLOW = 0x1000, 0x200, 0x400  # include/uapi/linux/fcntl.h
_CREATED_NEW: Final = os.O_CREAT | os.O_EXCL
_CREAT: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC  # creat(2)


class Entry(NamedTuple):
    """A name in a directory that is held open."""

    directory: int
    name: bytes


class NameCalls:
    """Makes the calls of one command. ``writable``: below these it may; ``devices``: these it may open."""

    def __init__(self, writable: list[str], devices: list[str], words: Words) -> None:
        self._writable = [os.path.realpath(path) for path in writable]
        self._devices = devices
        self._words = words

    def perform(self, number: int, call: Call) -> int:
        """Make a call that opens nothing; returns 0, or ENOSYS for an unknown one. Raises ``OSError``."""
        make = _CALLS.get(number)
        if make is None:
            return errno.ENOSYS
        with contextlib.ExitStack() as stack:
            make(_Maker(self, call, stack))
        return 0

    def open(self, call: Call, path_at: int, flags: int, mode: int, stack: contextlib.ExitStack) -> int:
        """Return a descriptor of what an open call means, closed with the stack. Raises ``OSError``,
        ``BlockingIOError`` where it would wait for a pipe's reader.
        """
        maker = _Maker(self, call, stack)
        directory = call.arguments[0] if path_at else AT_FDCWD
        nofollow = bool(flags & os.O_NOFOLLOW) or flags & _CREATED_NEW == _CREATED_NEW
        try:
            target = maker.pinned(path_at, follow=not nofollow, directory=directory)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            entry = maker.entry(path_at, follow=not nofollow, directory=directory)
            maker.take_umask()
            opened = os.open(entry.name, _at_once(flags) | os.O_NOFOLLOW, mode, dir_fd=entry.directory)
        else:
            self._require_openable(target, flags, nofollow=nofollow)
            again = _at_once(flags) & ~(_CREATED_NEW | os.O_NOFOLLOW)
            try:
                opened = os.open(syscalls.proc_path("self", "fd", target), again)
            except OSError as error:
                waits = error.errno == errno.ENXIO and not flags & os.O_NONBLOCK
                if waits and stat.S_ISFIFO(os.fstat(target).st_mode):  # fifo(7)
                    raise BlockingIOError(errno.EAGAIN, "no reader yet") from None
                raise
        owned(opened, stack)
        os.set_blocking(opened, not flags & os.O_NONBLOCK)
        return opened

    def require_changeable(self, target: int, mode: int | None) -> None:
        """Raise ``PermissionError`` if a pinned file's words are obeyed, or if ``mode``, which it is to get,
        would close the way to them to its owner.
        """
        path = real_path(target)
        closes = mode is not None and mode & stat.S_IRWXU != stat.S_IRWXU
        if self._words.hold(path) or (closes and self._words.cover(path)):
            raise PermissionError(errno.EPERM, "obeyed")

    def require(self, path: str) -> None:
        """Raise ``PermissionError`` unless a real path is one that the command may change."""
        if not any(is_beneath(path, root) for root in self._writable) or self._words.cover(path):
            raise PermissionError(errno.EACCES, "read-only")

    def _require_openable(self, target: int, flags: int, *, nofollow: bool) -> None:
        if flags & _CREATED_NEW == _CREATED_NEW:
            raise FileExistsError(errno.EEXIST, "exists")
        if nofollow and stat.S_ISLNK(os.fstat(target).st_mode):
            raise OSError(errno.ELOOP, "a link")
        path = real_path(target)
        if path.startswith("/") and not any(is_beneath(path, device) for device in self._devices):
            self.require(path)  # else it is a pipe, or a device


class _Maker:
    """One call's arguments, read and pinned."""

    def __init__(self, calls: NameCalls, call: Call, stack: contextlib.ExitStack) -> None:
        self._calls = calls
        self._call = call
        self._stack = stack
        self.arguments = call.arguments

    def string(self, at: int) -> bytes:
        """Return a path or text."""
        return string(self._call.thread, self.arguments[at])

    def pinned(self, path_at: int, *, follow: bool, directory: int = AT_FDCWD) -> int:
        """Return an ``O_PATH`` descriptor of an existing file."""
        start = caller_descriptor(self._call, directory, self._stack)
        how = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        found = owned(open_from(start, self.string(path_at), how, self._call.thread), self._stack)
        self._call.require_waiting()
        return found

    def changeable(self, path_at: int) -> str:
        """Return a name for an existing file that the command may change, pinned."""
        target = self.pinned(path_at, follow=True)
        self._calls.require(real_path(target))
        return syscalls.proc_path("self", "fd", target)

    def size(self, at: int) -> int:
        """Return a size to give a file. Raises ``OSError`` where the caller may have none so large."""
        size, most = self.arguments[at], resource.prlimit(self._call.thread, resource.RLIMIT_FSIZE)[0]
        if most != resource.RLIM_INFINITY and size > most:
            raise OSError(errno.EFBIG, "too large")
        return size

    def source(self, directory: int, path_at: int, flags: int) -> int:
        """Return an ``O_PATH`` descriptor of the file that linkat(2) gives a further name."""
        if flags & _AT_EMPTY_PATH and not self.string(path_at):
            target = caller_descriptor(self._call, directory, self._stack)
        else:
            target = self.pinned(path_at, follow=bool(flags & _AT_SYMLINK_FOLLOW), directory=directory)
        path = real_path(target)
        self._calls.require(path.removesuffix(" (deleted)"))
        return target

    def entry(self, path_at: int, *, directory: int = AT_FDCWD, follow: bool = False) -> Entry:
        """Return a name that the command may change, its directory pinned; ``follow``: links at its end."""
        start, path = caller_descriptor(self._call, directory, self._stack), self.string(path_at)
        for _ in range(_MAX_LINKS):
            above, _, name = path.rstrip(b"/").rpartition(b"/")
            above = above or (b"/" if path.startswith(b"/") else b".")
            how = os.O_PATH | os.O_DIRECTORY
            start = owned(open_from(start, above, how, self._call.thread), self._stack)
            target = syscalls.link_target(start, name) if follow else None
            if target is None:
                self._call.require_waiting()
                self._calls.require(f"{real_path(start).rstrip('/')}/{os.fsdecode(name)}")
                return Entry(start, name)
            path = target
        raise OSError(errno.ELOOP, "too many links")

    def take_umask(self) -> None:
        """Have what is made now get the permissions that the caller's umask leaves."""
        with open(syscalls.proc_path(self._call.thread, "status"), "rb", buffering=0) as file:
            head = file.read(512)
        os.umask(int(head.partition(b"\nUmask:")[2].split()[0], 8))


def opening(number: int, call: Call) -> tuple[int, int, int]:
    """Return which argument of an open call is its path, its flags and its mode."""
    path_at = OPENS[number]
    if number == syscalls.number("creat"):
        return path_at, _CREAT, call.arguments[1] & 0o7777
    return path_at, call.arguments[path_at + 1] & 0x7FFFFFFF, call.arguments[path_at + 2] & 0o7777


def _at_once(flags: int) -> int:
    return flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


Make = Callable[[_Maker], None]


def _make(create: Callable[..., None], at: int, mask: int) -> Make:
    """The mode, within ``mask``, is the argument behind the path."""

    def make(call: _Maker) -> None:
        entry = call.entry(at, directory=call.arguments[0] if at else AT_FDCWD)
        call.take_umask()
        create(entry.name, call.arguments[at + 1] & mask, dir_fd=entry.directory)

    return make


def _remove(at: int, remove: Callable[..., None] = os.unlink) -> Make:
    def make(call: _Maker) -> None:
        entry = call.entry(at, directory=call.arguments[0] if at else AT_FDCWD)
        is_directory = at and call.arguments[2] & _AT_REMOVEDIR
        (os.rmdir if is_directory else remove)(entry.name, dir_fd=entry.directory)

    return make


def _symlink(at: int) -> Make:
    def make(call: _Maker) -> None:
        entry = call.entry(at, directory=call.arguments[1] if at == 2 else AT_FDCWD)
        os.symlink(call.string(0), entry.name, dir_fd=entry.directory)

    return make


def _rename(first: int, second: int, flags_at: int | None = None) -> Make:
    def make(call: _Maker) -> None:
        directories = (call.arguments[0], call.arguments[2]) if first else (AT_FDCWD, AT_FDCWD)
        old = call.entry(first, directory=directories[0])
        new = call.entry(second, directory=directories[1])
        flags = 0 if flags_at is None else call.arguments[flags_at] & 0xFFFFFFFF
        syscalls.call("renameat2", old.directory, old.name, new.directory, new.name, flags)

    return make


def _link(call: _Maker) -> None:
    _give_name(call.source(AT_FDCWD, 0, 0), call.entry(1))


def _linkat(call: _Maker) -> None:
    source = call.source(call.arguments[0], 1, call.arguments[4])
    _give_name(source, call.entry(3, directory=call.arguments[2]))


def _give_name(source: int, entry: Entry) -> None:
    os.link(
        syscalls.proc_path("self", "fd", source), entry.name, dst_dir_fd=entry.directory, follow_symlinks=True
    )


def _truncate(call: _Maker) -> None:
    os.truncate(call.changeable(0), call.size(1))


OPENS: Final = syscalls.by_number({"open": 0, "creat": 0, "openat": 1})
"""Which argument of the calls that open files is the path."""

_CALLS: Final = syscalls.by_number(
    {
        "mkdir": _make(os.mkdir, 0, 0o7777),
        "mkdirat": _make(os.mkdir, 1, 0o7777),
        "mknod": _make(os.mknod, 0, 0o177777),
        "mknodat": _make(os.mknod, 1, 0o177777),
        "rmdir": _remove(0, os.rmdir),
        "unlink": _remove(0),
        "unlinkat": _remove(1),
        "symlink": _symlink(1),
        "symlinkat": _symlink(2),
        "rename": _rename(0, 1),
        "renameat": _rename(1, 3),
        "renameat2": _rename(1, 3, 4),
        "link": _link,
        "linkat": _linkat,
        "truncate": _truncate,
    }
)
