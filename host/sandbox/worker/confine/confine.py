"""Closing the door behind oneself: the order in which a process gives up its rights."""

from __future__ import annotations

import os
import resource

from ..config import Config, Place
from . import grants, landlock, privileges, seccomp
from .landlock import READ, Access, Scope

_OURS = 8  # tasks of the reaper, and of the command before it is the shell
_WORKER_MEMORY = 768 << 20  # bytes: five times what the largest edit takes
ALL_SCOPES = Scope.SIGNAL | Scope.ABSTRACT_UNIX_SOCKET


class ScopeUnproven(Exception):
    """The kernel claimed a signal scope that does not hold."""


def enter_signal_scope(abi: int, parent: int) -> bool:
    """Enter a domain that signals cannot leave, and prove it by trying to signal the parent.

    Returns False where the kernel has no such scope. Only after True may ``kill(-1)`` be used: it then
    reaches the descendants alone. Must be called while the uid would still allow signalling the parent, or
    the proof proves nothing. Raises ``ScopeUnproven``.
    """
    if abi < 6:
        return False
    os.kill(parent, 0)
    ruleset = landlock.Ruleset(abi, files=False, network=False, scopes=Scope.SIGNAL)
    grants.add_rules(ruleset, [grants.Grant("/", Access.REFER)])
    ruleset.enforce()
    try:
        os.kill(parent, 0)
    except PermissionError:
        if os.getppid() == parent:
            return True
    raise ScopeUnproven


def ruleset(config: Config, *, network: bool) -> landlock.Ruleset | None:
    """Return the beginning of a Landlock domain, if there is one: files, signals, abstract names, and TCP
    unless ``network``.
    """
    if not config.landlock_abi:
        return None
    return landlock.Ruleset(config.landlock_abi, files=True, network=not network, scopes=ALL_SCOPES)


def filter_kind(config: Config, *, guarded: bool = False) -> seccomp.Kind:
    """Return which filter commands get; ``guarded``: of a conversation that may not change what is obeyed."""
    sockets = seccomp.Sockets.LOOPBACK if config.namespaces else seccomp.Sockets.PAIRS
    if config.allow_network:
        sockets = seccomp.Sockets.NETWORK
    blind = config.landlock_abi < 3 and not config.namespaces
    metadata = seccomp.Metadata.ALL if guarded else metadata_mode(config)
    counted = config.most_bytes > 0
    return seccomp.Kind(sockets, metadata, not blind, config.namespaces, names=guarded, counted=counted)


def metadata_mode(config: Config) -> seccomp.Metadata:
    """Choose the cheapest way that keeps chmod, chown and utime inside.

    A uid of its own needs none, nor does a private root, where all else is mounted read-only.
    """
    if config.own_uid or config.namespaces or not config.landlock_abi:
        return seccomp.Metadata.PERMISSIONS
    readable = config.read_paths or config.allow_read_outside_workspace
    readonly = [*grants.system_grants(config), *grants.skill_grants(config)]
    if readable or grants.owns_something_readable(readonly, os.geteuid()):
        return seccomp.Metadata.ALL
    return seccomp.Metadata.PATHS


def limit_resources(config: Config) -> None:
    """Bound what one process may take (getrlimit(2)); totals are the reaper's to watch.

    The number of processes is one uid's, in a user namespace of its own one command's: there the kernel says
    no before the reaper counts.
    """
    most = config.processes + _OURS if config.namespaces else config.uid_processes
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, config.file_size),
        (resource.RLIMIT_NOFILE, config.open_files),
        (resource.RLIMIT_DATA, config.data),
        (resource.RLIMIT_MEMLOCK, 64 << 10),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_SIGPENDING, 4096),
        (resource.RLIMIT_NPROC, most),
    ):
        privileges.limit(kind, value)


def confine_worker(config: Config, place: Place, *, uid: int | None, gid: int | None) -> None:
    """Confine the calling process as a file worker; it drops to ``uid`` and ``gid`` (None: stays)."""
    privileges.become(uid, gid)
    _confine(config, grants.worker_grants(config, place))


def confine_surveyor(config: Config, directory: str) -> None:
    """Confine the calling process to reading a directory; root can still become somebody else."""
    privileges.keep_capabilities(privileges.permitted(privileges.TO_BECOME))
    _confine(config, [grants.Grant(directory, READ)])


def confine_viewer(config: Config, memory: int) -> None:
    """Confine the calling process to what it has open already, in so many bytes."""
    privileges.become(config.uid, config.gid)
    _confine(config, [], memory)


def _confine(config: Config, granted: list[grants.Grant], memory: int = _WORKER_MEMORY) -> None:
    os.umask(0o022)
    privileges.not_dumpable()
    privileges.limit(resource.RLIMIT_CORE, 0)
    privileges.limit(resource.RLIMIT_FSIZE, config.file_size)
    privileges.limit(resource.RLIMIT_DATA, memory)
    if (rules := ruleset(config, network=False)) is not None:
        grants.add_rules(rules, granted)
        rules.enforce()
    seccomp.install(seccomp.worker_filter())
