"""The system call filter (seccomp(2)): a table of rules, compiled to BPF, installed once and for good.

The table refuses what no tool needs and what reaches across processes, namespaces or the kernel's own state.
Landlock decides about files; this decides about everything that Landlock does not see.
"""

import ctypes
import errno
import struct
from enum import IntEnum
from functools import cache
from typing import Final, NamedTuple

from .. import syscalls
from .bpf import NOTIFY, Rule, Test, compile_filter, refuse

# seccomp(2)
SET_MODE_FILTER: Final = 1
FLAG_NEW_LISTENER: Final = 1 << 3
FLAG_WAIT_KILLABLE: Final = 1 << 5  # a call that is being made isn't begun again after a signal


class Metadata(IntEnum):
    """Who decides about chmod, chown and utime, which Landlock does not cover."""

    PERMISSIONS = 0  # a uid of its own: the kernel's ordinary rules suffice
    PATHS = 1  # calls that name a path go to the reaper
    ALL = 2  # calls on descriptors too: something readable belongs to our own uid


class Sockets(IntEnum):
    """Which sockets may be made."""

    PAIRS = 0  # unix stream pairs, nothing that has an address
    LOOPBACK = 1  # TCP too, in a network namespace with nobody else in it
    NETWORK = 2  # TCP and UDP


class Kind(NamedTuple):
    """What the filter of a command depends on. ``truncation`` by path: whether somebody judges it. ``first``:
    whether process 1 is the launcher, and no command's to signal. ``names``: whether somebody makes names and
    opens files to be written for it. ``counted``: whether somebody counts what it writes as it does.
    """

    sockets: Sockets
    metadata: Metadata
    truncation: bool
    first: bool = False
    names: bool = False
    counted: bool = False


def _is(argument: int, *values: int, mask: int = 0xFFFFFFFF) -> Test:
    return Test(argument, mask, values)


def _is_not(argument: int, *values: int, mask: int = 0xFFFFFFFF) -> Test:
    return Test(argument, mask, values, negated=True)


def _any_bit(argument: int, mask: int, *, high: bool = False) -> Test:
    return Test(argument, mask, high=high)


_CLONE_NEW: Final = 0x7E020000 | 0x80  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} and NEWTIME, clone(2)
_CLONE_FILES, _CLONE_THREAD = 0x400, 0x10000
_CLOSE_RANGE_UNSHARE: Final = 2
_SET_ID_BITS: Final = 0o6000
_O_CREAT: Final = 0o100
_O_WRITES: Final = 0o3 | _O_CREAT | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
_O_TMPFILE_BIT: Final = 0o20000000
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_IPPROTO_TCP, _IPPROTO_UDP = 6, 17
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 2, 5, 0xF
_SOL_SOCKET, _SO_SNDBUF, _SO_RCVBUF = 1, 7, 8
_PRIO_PROCESS, _IOPRIO_WHO_PROCESS = 0, 1
_PERSONALITY_QUERY: Final = 0xFFFFFFFF
_F_SETLEASE, _F_NOTIFY, _F_SETDELEG = 1024, 1026, 1040  # include/uapi/linux/fcntl.h
# ioctl_tty(2), ioctl_fs(2): put input into a terminal, use the console, set inode attributes
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR = 0x40086602, 0x40046602, 0x401C5820

# include/uapi/linux/falloc.h: FS_IOC_RESVSP, FS_IOC_RESVSP64, FS_IOC_ZERO_RANGE
_ALLOCATING: Final = (0x40305828, 0x4030582A, 0x40305839)

OTHER_PROCESSES: Final = (
    "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_getfd kcmp"
    " move_pages migrate_pages"
)
KERNEL_SURFACE: Final = (
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key"
    " request_key init_module finit_module delete_module create_module query_module get_kernel_syms"
    " kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd syslog iopl ioperm"
    " modify_ldt lookup_dcookie nfsservctl uselib _sysctl sysfs ustat vhangup fanotify_init"
    " fanotify_mark"
)
NAMESPACES: Final = (
    "unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree"
    " open_tree_attr mount_setattr statmount listmount open_by_handle_at name_to_handle_at"
)
HOST_STATE: Final = (
    "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname mq_open mq_unlink"
    " mq_timedsend mq_timedreceive mq_notify mq_getsetattr shmget shmat shmctl shmdt semget semop"
    " semtimedop semctl msgget msgsnd msgrcv msgctl"
)
EXTENDED_ATTRIBUTES: Final = (
    "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat removexattrat file_setattr"
    " getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat file_getattr"
)
# pages that stay when nobody maps them: those of nameless files, and a huge page for a part of it in a pipe
UNACCOUNTED_MEMORY: Final = "memfd_create memfd_secret vmsplice"
METADATA_BY_PATH: Final = "chmod chown lchown fchmodat fchmodat2 fchownat utime utimes futimesat"
SESSIONS: Final = "setsid"
NAMES: Final = (
    "creat mkdir mkdirat mknod mknodat rmdir unlink unlinkat symlink symlinkat link linkat rename renameat"
    " renameat2 truncate"
)
NEW_PROCESSES: Final = "execve execveat fork vfork clone clone3"


