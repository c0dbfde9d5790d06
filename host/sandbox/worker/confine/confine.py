"""Closing the door behind oneself: the order in which a process gives up its rights, and the self-test.

At the start the forbidden things are tried for real, in a command's confinement, on canaries. Nothing is
believed because a call returned zero: a layer holds when what it should stop was stopped.
"""

import contextlib
import json
import os
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from .. import syscalls
from ..frames import Config, Frame, Place
from . import grants, namespaces, privileges, seccomp
from .grants import READ, Access, Scope
from .workspaces import Places

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
    ruleset = grants.Ruleset(abi, files=False, network=False, scopes=Scope.SIGNAL)
    grants.add_rules(ruleset, [grants.Grant("/", Access.REFER)])
    ruleset.enforce()
    try:
        os.kill(parent, 0)
    except PermissionError:
        if os.getppid() == parent:
            return True
    raise ScopeUnproven


def ruleset(config: Config, *, network: bool) -> grants.Ruleset | None:
    """Return the beginning of a Landlock domain, if there is one: files, signals, abstract names, and TCP
    unless ``network``.
    """
    if not config.landlock_abi:
        return None
    return grants.Ruleset(config.landlock_abi, files=True, network=not network, scopes=ALL_SCOPES)


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


CANARY: Final = "canary"
SELF_TEST: Final = "start-up self-test"
SELF_TEST_MS: Final = 5000
_PTRACE_TRACEME: Final = 0  # ptrace(2)
_BASIC: Final = ("no_new_privileges", "capabilities", "system_calls", "network_closed")
_FULL: Final = ("files", "processes", "metadata")
_PRIVATE: Final = ("private_root", "own_processes", "own_ipc", "own_terminals", "own_network")
LEVEL_OF_NAMESPACES: Final = 3  # the level


def self_test_request(config: Config, places: Places, workspace: str, port: int) -> Frame:
    """Lay out the canaries and return the request that a reaper runs; ``port``: where somebody listens."""
    outside = f"{config.temporary}/outside"
    with contextlib.suppress(FileExistsError):
        os.mkdir(outside, 0o755)
    _write(f"{outside}/secret", CANARY)
    os.chmod(f"{outside}/secret", 0o644)
    place = places.of(SELF_TEST, workspace)
    return {
        "command": "",
        "timeout_ms": SELF_TEST_MS,
        "workspace": place.workspace,
        "temporary": place.temporary,
        "probe": {
            "outside": outside,
            "supervisor": os.getpid(),
            "port": port,
            "network": config.allow_network,
            "namespaces": namespaces.identities() if config.namespaces else None,
            "covers": config.covers,
        },
    }


def attempts(facts: dict[str, Any], temporary: str) -> bytes:
    """Run inside the confinement: try everything and return, as JSON, what was stopped."""
    outside, supervisor = facts["outside"], facts["supervisor"]
    held = {
        "no_new_privileges": privileges.status("NoNewPrivs") == "1",
        "capabilities": all(
            int(privileges.status(f"Cap{kind}") or "1", 16) == 0 for kind in ("Inh", "Prm", "Eff", "Amb")
        ),
        "system_calls": privileges.status("Seccomp") == "2"
        and _stopped(_ptrace)
        and _stopped(_datagram_pair),
        "network_closed": facts["network"] or _stopped(lambda: _connect(facts["port"])),
        "files": _stopped(lambda: _read(f"{outside}/secret"))
        and _stopped(lambda: _write(f"{outside}/new"))
        and not _stopped(lambda: _write(f"{temporary}/probe")),
        "processes": _stopped(lambda: _read(f"/proc/{supervisor}/environ")),
        "signals": _stopped(lambda: os.kill(supervisor, 0)),
        "metadata": _stopped(lambda: os.chmod(f"{outside}/secret", 0o600))
        and _stopped(lambda: os.utime(f"{outside}/secret", (1, 1))),
    }
    if facts["namespaces"] is not None:
        held |= _private(facts)
    return json.dumps(held).encode()


def _private(facts: dict[str, Any]) -> dict[str, bool]:
    """Try the namespaces: what is outside has no name here, and what is private works."""
    outer, inner = facts["namespaces"], namespaces.identities()
    neighbours = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return {
        "private_root": not os.path.lexists(facts["outside"])
        and (facts["covers"] or _stopped(lambda: os.utime("/usr"))),
        "own_processes": inner["pid"] != outer["pid"] and neighbours == {1, os.getpid()},
        "own_ipc": inner["ipc"] != outer["ipc"] and not _stopped(_use_shared_memory),
        "own_terminals": not _stopped(_open_terminal),
        "own_network": bool(facts["network"]) or inner["net"] != outer["net"],
    }


def _use_shared_memory() -> None:
    _write(f"{grants.SHARED_MEMORY}/probe")


def _open_terminal() -> None:
    for end in os.openpty():
        os.close(end)


def _connect(port: int) -> None:
    with socket.socket() as stream:
        stream.connect(("127.0.0.1", port))


def _stopped(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _write(path: str, text: str = "x") -> None:
    with open(path, "w") as file:
        file.write(text)


def _ptrace() -> None:
    syscalls.call("ptrace", _PTRACE_TRACEME, 0, 0, 0)


def _datagram_pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
        end.close()


def judge_self_test(config: Config, answer: Frame) -> Frame:
    """Turn the reaper's answer into level, layers and what is missing, beside who commands run as."""
    whose = {
        "landlock_abi": config.landlock_abi,
        "uid": config.inner_uid,
        "skipped": list(config.skipped),
        "no_uids": config.no_uids,
    }
    try:
        layers: dict[str, bool] = json.loads(answer["output"])
    except (KeyError, ValueError):
        fault = (
            answer.get("fault") or f"the self-test ended with {answer.get('ended')}: {answer.get('output')!r}"
        )
        return {**whose, "level": 0, "layers": {}, "missing": [str(fault)[:500]]}
    layers["signal_scope"] = bool(answer.get("scoped"))
    layers["own_uid"] = config.own_uid
    layers["landlock"] = bool(config.landlock_abi)
    level = 1 if all(layers[name] for name in _BASIC) else 0
    if level and all(layers[name] for name in _FULL):
        level = 2
    if level == 2 and config.namespaces and all(layers[name] for name in _PRIVATE):
        level = LEVEL_OF_NAMESPACES
    missing = [name for name, held in layers.items() if not held]
    return {**whose, "level": level, "layers": layers, "missing": missing}
