"""Calls that a command's reaper judges or makes for it (seccomp_unotify(2)): chmod, chown, utime, nameless
temporary files, and new sessions.

Landlock does not cover the first three. Where commands share a uid with the host, or own something they may
only read, the kernel hands such calls to the reaper. It never lets one continue (the caller could change
the path meanwhile): it pins the file with an ``O_PATH`` descriptor, looks where that is, and makes the
change itself through the descriptor, with the same uid and no privileges.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from .. import syscalls
from ..confine.grants import is_beneath
from ..limits import tree
from .name_calls import OPENS, Call, NameCalls, caller_descriptor, memory, open_from, opening, owned, string

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_ADD_FD: Final = 0x40182103  # SECCOMP_IOCTL_NOTIF_ADDFD
_ADD_FD_AND_ANSWER: Final = 1 << 1  # SECCOMP_ADDFD_FLAG_SEND
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
_ANSWER: Final = struct.Struct("=QqiI")
_DESCRIPTOR: Final = struct.Struct("=QIIII")
_SHARED_TEMPORARY: Final = (b"/tmp", b"/tmp/", b"/var/tmp", b"/var/tmp/")
_UNCHANGED: Final = 0xFFFFFFFF
_UTIME_NOW: Final = (1 << 30) - 1  # utimensat(2)
_SET_ID: Final = 0o6000
# arguments of which a call is made
_NO_PATH: Final = -1
MOST_SESSIONS: Final = 16
SESSION_PATIENCE_S: Final = 1.0
_COUNTING_SHARE: Final = 4
_FAULTS: Final = (OSError, ValueError, OverflowError)  # of calls with arguments that no program means


class Gate:
    """Answers the notifications of one command: metadata calls, nameless files in /tmp, new sessions."""

    def __init__(self, listener: int, roots: list[str], temporary: str, names: NameCalls | None) -> None:
        self.listener = listener
        self._names = names
        self._sessions = 0
        self._count_again = 0.0
        self._waiting: list[tuple[float, Call]] = []
        self._unread: list[tuple[Call, int, int, int]] = []
        self._open_again = 0.0
        self._temporary = temporary
        self._roots = [os.path.realpath(root) for root in roots]

    def answer(self) -> None:
        """Answer one pending call, if there is one."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError:
            return  # the caller died between poll and here
        identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        call = Call(self.listener, identity, thread, tuple(arguments))
        with contextlib.suppress(OSError):  # the caller may be gone by now
            if number == _SETSID:
                self._begin_session(call)
            elif number in OPENS:
                self._open(call, *opening(number, call))
            else:
                self._tell(call, self._perform(number, call))

    def _tell(self, call: Call, code: int, flags: int = 0) -> None:
        fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(call.identity, 0, -code, flags))

    def _hand_over(self, call: Call, descriptor: int, flags: int) -> None:
        handed = (call.identity, _ADD_FD_AND_ANSWER, descriptor, 0, flags & os.O_CLOEXEC)
        fcntl.ioctl(self.listener, _ADD_FD, _DESCRIPTOR.pack(*handed))

    def _begin_session(self, call: Call, deadline: float | None = None) -> None:
        """Let a session begin if there are few; else its caller waits for ``release``.

        Where the kernel shares processors out by session (sched(7), autogroups), many of them would leave
        next to nothing to everybody else.
        """
        self._sessions += 1
        if self._sessions <= MOST_SESSIONS:
            self._tell(call, 0, _CONTINUE)
        else:
            self._waiting.append((deadline or time.monotonic() + SESSION_PATIENCE_S, call))

    def release(self) -> None:
        """Let those begin their session who wait, as far as others have ended; in vain they wait a second.

        Who is left is counted in at most a quarter of the time.
        """
        self._open_pipes()
        begun = time.monotonic()
        if not self._waiting or begun < self._count_again:
            return
        self._sessions = tree.sessions(os.getpid())
        self._count_again = begun + _COUNTING_SHARE * (time.monotonic() - begun)
        waiting, self._waiting = self._waiting, []
        for deadline, call in waiting:
            with contextlib.suppress(OSError):  # the caller may be gone by now
                if begun < deadline or self._sessions < MOST_SESSIONS:
                    self._begin_session(call, deadline)
                else:
                    self._tell(call, errno.EPERM)

    def _open_pipes(self) -> None:
        """Open named pipes for those who wait for a reader, if one has come; takes a quarter of the time."""
        begun = time.monotonic()
        if begun < self._open_again:
            return
        unread, self._unread = self._unread, []
        for waiting in unread:
            with contextlib.suppress(OSError):  # the caller may be gone by now
                self._open(*waiting)
        self._open_again = begun + _COUNTING_SHARE * (time.monotonic() - begun)

    def _open(self, call: Call, path_at: int, flags: int, mode: int) -> None:
        """Serve ``open("/tmp", O_TMPFILE)``, which the C library hard-codes, from the private directory, and
        make what ``NameCalls`` makes.

        Any other goes on to the kernel; that is safe here, because Landlock judges the call that goes on, not
        the path that was read, and the flags can't change any more.
        """
        with contextlib.ExitStack() as stack:
            try:
                if flags & os.O_TMPFILE == os.O_TMPFILE:
                    path = string(call.thread, call.arguments[path_at])
                    opened = self._nameless(flags, mode, stack) if path in _SHARED_TEMPORARY else None
                else:
                    opened = self._names.open(call, path_at, flags, mode, stack) if self._names else None
            except BlockingIOError:
                self._unread.append((call, path_at, flags, mode))
                return
            except _FAULTS as error:
                self._tell(call, _code(error))
                return
            if opened is None:
                self._tell(call, 0, _CONTINUE)
            else:
                self._hand_over(call, opened, flags)

    def _nameless(self, flags: int, mode: int, stack: contextlib.ExitStack) -> int:
        kept = flags & (os.O_ACCMODE | os.O_EXCL | os.O_APPEND)
        return owned(os.open(self._temporary, kept | os.O_TMPFILE | os.O_CLOEXEC, mode & 0o700), stack)

    def _perform(self, number: int, call: Call) -> int:
        operation = _OPERATIONS.get(number)
        try:
            if operation is None:
                return errno.ENOSYS if self._names is None else self._names.perform(number, call)
            with contextlib.ExitStack() as stack:
                target = operation.pin(call, stack)
                call.require_waiting()
                self._require_inside(target)
                if self._names is not None:
                    mode = None if operation.mode is None else call.arguments[operation.mode]
                    self._names.require_changeable(target, mode)
                operation.change(call, target)
        except _FAULTS as error:
            return _code(error)
        return 0

    def _require_inside(self, target: int) -> None:
        path = os.readlink(syscalls.proc_path("self", "fd", target))
        if not any(is_beneath(path, root) for root in self._roots):
            raise PermissionError(errno.EPERM, "outside the workspace")