def _base_rules() -> list[Rule]:
    return [
        Rule(f"{OTHER_PROCESSES} {KERNEL_SURFACE} {NAMESPACES} {HOST_STATE}", refuse()),
        # ENOSYS, not EPERM: the C library then falls back to clone, whose flags a filter can read
        Rule("clone3", refuse(errno.ENOSYS)),
        Rule("clone", refuse(), _any_bit(0, _CLONE_NEW)),
        # a thread's own descriptors would be seen by nobody who counts its process's
        Rule("clone", refuse(), _is(0, _CLONE_THREAD, mask=_CLONE_THREAD | _CLONE_FILES)),
        Rule("close_range", refuse(errno.EINVAL), _any_bit(2, _CLOSE_RANGE_UNSHARE)),
        # reading them needs no open file, so Landlock would not see it; "not supported" is what cp, ls, tar
        # and install take without complaint
        Rule(EXTENDED_ATTRIBUTES, refuse(errno.EOPNOTSUPP)),
        Rule(UNACCOUNTED_MEMORY, refuse(errno.ENOSYS)),
        *_argument_rules(),
        *_set_id_rules(),
    ]


def _argument_rules() -> list[Rule]:
    """Calls that are fine on oneself (pid 0) and not on others, and the odd dangerous argument."""
    return [
        Rule(
            "sched_setaffinity sched_setscheduler sched_setparam sched_setattr prlimit64",
            refuse(),
            _is_not(0, 0),
        ),
        Rule("setpriority", refuse(), _is_not(0, _PRIO_PROCESS)),
        Rule("setpriority", refuse(), _is_not(1, 0)),
        Rule("ioprio_set", refuse(), _is_not(0, _IOPRIO_WHO_PROCESS)),
        Rule("ioprio_set", refuse(), _is_not(1, 0)),
        Rule("personality", refuse(), _is_not(0, 0, _PERSONALITY_QUERY)),
        # Succeeds and changes nothing, as for who asks for more than there may be (socket(7)): what a socket
        # may hold is what those who count take it for.
        Rule("setsockopt", refuse(0), _is(1, _SOL_SOCKET), _is(2, _SO_SNDBUF, _SO_RCVBUF)),
        # a lease makes whoever opens the file wait for its holder: the host, too
        Rule("fcntl", refuse(), _is(1, _F_SETLEASE, _F_NOTIFY, _F_SETDELEG)),
        Rule("ioctl", refuse(), _is(1, _TIOCSTI, _TIOCLINUX)),
        Rule(
            "ioctl",
            refuse(errno.EOPNOTSUPP),
            _is(1, _FS_IOC_SETFLAGS, _FS_IOC32_SETFLAGS, _FS_IOC_FSSETXATTR),
        ),
        Rule("mknod", refuse(), _is(1, _S_IFCHR, _S_IFBLK, mask=_S_IFMT)),
        Rule("mknodat", refuse(), _is(2, _S_IFCHR, _S_IFBLK, mask=_S_IFMT)),
    ]


def _set_id_rules() -> list[Rule]:
    """No file made inside may lend its owner's identity to whoever runs it outside."""
    return [
        Rule("chmod fchmod mkdir mknod creat", refuse(), _any_bit(1, _SET_ID_BITS)),
        Rule("fchmodat fchmodat2 mkdirat mknodat", refuse(), _any_bit(2, _SET_ID_BITS)),
        Rule("open", refuse(), _any_bit(1, _O_CREAT | _O_TMPFILE_BIT), _any_bit(2, _SET_ID_BITS)),
        Rule("openat", refuse(), _any_bit(2, _O_CREAT | _O_TMPFILE_BIT), _any_bit(3, _SET_ID_BITS)),
    ]


