"""Namespaces (namespaces(7)): processes, mounts, IPC and network of their own, without any privilege.

A user namespace gives its first process all capabilities over the other namespaces made with it, and over
nothing else. That process is the reaper. Its launcher is process 1 of a process namespace: what is started in
there cannot signal it or outlive it, and its ``kill(-1)`` reaches exactly that.

Its root has names for what a command may reach alone; where all files are to be reachable it is everything,
with the secrets covered by empty file systems.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from .. import syscalls
from ..frames import DEVICES, Config, Place
from ..syscalls import AT_EMPTY_PATH, AT_FDCWD, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW
from . import grants, privileges
from .grants import READ, READ_WRITE, Access, Grant

# clone(2)
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
KINDS: Final = ("user", "pid", "mnt", "ipc", "net")
# netdevice(7)
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
TCP_BUFFER: Final = "4096 65536 262144"  # bytes: least, at first, most
_INTERFACE: Final = struct.Struct("16sh22x")


def flags(*, network: bool) -> int:
    """Return the flags of ``fork_into``, a network of its own unless ``network`` is shared among them."""
    own = 0 if network else CLONE_NEWNET
    return CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC | own


def fork_into(kinds: int, uid: int, gid: int) -> int:
    """Fork as ``os.fork`` does, the child in new namespaces. Raises ``OSError``.

    The user namespace shall belong to ``uid``/``gid``, or the child could not map them: where those are not
    ours, they are our effective ones for the moment of the fork.
    """
    ours = os.geteuid(), os.getegid()
    if ours == (uid, gid):
        return _clone(kinds)
    os.setresgid(-1, gid, -1)
    os.setresuid(-1, uid, -1)
    pid = -1
    try:
        pid = _clone(kinds)
    finally:
        if pid != 0:
            os.setresuid(-1, ours[0], -1)
            os.setresgid(-1, ours[1], -1)
            privileges.not_dumpable()  # a change of uid resets it (prctl(2))
    return pid


def fork_first() -> int:
    """Fork as ``os.fork`` does; the child is process 1 of a process namespace. Raises ``OSError``."""
    return _clone(CLONE_NEWPID)


def _clone(kinds: int) -> int:
    """clone(2) without a stack of its own, between the calls that keep the interpreter sound."""
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    try:
        pid = syscalls.clone(kinds | signal.SIGCHLD)
    except OSError:
        python.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return pid


def settle(uid: int, gid: int) -> None:
    """In the child: map its uid and gid, each onto itself and no other, and be them for good.

    A process that is not dumpable may not write its own maps (user_namespaces(7), proc(5)).
    """
    privileges.dumpable()
    for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        syscalls.write_proc(line, "self", name)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    privileges.not_dumpable()
    privileges.be_killed_with_parent()


def raise_loopback() -> None:
    """Switch on the one interface of a new network namespace, so that programs can talk to themselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _INTERFACE.pack(b"lo", 0) + bytes(_INTERFACE.size))
        (_, known) = _INTERFACE.unpack(asked[: _INTERFACE.size])
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _INTERFACE.pack(b"lo", known | _IFF_UP))


def bound_buffers() -> None:
    """Let a TCP socket of a new network namespace hold little (tcp(7)); the machine's own may hold 38 MiB.

    Where /proc/sys may not be written, as in most containers, it stays as it is.
    """
    for name in ("tcp_rmem", "tcp_wmem"):
        with contextlib.suppress(OSError):
            syscalls.write_proc(TCP_BUFFER, "sys/net/ipv4", name)


def identities() -> dict[str, int]:
    """Return what tells this process's namespaces from others', by kind (namespaces(7))."""
    return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in KINDS}


ROOT: Final = "root"  # the empty directory's name, beside the private directories
_PLACES_INSIDE: Final = ".places"  # where all private directories are, until the one is shown
SHARED_MEMORY_BYTES: Final = 64 << 20
_SHARED_MEMORY_FILES: Final = 4096
_ROOT_BYTES: Final = 1 << 20
# mount(2)
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REC, _PRIVATE = 16384, 1 << 18
_DETACH: Final = 2  # MNT_DETACH, umount(2)
# open_tree(2), move_mount(2), mount_setattr(2)
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_FILES: Final = _RDONLY | _NOSUID | _NODEV
_PLACES: Final = _NOSUID | _NODEV
_PLAIN: Final = _NOSUID | _NODEV | _NOEXEC
_DEVICES: Final = _RDONLY | _NOSUID | _NOEXEC
_KERNELS_OWN: Final = ("kcore", "kmsg", "kpagecount", "kpageflags", "kpagecgroup", "sysrq-trigger")
_OWN: Final = ("/proc", "/dev")  # not shown but made anew
_STREAMS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "fd/0"),
    ("stdout", "fd/1"),
    ("stderr", "fd/2"),
    ("ptmx", "pts/ptmx"),
)


