"""Namespaces (namespaces(7)): processes, mounts, IPC and network of their own, without any privilege.

A user namespace gives its first process all capabilities over the other namespaces made with it, and over
nothing else. That process is the reaper. Its launcher is process 1 of a process namespace: what is started in
there cannot signal it or outlive it, and its ``kill(-1)`` reaches exactly that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import Final

from .. import syscalls
from . import privileges

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
