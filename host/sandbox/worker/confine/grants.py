"""Landlock: a process gives up rights for itself and all it will ever start; and what the policy grants.

Only what this project needs of landlock(7): one rule set, rights beneath descriptors, no network rules, the
two scopes. The constants are those of include/uapi/linux/landlock.h, described in landlock_create_ruleset(2),
landlock_add_rule(2) and landlock_restrict_self(2).
"""

import glob
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag
from functools import cache
from typing import Final, NamedTuple

from .. import syscalls
from ..frames import DEVICES, Config, Place

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
    if syscalls.MACHINE not in syscalls.ARCHITECTURES:
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


# Programs and their libraries.
SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
# Kernel facts that runtimes size themselves by; /proc hides other domains' secrets by itself (ptrace rules).
KERNEL: Final = ("/proc", "/sys/devices/system/cpu", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage")
# Configuration that programs expect to read and that holds no secrets.
_ETC_NAMES: Final = """
alternatives ld.so.cache ld.so.conf ld.so.conf.d passwd group nsswitch.conf hosts hostname resolv.conf
host.conf gai.conf protocols services networks localtime timezone locale.alias locale.conf default/locale
profile bash.bashrc inputrc terminfo ssl/certs ssl/openssl.cnf ca-certificates ca-certificates.conf pki
crypto-policies mime.types magic magic.mime gitconfig debian_version os-release lsb-release alpine-release
shells manpath.config vim emacs nanorc xattr.conf fonts python3 python3.11 python3.12 python3.13 perl java
java-11-openjdk java-17-openjdk java-21-openjdk npmrc sysctl.conf rpc ethertypes xdg
"""
ETC: Final = tuple(f"/etc/{name}" for name in _ETC_NAMES.split())
# Only where they are the command's own, or the uid is: then the owners' permissions close other people's.
TERMINALS: Final = ("/dev/ptmx", "/dev/pts")
SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - only where it is the command's own
_NEVER_WRITTEN: Final = ("/proc", "/sys", "/dev")


class Grant(NamedTuple):
    """Rights on one path; ``follow`` is False where a link could have been planted."""

    path: str
    access: Access
    follow: bool = True


def system_grants(config: Config) -> tuple[Grant, ...]:
    """Return what programs need of the system; resolved once, in the supervisor, before it forks."""
    return _system(config.own_uid or config.namespaces, config.namespaces, config.secret_paths)


@cache
def _system(own_terminals: bool, own_memory: bool, secrets: tuple[str, ...]) -> tuple[Grant, ...]:
    grants = [*(Grant(path, READ_EXECUTE) for path in SYSTEM), *(Grant(p, READ) for p in (*KERNEL, *ETC))]
    if own_terminals:
        grants.extend(Grant(path, DEVICE | READ) for path in TERMINALS)
    if own_memory:
        grants.append(Grant(SHARED_MEMORY, READ_WRITE))
    return tuple(_outside_secrets((g for g in grants if os.path.exists(g.path)), secrets))


def worker_grants(config: Config, place: Place) -> list[Grant]:
    """Return what the file tools may touch."""
    counted = [Grant(path, Access.READ_DIR, follow=False) for path in config.counted]
    return [private_grant(place), *counted, *shared_grants(config, place.workspace)]


def private_grant(place: Place) -> Grant:
    """Return what only the place's conversation may touch."""
    return Grant(place.temporary, READ_WRITE)


def shared_grants(config: Config, workspace: str) -> list[Grant]:
    """Return what all conversations in a workspace may touch; globs are looked up now."""
    grants = [
        *(Grant(path, READ_WRITE, follow) for path, follow in expand(config.write_paths)),
        *(Grant(path, READ_EXECUTE, follow) for path, follow in expand(config.read_paths)),
    ]
    own = [Grant(workspace, READ_REMOVE if config.is_full else READ_WRITE), *skill_grants(config)]
    own += [Grant(path, READ_EXECUTE, follow=False) for path in config.readable]
    if config.is_open:
        access = READ_EXECUTE if config.restrict_to_workspace else READ_WRITE
        # A rule can't be narrowed further down: where no mount covers the secrets, their names can be listed.
        own.append(Grant("/", access if config.covers else Access.READ_DIR))
        grants.extend(() if config.covers else _everything(access))
    outside = _outside_secrets(grants, config.secret_paths)
    return [*own, *(Grant(path, DEVICE) for path in DEVICES), *outside]


Stamp = tuple[tuple[str, int, int], ...]


def stamp(config: Config, workspace: str) -> Stamp:
    """Return what tells whether ``shared_grants`` are still the same files: mounts and rules hold inodes."""
    granted = shared_grants(config, workspace)
    return tuple((each.path, *(inode(each.path, follow=each.follow) or (0, 0))) for each in granted)


def inode(path: str, *, follow: bool = False) -> tuple[int, int] | None:
    """Return device and inode of what is at a path, None if there is nothing."""
    try:
        status = os.stat(path, follow_symlinks=follow)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def skill_grants(config: Config) -> list[Grant]:
    """Return what makes skills usable: like the workspace, they may lie inside a home that is closed."""
    return [Grant(path, READ_EXECUTE) for path in config.skill_paths]


def expand(patterns: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield the paths of directories and anchored globs, and whether a link there may be followed.

    A plain path is the operator's word; what a glob finds may have been planted, so links are not followed.
    """
    for pattern in patterns:
        if glob.has_magic(pattern):
            yield from ((path, False) for path in sorted(glob.glob(pattern)))
        else:
            yield pattern, True


def _everything(access: Access) -> Iterator[Grant]:
    for entry in sorted(_children("/")):
        if entry == "/dev":
            continue
        yield Grant(entry, READ if entry in _NEVER_WRITTEN else access)


def _outside_secrets(grants: Iterable[Grant], secret_paths: Iterable[str]) -> Iterator[Grant]:
    secrets = [os.path.realpath(path) for path in secret_paths]
    for grant in grants:
        if grant.follow or not os.path.islink(grant.path):
            real = os.path.realpath(grant.path)
            for path in _without(real, secrets):
                yield Grant(path, grant.access, follow=False)


def _without(path: str, secrets: list[str]) -> Iterator[str]:
    """Yield ``path``, or what is beneath it without the secrets: rules can't be narrowed further down."""
    if any(is_beneath(path, secret) for secret in secrets):
        return
    if not any(is_beneath(secret, path) for secret in secrets):
        yield path
        return
    for child in sorted(_children(path)):
        yield from _without(child, secrets)


def is_beneath(path: str, root: str) -> bool:
    """Return whether a normal absolute path is ``root`` or below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if not entry.is_symlink()]
    except OSError:
        return []


def add_rules(ruleset: Ruleset, grants: Iterable[Grant]) -> dict[str, tuple[int, int]]:
    """Add a rule for each path that exists; returns device and inode, which rules hold."""
    found: dict[str, tuple[int, int]] = {}
    for grant in grants:
        try:
            flags = os.O_PATH | os.O_CLOEXEC | (0 if grant.follow else os.O_NOFOLLOW)
            descriptor = os.open(grant.path, flags)
        except OSError:
            continue
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISLNK(status.st_mode):
                ruleset.allow(descriptor, grant.access, is_directory=stat.S_ISDIR(status.st_mode))
                found[grant.path] = (status.st_dev, status.st_ino)
        finally:
            os.close(descriptor)
    return found


def owns_something_readable(grants: Iterable[Grant], uid: int) -> bool:
    """Return whether a path that may only be read belongs to ``uid`` (then descriptors need watching too)."""
    for grant in grants:
        if grant.access & Access.WRITE_FILE or grant.path == "/proc":
            continue
        try:
            if os.stat(grant.path).st_uid == uid:
                return True
        except OSError:
            continue
    return False