class Layout(NamedTuple):
    """What every command's root has: paths bound as they are, links and their targets, files and content."""

    bound: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    written: tuple[tuple[str, bytes], ...]


@cache
def layout(config: Config) -> Layout:
    """Return the part that no request changes; looked up once, in the supervisor, before it forks."""
    granted = {grant.path for grant in grants.system_grants(config)}
    wanted = sorted(p for p in granted if not any(grants.is_beneath(p, own) for own in _OWN))
    written = [*_accounts(config, granted)]
    bound = [p for p in wanted if not _covered(p, wanted) and p not in dict(written)]
    names = (*grants.SYSTEM, *grants.KERNEL, *grants.ETC)
    links = [(path, os.readlink(path)) for path in names if os.path.islink(path)]
    return Layout(tuple(bound), tuple(links), tuple(written))


def _accounts(config: Config, granted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the user and group files with a line for a uid that has no name: ssh and git insist on one."""
    owner, group = str(config.inner_uid), str(config.inner_gid)
    lines = {
        "/etc/passwd": f"agent:x:{owner}:{group}:agent:/:/bin/bash\n",
        "/etc/group": f"agent:x:{group}:\n",
    }
    for path in granted & lines.keys():
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            known = file.read()
        number = owner if path == "/etc/passwd" else group
        if not any(line.split(":")[2:3] == [number] for line in known.splitlines()):
            yield path, f"{known.rstrip()}\n{lines[path]}".encode("utf-8", "surrogateescape")


def _covered(path: str, others: list[str]) -> bool:
    return any(path != other and grants.is_beneath(path, other) for other in others)


class PrivateRoot:
    """An environment's root: laid out, entered by its process 1, at last shown the conversation's place.

    All but that place is laid out ahead, in the reaper, and entered: letting go of the old root waits for the
    kernel (an RCU grace period), which no request should.
    """

    def __init__(self, config: Config, workspace: str) -> None:
        """Lay out what is known ahead. Raises ``OSError`` where the kernel does not allow it."""
        self._temporary = config.temporary
        self._top = f"{config.temporary}/{ROOT}"
        self._own: list[int] = []
        self._places = f"{config.temporary}/{_PLACES_INSIDE}"
        syscalls.mount(None, "/", None, _REC | _PRIVATE, None)
        if config.covers:
            self._show_everything(config)
        else:
            self._mount_own("")
            self._show_the_system(config)
        self._own_file_systems()
        for grant in sorted(grants.shared_grants(config, workspace), key=lambda g: g.path):
            if grant.path not in (*DEVICES, "/"):
                self._bind(grant, _PLACES if grant.access & Access.REMOVE_FILE else _FILES)
        self._gather_places(config.temporary)

    def _mount_own(self, path: str) -> None:
        """Mount an empty file system, which is to be read-only once all is laid out."""
        size = f"mode=755,size={_ROOT_BYTES},nr_inodes=4096"
        syscalls.mount("root", f"{self._top}{path}", "tmpfs", _NOSUID | _NODEV, size)
        self._own.append(os.open(f"{self._top}{path}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def _show_everything(self, config: Config) -> None:
        self._bind(Grant("/", READ), _FILES if config.restrict_to_workspace else _PLACES)
        with contextlib.suppress(OSError):  # not mounted
            syscalls.mount_setattr(AT_FDCWD, f"{self._top}/sys", AT_RECURSIVE, _RDONLY)
        self._mount_own("/dev")
        for path in sorted(os.path.realpath(secret) for secret in config.secret_paths):
            # As in _bind: what we can't get to, no command can.
            with contextlib.suppress(PermissionError):
                if os.path.isdir(f"{self._top}{path}"):
                    self._mount_own(path)
                else:
                    self._hide(f"{self._top}{path}")

    def _show_the_system(self, config: Config) -> None:
        ahead = layout(config)
        for path in ahead.bound:
            self._bind(Grant(path, READ), _FILES)
        for path, target in ahead.links:
            self._make_parent(path)
            with contextlib.suppress(FileExistsError):
                os.symlink(target, f"{self._top}{path}")
        for path, content in ahead.written:
            self._make_parent(path)
            with open(f"{self._top}{path}", "xb") as file:
                file.write(content)
        for name in ("/proc", "/tmp", "/run", "/var/tmp"):  # noqa: S108 - names inside
            os.makedirs(f"{self._top}{name}", 0o755, exist_ok=True)

    def _gather_places(self, directory: str) -> None:
        """Show all private directories in one place that the command will not see; keep what covers it."""
        os.makedirs(f"{self._top}{self._places}", 0o755)
        self._cover = syscalls.open_tree(AT_FDCWD, f"{self._top}{self._places}", _OPEN_TREE_CLONE)
        syscalls.mount_setattr(self._cover, "", AT_EMPTY_PATH, _RDONLY)
        self._bind(Grant(directory, READ_WRITE), _PLACES, at=self._places, below=0)

    def enter(self) -> None:
        """Add the /proc of the caller's process namespace, and let go of the old root: all who share the
        mounts are in the new one then.
        """
        self._mount_proc()
        os.chdir(self._top)
        syscalls.call("pivot_root", b".", b".")
        syscalls.call("umount2", b".", _DETACH)
        os.chdir("/")
        self.entered()

    def entered(self) -> None:
        """Take note that another process has done ``enter``."""
        self._top = ""

    def show(self, place: Place) -> None:
        """Add a conversation's private directory, hide those of others, and make what is our own read-only.

        A cover is as good as unmounting here, and doesn't wait for the kernel: names lead to what lies on
        top, and nobody holds anything below.
        """
        private = f"{self._places}{place.temporary.removeprefix(self._temporary)}"
        self._bind(Grant(private, READ_WRITE, follow=False), _PLACES, at=place.temporary)
        syscalls.move_mount(self._cover, self._places, _MOVE_MOUNT_F_EMPTY_PATH)
        os.close(self._cover)
        for descriptor in self._own:
            syscalls.mount_setattr(descriptor, "", AT_EMPTY_PATH, _RDONLY)
            os.close(descriptor)

    def _own_file_systems(self) -> None:
        for name in (grants.SHARED_MEMORY, "/dev/pts"):
            os.makedirs(f"{self._top}{name}", 0o755, exist_ok=True)
        shared = f"mode=1777,size={SHARED_MEMORY_BYTES},nr_inodes={_SHARED_MEMORY_FILES}"
        syscalls.mount("shm", f"{self._top}{grants.SHARED_MEMORY}", "tmpfs", _PLAIN, shared)
        terminals = "newinstance,ptmxmode=0666,mode=620"
        syscalls.mount("devpts", f"{self._top}/dev/pts", "devpts", _NOSUID | _NOEXEC, terminals)
        for device in (*DEVICES, "/dev/full", "/dev/tty"):
            if os.path.exists(device):
                self._bind(Grant(device, READ), _DEVICES)
        for name, target in _STREAMS:
            os.symlink(target, f"{self._top}/dev/{name}")

    def _mount_proc(self) -> None:
        """Needs the old root: without another /proc in sight the kernel refuses."""
        syscalls.mount("proc", f"{self._top}/proc", "proc", _PLAIN | _RDONLY, None)
        if os.getuid() == 0:  # root's files in /proc are its own, capabilities or not
            for name in _KERNELS_OWN:
                self._hide(f"{self._top}/proc/{name}")

    def _hide(self, path: str) -> None:
        if os.path.exists(path):
            with syscalls.held(syscalls.open_tree(AT_FDCWD, "/dev/null", _OPEN_TREE_CLONE)) as tree:
                syscalls.mount_setattr(tree, "", AT_EMPTY_PATH, _DEVICES)
                syscalls.move_mount(tree, path, _MOVE_MOUNT_F_EMPTY_PATH)

    def _bind(self, grant: Grant, attributes: int, at: str = "", below: int = AT_RECURSIVE) -> None:
        """Show a file or directory, with what is mounted ``below`` it (or 0), at its path or ``at`` one."""
        how = below | _OPEN_TREE_CLONE | (0 if grant.follow else AT_SYMLINK_NOFOLLOW)
        try:
            opened = syscalls.open_tree(AT_FDCWD, grant.path, how)
        except OSError as error:
            # What we can't get to, no command can: they have the same uid.
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
            return
        with syscalls.held(opened) as tree:
            mode = os.fstat(tree).st_mode
            if not stat.S_ISLNK(mode):
                self._make_target(at or grant.path, is_directory=stat.S_ISDIR(mode))
                syscalls.mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, attributes)
                syscalls.move_mount(tree, f"{self._top}{at or grant.path}", _MOVE_MOUNT_F_EMPTY_PATH)

    def _make_target(self, path: str, *, is_directory: bool) -> None:
        target = f"{self._top}{path}"
        if is_directory:
            os.makedirs(target, 0o755, exist_ok=True)
            return
        self._make_parent(path)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))

    def _make_parent(self, path: str) -> None:
        os.makedirs(os.path.dirname(f"{self._top}{path}"), 0o755, exist_ok=True)
