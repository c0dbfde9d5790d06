"""System calls: their numbers by name, those that Python does not wrap, and /proc. Errors are ``OSError``.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64) of the kernel.
"""

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from typing import AnyStr, Final, TypeVar

Value = TypeVar("Value")
MACHINE: Final = os.uname().machine
# AUDIT_ARCH_*, include/uapi/linux/audit.h
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST_KNOWN: Final = 469
"""file_setattr, Linux 6.17; later calls answer ENOSYS until somebody has judged them."""

with open(f"{os.path.dirname(__file__)}/system_calls.tbl") as _file:
    _TABLE: Final = [line.split() for line in _file]
# name, number on x86_64, number on aarch64; "-": that architecture does not have the call
_NUMBERS: Final = {row[0]: row[1 if MACHINE == "x86_64" else 2] for row in _TABLE}


def number(name: str) -> int | None:
    """Return the number of a call on this machine, None if it has no such call. ``KeyError``: not in the
    table.
    """
    found = _NUMBERS[name]
    return None if found == "-" else int(found)


def by_number(named: Mapping[str, Value]) -> dict[int, Value]:
    """Return a table by the numbers of those calls that this machine has."""
    return {found: value for name, value in named.items() if (found := number(name)) is not None}


# openat2(2)
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
# renameat2(2)
RENAME_NOREPLACE: Final = 1
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_RECURSIVE: Final = 0x8000
# kcmp(2)
_KCMP_VM: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int
_held: Final = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock during the call
_held.syscall.restype = ctypes.c_long


def call(name: str | int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make a system call; integers go as C longs. Raises ``OSError`` with the kernel's errno."""
    code = number(name) if isinstance(name, str) else name
    if code is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(code), *converted))


def prctl(option: int, *arguments: int) -> int:
    """Change a setting of this process (``man 2 prctl``); the arguments are integers. Raises ``OSError``."""
    values = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(ctypes.c_int(option), *values))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def openat2(directory: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` below ``directory`` under resolution rules; the descriptor is close-on-exec."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        try:
            return call("openat2", directory, os.fsencode(path), how, len(how))
        except InterruptedError:
            continue
        except BlockingIOError:  # EAGAIN: a rename raced the walk below the root, openat2(2)
            continue


def rename_new(name: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """Move what has a name in a directory to where there must be nothing; raises FileExistsError.

    In one step by renameat2(2). NFS, FUSE and others know no such flag: there a second name of a file is as
    good, which link(2) gives only where there is none. A directory takes no second one.
    """
    try:
        names = os.fsencode(name), os.fsencode(target)
        call("renameat2", src_dir_fd, names[0], dst_dir_fd, names[1], RENAME_NOREPLACE)
        return
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    try:
        os.link(name, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.rename(name, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    else:
        os.unlink(name, dir_fd=src_dir_fd)


def link_target(directory: int, name: AnyStr) -> AnyStr | None:
    """Return where a name in a directory leads to, None if it is no link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


@contextlib.contextmanager
def held(descriptor: int) -> Iterator[int]:
    """Hold a descriptor open to the end of a block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def close_all_but(*kept: int) -> None:
    """Close every descriptor above standard error except ``kept`` (close_range(2))."""
    first = 3
    for descriptor in sorted(kept):
        if descriptor > first:
            call("close_range", first, descriptor - 1, 0)
        first = max(first, descriptor + 1)
    call("close_range", first, 0x7FFFFFFF, 0)


def clone(flags: int) -> int:
    """Make a child with a copy of our memory; both sides return, as from fork (clone(2))."""
    code = number("clone") or 0
    return _checked(_held.syscall(*(ctypes.c_long(value) for value in (code, flags, 0, 0, 0, 0))))


def share_memory(one: int, other: int) -> bool:
    """Whether two processes, or threads, run in the same memory; False also where it can't be known."""
    try:
        return call("kcmp", one, other, _KCMP_VM, 0, 0) == 0
    except OSError:  # one is gone, is not ours to look at, or the machine refuses the call
        return False


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    """Mount a file system, or change how one is propagated."""
    words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
    call("mount", *words, flags, None if options is None else options.encode())


def open_tree(directory: int, path: str, flags: int) -> int:
    """Return a descriptor of a mount, or of a copy of one that is mounted nowhere yet."""
    return call("open_tree", directory, os.fsencode(path), flags | os.O_CLOEXEC)


def move_mount(mount: int, target: str, flags: int) -> None:
    """Mount what ``open_tree`` gave at ``target``."""
    call("move_mount", mount, b"", AT_FDCWD, os.fsencode(target), flags)


def mount_setattr(directory: int, path: str, flags: int, attributes: int) -> None:
    """Set attributes (read-only, no devices ...) of a mount."""
    how = struct.pack("4Q", attributes, 0, 0, 0)
    call("mount_setattr", directory, os.fsencode(path), flags, how, len(how))


_proc = "/proc"
"""For who has left it behind, it is the working directory."""


def proc_path(*names: object) -> str:
    """Return the path of something in /proc as this process sees it."""
    return "/".join((_proc, *map(str, names)))


def write_proc(text: str, *names: object) -> None:
    """Write into something in /proc. Raises ``OSError``."""
    with held(os.open(proc_path(*names), os.O_WRONLY | os.O_CLOEXEC)) as file:
        os.write(file, text.encode())


def take_proc_along() -> None:
    """Keep this /proc for good, whatever becomes the root: it turns into the working directory."""
    global _proc
    os.chdir("/proc")
    _proc = "."