def _code(error: Exception) -> int:
    return (isinstance(error, OSError) and error.errno) or errno.EINVAL


class _Operation(NamedTuple):
    """Where a call keeps its directory, path, flags and mode, and what it changes."""

    change: Callable[[Call, int], None]
    directory: int | None = None
    path: int = _NO_PATH
    flags: int | None = None
    follow: bool = True
    descriptor: int | None = None
    mode: int | None = None

    def pin(self, call: Call, stack: contextlib.ExitStack) -> int:
        """Return an ``O_PATH`` descriptor of the file that the call means."""
        if self.path == _NO_PATH or call.arguments[self.path] == 0:
            return caller_descriptor(call, call.arguments[self.descriptor or 0], stack)
        name = string(call.thread, call.arguments[self.path])
        flags = call.arguments[self.flags] if self.flags is not None else 0
        if not name and flags & syscalls.AT_EMPTY_PATH:
            return caller_descriptor(call, call.arguments[self.directory or 0], stack)
        nofollow = not self.follow or flags & syscalls.AT_SYMLINK_NOFOLLOW
        directory = syscalls.AT_FDCWD if self.directory is None else call.arguments[self.directory]
        start = caller_descriptor(call, directory, stack)
        how = os.O_PATH | (os.O_NOFOLLOW if nofollow else 0)
        return owned(open_from(start, name, how, call.thread), stack)


def _chmod(mode_at: int) -> Callable[[Call, int], None]:
    def change(call: Call, target: int) -> None:
        mode = call.arguments[mode_at] & 0o7777
        if mode & _SET_ID:
            raise PermissionError(errno.EPERM, "set-id bits")
        if stat.S_ISLNK(os.fstat(target).st_mode):
            raise OSError(errno.EOPNOTSUPP, "mode of a link")
        os.chmod(syscalls.proc_path("self", "fd", target), mode)

    return change


def _chown(owner_at: int) -> Callable[[Call, int], None]:
    def change(call: Call, target: int) -> None:
        wanted = (value & 0xFFFFFFFF for value in call.arguments[owner_at : owner_at + 2])
        values = (-1 if value == _UNCHANGED else value for value in wanted)
        syscalls.call("fchownat", target, b"", *values, syscalls.AT_EMPTY_PATH)

    return change


def _utime(times_at: int, form: str) -> Callable[[Call, int], None]:
    """``form``: the C layout of the two times; "qq" seconds, "4q" with a fraction."""

    def change(call: Call, target: int) -> None:
        address = call.arguments[times_at]
        times = _NOW if address == 0 else _times(memory(call.thread, address, struct.calcsize(form)), form)
        call.require_waiting()
        if stat.S_ISLNK(os.fstat(target).st_mode):
            _touch_link(target, times)
            return
        path = os.fsencode(syscalls.proc_path("self", "fd", target))
        syscalls.call("utimensat", syscalls.AT_FDCWD, path, times, 0)

    return change


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
    path = os.readlink(syscalls.proc_path("self", "fd", target))
    parent, name = os.path.split(path)
    flags = os.O_PATH | os.O_DIRECTORY
    opened = syscalls.openat2(syscalls.AT_FDCWD, parent, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    with syscalls.held(opened) as directory:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not os.path.samestat(found, os.fstat(target)):
            raise FileNotFoundError(errno.ENOENT, "moved")
        encoded = os.fsencode(name)
        syscalls.call("utimensat", directory, encoded, times, syscalls.AT_SYMLINK_NOFOLLOW)


_OPERATIONS: Final = syscalls.by_number(
    {
        "chmod": _Operation(_chmod(1), path=0, mode=1),
        "fchmod": _Operation(_chmod(1), descriptor=0, mode=1),
        "fchmodat": _Operation(_chmod(2), directory=0, path=1, mode=2),
        "fchmodat2": _Operation(_chmod(2), directory=0, path=1, flags=3, mode=2),
        "chown": _Operation(_chown(1), path=0),
        "lchown": _Operation(_chown(1), path=0, follow=False),
        "fchown": _Operation(_chown(1), descriptor=0),
        "fchownat": _Operation(_chown(2), directory=0, path=1, flags=4),
        "utime": _Operation(_utime(1, _UTIMBUF), path=0),
        "utimes": _Operation(_utime(1, _TIMEVAL), path=0),
        "futimesat": _Operation(_utime(2, _TIMEVAL), directory=0, path=1, descriptor=0),
        "utimensat": _Operation(_utime(2, _TIMESPEC), directory=0, path=1, flags=3, descriptor=0),
    }
)
_SETSID: Final = syscalls.number("setsid")
