"""System calls that the kernel has handed over (seccomp_unotify(2)): whose one is, what its arguments are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from .. import syscalls

_ID_VALID: Final = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_PATH_MAX: Final = 4096
_STREAMS: Final = {b"/dev/stdin": b"0", b"/dev/stdout": b"1", b"/dev/stderr": b"2"}
_DESCRIPTORS: Final = (b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/")


@dataclass(frozen=True, slots=True)
class Call:
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
