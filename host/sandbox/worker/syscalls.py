"""System calls: their numbers by name, those that Python does not wrap, and /proc. Errors are ``OSError``.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64) of the kernel.
"""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from typing import AnyStr, Final, TypeVar

Value = TypeVar("Value")
MACHINE: Final = platform.machine()
# AUDIT_ARCH_*, include/uapi/linux/audit.h
ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST_KNOWN: Final = 469
"""file_setattr, Linux 6.17; later calls answer ENOSYS until somebody has judged them."""

# name, number on x86_64, number on aarch64; "-": that architecture does not have the call
_TABLE: Final = """
_sysctl 156 -                     accept 43 202                     accept4 288 242
acct 163 89                       add_key 248 217                   adjtimex 159 171
bind 49 200                       bpf 321 280                       capset 126 91
chmod 90 -                        chown 92 -                        chroot 161 51
clock_adjtime 305 266             clock_settime 227 112             clone 56 220
clone3 435 435                    close_range 436 436               connect 42 203
creat 85 -                        create_module 174 -               delete_module 176 106
execve 59 221                     execveat 322 281                  fallocate 285 47
fanotify_init 300 262             fanotify_mark 301 263             fchmod 91 52
fchmodat 268 53                   fchmodat2 452 452                 fchown 93 55
fchownat 260 54                   fcntl 72 25                       fgetxattr 193 10
file_getattr 468 468              file_setattr 469 469              finit_module 313 273
flistxattr 196 13                 fork 57 -                         fremovexattr 199 16
fsconfig 431 431                  fsetxattr 190 7                   fsmount 432 432
fsopen 430 430                    fspick 433 433                    futimesat 261 -
get_kernel_syms 177 -             getxattr 191 8                    getxattrat 464 464
init_module 175 105               io_uring_enter 426 426            io_uring_register 427 427
io_uring_setup 425 425            ioctl 16 29                       ioperm 173 -
iopl 172 -                        ioprio_set 251 30                 kcmp 312 272
kexec_file_load 320 294           kexec_load 246 104                keyctl 250 219
kill 62 129                       landlock_add_rule 445 445         landlock_create_ruleset 444 444
landlock_restrict_self 446 446    lchown 94 -                       lgetxattr 192 9
link 86 -                         linkat 265 37                     listen 50 201
listmount 458 458                 listxattr 194 11                  listxattrat 465 465
llistxattr 195 12                 lookup_dcookie 212 18             lremovexattr 198 15
lsetxattr 189 6                   memfd_create 319 279              memfd_secret 447 447
migrate_pages 256 238             mkdir 83 -                        mkdirat 258 34
mknod 133 -                       mknodat 259 33                    modify_ldt 154 -
mount 165 40                      mount_setattr 442 442             move_mount 429 429
move_pages 279 239                mq_getsetattr 245 185             mq_notify 244 184
mq_open 240 180                   mq_timedreceive 243 183           mq_timedsend 242 182
mq_unlink 241 181                 msgctl 71 187                     msgget 68 186
msgrcv 70 188                     msgsnd 69 189                     name_to_handle_at 303 264
nfsservctl 180 42                 open 2 -                          open_by_handle_at 304 265
open_tree 428 428                 open_tree_attr 467 467            openat 257 56
openat2 437 437                   perf_event_open 298 241           personality 135 92
pidfd_getfd 438 438               pidfd_open 434 434                pivot_root 155 41
prlimit64 302 261                 process_madvise 440 440           process_mrelease 448 448
process_vm_readv 310 270          process_vm_writev 311 271         ptrace 101 117
query_module 178 -                quotactl 179 60                   quotactl_fd 443 443
reboot 169 142                    removexattr 197 14                removexattrat 466 466
rename 82 -                       renameat 264 38                   renameat2 316 276
request_key 249 218               rmdir 84 -                        rt_sigqueueinfo 129 138
rt_tgsigqueueinfo 297 240         sched_setaffinity 203 122         sched_setattr 314 274
sched_setparam 142 118            sched_setscheduler 144 119        seccomp 317 277
semctl 66 191                     semget 64 190                     semop 65 193
semtimedop 220 192                setdomainname 171 162             sethostname 170 161
setns 308 268                     setpriority 141 140               setsid 112 157
setsockopt 54 208                 settimeofday 164 170              setxattr 188 5
setxattrat 463 463                shmat 30 196                      shmctl 31 195
shmdt 67 197                      shmget 29 194                     socket 41 198
socketpair 53 199                 statmount 457 457                 swapoff 168 225
swapon 167 224                    symlink 88 -                      symlinkat 266 36
sysfs 139 -                       syslog 103 116                    tgkill 234 131
tkill 200 130                     truncate 76 45                    umount2 166 39
unlink 87 -                       unlinkat 263 35                   unshare 272 97
uselib 134 -                      userfaultfd 323 282               ustat 136 -
utime 132 -                       utimensat 280 88                  utimes 235 -
vfork 58 -                        vhangup 153 58                    vmsplice 278 75
"""
_CELLS: Final = _TABLE.split()
_NUMBERS: Final = dict(zip(_CELLS[::3], _CELLS[1 if MACHINE == "x86_64" else 2 :: 3], strict=True))


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
