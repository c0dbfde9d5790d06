"""Calls that a command's reaper judges or makes for it (seccomp_unotify(2)): chmod, chown, utime, nameless
temporary files, and new sessions.

Landlock does not cover the first three. Where commands share a uid with the host, or own something they may
only read, the kernel hands such calls to the reaper. It never lets one continue (the caller could change
the path meanwhile): it pins the file with an ``O_PATH`` descriptor, looks where that is, and makes the
change itself through the descriptor, with the same uid and no privileges.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH101, PTH115, PTH123

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from . import proc, syscall_table, syscalls, tree
from .grants import is_beneath

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_ADD_FD: Final = 0x40182103  # SECCOMP_IOCTL_NOTIF_ADDFD
_ADD_FD_AND_ANSWER: Final = 1 << 1  # SECCOMP_ADDFD_FLAG_SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_ID_VALID: Final = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_DESCRIPTOR: Final = struct.Struct("=QIIII")
_SHARED_TEMPORARY: Final = (b"/tmp", b"/tmp/", b"/var/tmp", b"/var/tmp/")
_PATH_MAX: Final = 4096
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_UNCHANGED: Final = 0xFFFFFFFF
_UTIME_NOW: Final = (1 << 30) - 1  # utimensat(2)
_SET_ID: Final = 0o6000
# arguments of which a call is made
_NO_PATH: Final = -1
MOST_SESSIONS: Final = 16
_COUNTING_SHARE: Final = 4


@dataclass(frozen=True, slots=True)
class Call:
    """A pending call: who made it, and its arguments."""

    thread: int
    arguments: tuple[int, ...]


class Gate:
    """Answers the notifications of one command: metadata calls, nameless files in /tmp, new sessions."""

    def __init__(self, listener: int, roots: list[str], temporary: str) -> None:
        self.listener = listener
        self._sessions = 0
        self._count_again = 0.0
        self._temporary = temporary
        self._roots = [os.path.realpath(root) for root in roots]

    def fileno(self) -> int:
        """Return the notification descriptor, for polling."""
        return self.listener

    def answer(self) -> None:
        """Answer one pending call, if there is one."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:
            return  # the caller died between poll and here
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        call = Call(thread, tuple(arguments))
        with contextlib.suppress(OSError):  # the caller may be gone by now
            if number == _SETSID:
                self._begin_session(identity)
            elif number in _OPENS:
                self._open_nameless(identity, call, _OPENS[number])
            else:
                code = self._perform(identity, number, call)
                fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(identity, 0, -code, 0))

    def _begin_session(self, identity: int) -> None:
        """Let a session begin if there are few.

        Where the kernel shares processors out by session (sched(7), autogroups), many of them would leave
        next to nothing to everybody else. Who is left is counted anew, in at most a quarter of the time.
        """
        self._sessions += 1
        begun = time.monotonic()
        if self._sessions > MOST_SESSIONS and begun > self._count_again:
            self._sessions = tree.sessions(os.getpid()) + 1
            self._count_again = begun + _COUNTING_SHARE * (time.monotonic() - begun)
        code, flags = (0, _CONTINUE) if self._sessions <= MOST_SESSIONS else (-errno.EPERM, 0)
        fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(identity, 0, code, flags))

    def _open_nameless(self, identity: int, call: Call, path_at: int) -> None:
        """Serve ``open("/tmp", O_TMPFILE)``, which the C library hard-codes, from the private directory.

        Any other goes on to the kernel; that is safe here, because Landlock judges the call that goes on, not
        the path that was read.
        """
        flags, mode = call.arguments[path_at + 1 : path_at + 3]
        if _string(call.thread, call.arguments[path_at]) not in _SHARED_TEMPORARY:
            fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(identity, 0, 0, _CONTINUE))
            return
        kept = flags & (os.O_ACCMODE | os.O_EXCL | os.O_APPEND)
        descriptor = os.open(self._temporary, kept | os.O_TMPFILE | os.O_CLOEXEC, mode & 0o700)
        try:
            handed = (identity, _ADD_FD_AND_ANSWER, descriptor, 0, flags & os.O_CLOEXEC)
            fcntl.ioctl(self.listener, _ADD_FD, _DESCRIPTOR.pack(*handed))
        finally:
            os.close(descriptor)

    def _perform(self, identity: int, number: int, call: Call) -> int:
        operation = _OPERATIONS.get(number)
        if operation is None:
            return errno.ENOSYS
        try:
            with contextlib.ExitStack() as stack:
                target = operation.pin(call, stack)
                change = operation.change(call)
                # what was read belongs to the caller only if it is still there
                fcntl.ioctl(self.listener, _ID_VALID, struct.pack("=Q", identity))
                self._require_inside(target)
                change(target)
        except OSError as error:
            return error.errno or errno.EPERM
        return 0

    def _require_inside(self, target: int) -> None:
        path = os.readlink(proc.path("self", "fd", target))
        if not any(is_beneath(path, root) for root in self._roots):
            raise PermissionError(errno.EPERM, "outside the workspace")


