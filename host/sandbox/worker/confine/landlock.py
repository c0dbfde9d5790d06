"""Landlock: a process gives up rights for itself and all it will ever start (landlock(7)).

Only what this project needs: one rule set, rights beneath descriptors, no network rules, the two scopes. The
constants are those of include/uapi/linux/landlock.h, described in landlock_create_ruleset(2),
landlock_add_rule(2) and landlock_restrict_self(2). A binding from the package index was not an option: the
processes that need it run the standard library alone.
"""

from __future__ import annotations

import os
import struct
from enum import IntFlag
from typing import Final

from .. import syscall_table, syscalls

CREATE_RULESET_VERSION: Final = 1
RULE_PATH_BENEATH: Final = 1


class Access(IntFlag):
    """Rights on files and directories; ``LANDLOCK_ACCESS_FS_*`` (landlock(7), "Filesystem actions")."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # ABI 2
    TRUNCATE = 1 << 14  # ABI 3
    IOCTL_DEV = 1 << 15  # ABI 5


class Scope(IntFlag):
    """What may not leave the domain; ``LANDLOCK_SCOPE_*`` (landlock(7), "Scope flags"), ABI 6."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


NETWORK_ALL: Final = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP | _CONNECT_TCP, ABI 4

READ: Final = Access.READ_FILE | Access.READ_DIR
READ_EXECUTE: Final = READ | Access.EXECUTE
WRITE: Final = (
    Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
    | Access.TRUNCATE
)
READ_WRITE: Final = READ_EXECUTE | WRITE
READ_REMOVE: Final = READ_EXECUTE | Access.REMOVE_DIR | Access.REMOVE_FILE
DEVICE: Final = Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_ON_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


def abi() -> int:
    """Return the kernel's Landlock ABI, 0 where there is none (landlock_create_ruleset(2), VERSION flag)."""
    if syscall_table.MACHINE not in syscall_table.ARCHITECTURES:
        return 0
    try:
        return syscalls.call("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError:
        return 0


def handled_access(version: int) -> Access:
    """Return the rights that ABI ``version`` can take away: all of ours that it knows."""
    bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    return Access((1 << bits) - 1)


class Ruleset:
    """A rule set under construction. Everything it handles is refused unless a rule allows it.

    Without ``files`` it still handles moves: every domain refuses those between directories unless a rule
    of its own allows them (landlock(7), ``LANDLOCK_ACCESS_FS_REFER``).
    """

    def __init__(self, version: int, *, files: bool, network: bool, scopes: Scope) -> None:
        known = handled_access(version) if version else Access(0)
        self._handled = known if files else known & Access.REFER
        net = NETWORK_ALL if network and version >= 4 else 0
        scoped = scopes if version >= 6 else Scope(0)
        attributes = struct.pack("QQQ", self._handled, net, scoped)
        size = 8 if version < 4 else 16 if version < 6 else 24
        self.descriptor = syscalls.call("landlock_create_ruleset", attributes, size, 0)

    def allow(self, descriptor: int, access: Access, *, is_directory: bool) -> None:
        """Allow ``access`` on the file, or beneath the directory, of an ``O_PATH`` descriptor."""
        access &= self._handled
        if not is_directory:
            access &= _ON_FILES
        if access:
            rule = struct.pack("=Qi", access, descriptor)
            syscalls.call("landlock_add_rule", self.descriptor, RULE_PATH_BENEATH, rule, 0)

    def enforce(self) -> None:
        """Restrict this process for good; ``no_new_privs`` must be set. Closes the rule set."""
        syscalls.call("landlock_restrict_self", self.descriptor, 0)
        self.close()

    def close(self) -> None:
        """Close the rule set's descriptor."""
        os.close(self.descriptor)