def _socket_rules(sockets: Sockets) -> list[Rule]:
    """Never a socket that can name a path, and no protocol but TCP and UDP."""
    pairs = [
        Rule("socketpair", refuse(errno.EACCES), _is_not(0, _AF_UNIX)),
        Rule("socketpair", refuse(errno.EACCES), _is_not(1, _SOCK_STREAM, _SOCK_SEQPACKET, mask=_SOCK_TYPE)),
    ]
    if sockets is Sockets.PAIRS:
        return [*pairs, Rule("socket connect bind listen accept accept4", refuse(errno.EACCES))]
    kinds = (_SOCK_STREAM, _SOCK_DGRAM) if sockets is Sockets.NETWORK else (_SOCK_STREAM,)
    return [
        # one end of a unix pair has no use for a name; internet addresses have these lengths
        Rule("bind connect", refuse(errno.EACCES), _is_not(2, 16, 28, 128)),
        *pairs,
        Rule("socket", refuse(errno.EACCES), _is_not(0, _AF_INET, _AF_INET6)),
        Rule("socket", refuse(errno.EACCES), _is_not(1, *kinds, mask=_SOCK_TYPE)),
        Rule("socket", refuse(errno.EACCES), _is_not(2, 0, _IPPROTO_TCP, _IPPROTO_UDP)),
    ]


def _metadata_rules(metadata: Metadata) -> list[Rule]:
    if metadata is Metadata.PERMISSIONS:
        return []
    if metadata is Metadata.ALL:
        return [Rule(f"{METADATA_BY_PATH} fchmod fchown utimensat", NOTIFY)]
    named = [Rule("utimensat", NOTIFY, _any_bit(1, 0xFFFFFFFF, high=high)) for high in (False, True)]
    return [Rule(METADATA_BY_PATH, NOTIFY), *named]


def _name_rules() -> list[Rule]:
    return [
        Rule(NAMES, NOTIFY),
        Rule("open", NOTIFY, _any_bit(1, _O_WRITES)),
        Rule("openat", NOTIFY, _any_bit(2, _O_WRITES)),
    ]


def _counted_rules() -> list[Rule]:
    """No disk is taken faster than it can be written: a terabyte at once is there before anybody counts.

    The C library then writes what posix_fallocate(3) was to reserve.
    """
    return [
        Rule("fallocate", refuse(errno.EOPNOTSUPP)),
        Rule("ioctl", refuse(errno.EOPNOTSUPP), _is(1, *_ALLOCATING)),
    ]


def _first_process_rules() -> list[Rule]:
    """Say no to signals for process 1, which would be accepted and dropped (pid_namespaces(7))."""
    return [
        Rule("kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open", refuse(), _is(0, 1)),
        Rule("tgkill rt_tgsigqueueinfo", refuse(), _is(1, 1)),
    ]


def command_rules(kind: Kind) -> list[Rule]:
    """Return the rules for a shell command."""
    rules = [*_base_rules(), *_socket_rules(kind.sockets), Rule("openat2", refuse(errno.ENOSYS))]
    if not kind.truncation:  # Landlock does not see it before ABI 3
        rules.append(Rule("truncate", refuse()))
    if kind.first:
        rules += _first_process_rules()
    if kind.counted:
        rules += _counted_rules()
    nameless = [Rule(name, NOTIFY, _any_bit(at, _O_TMPFILE_BIT)) for name, at in (("open", 1), ("openat", 2))]
    named = _name_rules() if kind.names else []
    return [*rules, *nameless, *named, *_metadata_rules(kind.metadata), Rule(SESSIONS, NOTIFY)]


def worker_rules() -> list[Rule]:
    """Return the rules for the file worker: as a command, but it starts nothing and may use openat2."""
    return [*_base_rules(), *_socket_rules(Sockets.PAIRS), Rule(NEW_PROCESSES, refuse())]


@cache
def command_filter(kind: Kind) -> bytes:
    """Return the program of ``command_rules``, computed once; the supervisor does it before it forks."""
    return compile_filter(command_rules(kind))


def without_notifications(kind: Kind) -> bytes:
    """Return ``command_filter`` with refusals in place of notifications, and nobody to count sessions."""
    rules = [rule for rule in command_rules(kind) if rule.calls != SESSIONS]
    return compile_filter([Rule(r.calls, refuse(), *r.tests) if r.action == NOTIFY else r for r in rules])


@cache
def worker_filter() -> bytes:
    """Return the program of ``worker_rules``, computed once."""
    return compile_filter(worker_rules())


def install(program: bytes, *, flags: int = 0) -> int:
    """Install the filter on this thread and all it will start; ``no_new_privs`` must be set.

    Returns the notification descriptor with ``FLAG_NEW_LISTENER`` (seccomp_unotify(2)). Raises ``OSError``.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    return syscalls.call("seccomp", SET_MODE_FILTER, flags, header)