@dataclass(frozen=True, slots=True)
class _Operation:
    """Where a call keeps its directory, path and flags, and what it changes."""

    change: Callable[[Call], Callable[[int], None]]
    directory: int | None = None
    path: int = _NO_PATH
    flags: int | None = None
    follow: bool = True
    descriptor: int | None = None

    def pin(self, call: Call, stack: contextlib.ExitStack) -> int:
        """Return an ``O_PATH`` descriptor of the file that the call means."""
        if self.path == _NO_PATH or call.arguments[self.path] == 0:
            return _caller_descriptor(call, self.descriptor or 0, stack)
        name = _string(call.thread, call.arguments[self.path])
        flags = call.arguments[self.flags] if self.flags is not None else 0
        if not name and flags & syscalls.AT_EMPTY_PATH:
            return _caller_descriptor(call, self.directory or 0, stack)
        nofollow = not self.follow or flags & _AT_SYMLINK_NOFOLLOW
        start = _directory(call, None if self.directory is None else call.arguments[self.directory], stack)
        how = os.O_PATH | (os.O_NOFOLLOW if nofollow else 0)
        return _owned(_open_from(start, name, how, call.thread), stack)


def _open_from(start: int, name: bytes, flags: int, thread: int) -> int:
    try:
        return syscalls.openat2(start, name, flags, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    # /proc/self/fd/N means the caller's descriptor, not ours
    prefix = b"/proc/self/fd/"
    if name.startswith(prefix) and name[len(prefix) :].isdigit():
        return os.open(
            proc.path(thread, "fd", int(name[len(prefix) :])), flags & ~os.O_NOFOLLOW | os.O_CLOEXEC
        )
    raise PermissionError(errno.EPERM, "magic link")


def _owned(descriptor: int, stack: contextlib.ExitStack) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _caller_descriptor(call: Call, argument: int, stack: contextlib.ExitStack) -> int:
    number = _signed(call.arguments[argument])
    link = "cwd" if number == syscalls.AT_FDCWD else f"fd/{number}"
    return _owned(os.open(proc.path(call.thread, link), os.O_PATH | os.O_CLOEXEC), stack)


def _directory(call: Call, number: int | None, stack: contextlib.ExitStack) -> int:
    signed = syscalls.AT_FDCWD if number is None else _signed(number)
    link = "cwd" if signed == syscalls.AT_FDCWD else f"fd/{signed}"
    return _owned(os.open(proc.path(call.thread, link), os.O_PATH | os.O_CLOEXEC), stack)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _memory(thread: int, address: int, size: int) -> bytes:
    with open(proc.path(thread, "mem"), "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _string(thread: int, address: int) -> bytes:
    """Read a C string, page by page: the next page need not be mapped."""
    data = b""
    while len(data) < _PATH_MAX:
        part = _memory(thread, address + len(data), 4096 - (address + len(data)) % 4096)
        text, end, _ = part.partition(b"\0")
        data += text
        if end:
            return data
    raise OSError(errno.ENAMETOOLONG, "path too long")


def _chmod(mode_at: int) -> Callable[[Call], Callable[[int], None]]:
    def prepare(call: Call) -> Callable[[int], None]:
        mode = call.arguments[mode_at] & 0o7777

        def change(target: int) -> None:
            if mode & _SET_ID:
                raise PermissionError(errno.EPERM, "set-id bits")
            if stat.S_ISLNK(os.fstat(target).st_mode):
                raise OSError(errno.EOPNOTSUPP, "mode of a link")
            os.chmod(proc.path("self", "fd", target), mode)

        return change

    return prepare


def _chown(owner_at: int) -> Callable[[Call], Callable[[int], None]]:
    def prepare(call: Call) -> Callable[[int], None]:
        owner, group = (value & 0xFFFFFFFF for value in call.arguments[owner_at : owner_at + 2])

        def change(target: int) -> None:
            values = (-1 if value == _UNCHANGED else value for value in (owner, group))
            syscalls.call(syscalls.FCHOWNAT, target, b"", *values, syscalls.AT_EMPTY_PATH)

        return change

    return prepare


def _utime(times_at: int, form: str) -> Callable[[Call], Callable[[int], None]]:
    """``form``: the C layout of the two times; "qq" seconds, "4q" with a fraction."""

    def prepare(call: Call) -> Callable[[int], None]:
        address = call.arguments[times_at]
        times = _NOW if address == 0 else _times(_memory(call.thread, address, struct.calcsize(form)), form)

        def change(target: int) -> None:
            if stat.S_ISLNK(os.fstat(target).st_mode):
                _touch_link(target, times)
                return
            path = os.fsencode(proc.path("self", "fd", target))
            syscalls.call(syscalls.UTIMENSAT, syscalls.AT_FDCWD, path, times, 0)

        return change

    return prepare


_NOW: Final = struct.pack("=4q", 0, _UTIME_NOW, 0, _UTIME_NOW)


def _times(raw: bytes, form: str) -> bytes:
    """Return ``struct timespec[2]`` from utimbuf, timeval[2] or timespec[2]."""
    values = struct.unpack(form, raw)
    if form == "=2q":
        return struct.pack("=4q", values[0], 0, values[1], 0)
    if form == _TIMEVAL:
        seconds, fraction, seconds2, fraction2 = values
        return struct.pack("=4q", seconds, fraction * 1000, seconds2, fraction2 * 1000)
    return raw


_UTIMBUF: Final = "=2q"
_TIMEVAL: Final = "<4q"  # microseconds; told from _TIMESPEC by its spelling
_TIMESPEC: Final = "=4q"


def _touch_link(target: int, times: bytes) -> None:
    """Set a link's own times: by name below its directory, when it is still the same link."""
    path = os.readlink(proc.path("self", "fd", target))
    parent, name = os.path.split(path)
    directory = syscalls.openat2(
        syscalls.AT_FDCWD, parent, os.O_PATH | os.O_DIRECTORY, resolve=syscalls.RESOLVE_NO_SYMLINKS
    )
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (found.st_dev, found.st_ino) != _identity(target):
            raise FileNotFoundError(errno.ENOENT, "moved")
        encoded = os.fsencode(name)
        syscalls.call(syscalls.UTIMENSAT, directory, encoded, times, _AT_SYMLINK_NOFOLLOW)
    finally:
        os.close(directory)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


_BY_NAME: Final = {
    "chmod": _Operation(_chmod(1), path=0),
    "fchmod": _Operation(_chmod(1), descriptor=0),
    "fchmodat": _Operation(_chmod(2), directory=0, path=1),
    "fchmodat2": _Operation(_chmod(2), directory=0, path=1, flags=3),
    "chown": _Operation(_chown(1), path=0),
    "lchown": _Operation(_chown(1), path=0, follow=False),
    "fchown": _Operation(_chown(1), descriptor=0),
    "fchownat": _Operation(_chown(2), directory=0, path=1, flags=4),
    "utime": _Operation(_utime(1, _UTIMBUF), path=0),
    "utimes": _Operation(_utime(1, _TIMEVAL), path=0),
    "futimesat": _Operation(_utime(2, _TIMEVAL), directory=0, path=1, descriptor=0),
    "utimensat": _Operation(_utime(2, _TIMESPEC), directory=0, path=1, flags=3, descriptor=0),
}
# where open calls keep the path; flags and mode follow it
_SETSID: Final = syscall_table.number("setsid")
_OPENS: Final = {
    number: path_at
    for name, path_at in (("open", 0), ("openat", 1))
    if (number := syscall_table.number(name)) is not None
}
_OPERATIONS: Final = {
    number: operation
    for name, operation in _BY_NAME.items()
    if (number := syscall_table.number(name)) is not None
}
