"""Under which uid a process runs, and what it gives up before it sees input."""

import contextlib
import errno
import os
import pwd
import resource
import stat
import struct
from typing import Final, NamedTuple

from .. import syscalls

# prctl(2), include/uapi/linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_CAPABILITY_VERSION_3: Final = 0x20080522  # capset(2)
_LAST_CAPABILITY_FILE: Final = "/proc/sys/kernel/cap_last_cap"
_LAST_CAPABILITY_KNOWN: Final = 40  # CAP_CHECKPOINT_RESTORE, capabilities(7)

# capabilities(7)
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID = 0, 1, 3, 5, 6, 7
CAP_SETFCAP: Final = 31
_FILES: Final = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER)
FOR_UIDS: Final = {
    CAP_CHOWN: "CAP_CHOWN",
    CAP_FOWNER: "CAP_FOWNER",
    CAP_KILL: "CAP_KILL",
    CAP_SETGID: "CAP_SETGID",
    CAP_SETUID: "CAP_SETUID",
}
"""What a host needs that gives each principal a uid of its own."""
TO_BECOME: Final = (CAP_SETGID, CAP_SETUID)
SUPERVISOR_CAPABILITIES: Final = (*_FILES, CAP_KILL, *TO_BECOME)


def last_capability() -> int:
    """Return the highest capability number the running kernel knows."""
    try:
        with open(_LAST_CAPABILITY_FILE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return _LAST_CAPABILITY_KNOWN


def keep_capabilities(kept: tuple[int, ...]) -> None:
    """Give up every capability but ``kept``, in all sets (capset(2)); nothing to do without privileges."""
    mask = sum(1 << c for c in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    syscalls.call("capset", header, struct.pack("6I", low, low, 0, high, high, 0))


def permitted(wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return those of ``wanted`` that this process has (proc_pid_status(5), CapPrm)."""
    mask = int(status("CapPrm") or "0", 16)
    return tuple(c for c in wanted if mask >> c & 1)


def status(name: str) -> str:
    """Return what proc_pid_status(5) tells of this process, "" for what this kernel does not tell."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return line.split()[1]
    return ""


def drop_bounding_set() -> None:
    """Empty the bounding set, for this process and all it forks: no file capability can come back.

    Needs CAP_SETPCAP; without it ``no_new_privs`` does the same work.
    """
    with contextlib.suppress(PermissionError):
        for capability in range(last_capability() + 1):
            syscalls.prctl(PR_CAPBSET_DROP, capability)


def become(uid: int | None, gid: int | None) -> None:
    """Drop to ``uid``/``gid`` (None: stay), then every capability, in every set. Irreversible."""
    if uid is not None and gid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    keep_capabilities(())


def renounce() -> None:
    """Give up every capability in every set for good; a new user namespace had given them all."""
    drop_bounding_set()
    become(None, None)


def no_new_privileges() -> None:
    """From here no execve grants anything (setuid bits, file capabilities); inherited by all children."""
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    """Keep processes of the same uid from reading this one's memory, environment and descriptors."""
    syscalls.prctl(PR_SET_DUMPABLE, 0)


def dumpable() -> None:
    """Let this process write its own files in /proc, until ``not_dumpable``."""
    syscalls.prctl(PR_SET_DUMPABLE, 1)


def be_killed_with_parent() -> None:
    """Be killed when the parent ends from now on; of an earlier end one learns otherwise."""
    syscalls.prctl(PR_SET_PDEATHSIG, 9)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends; exits at once if it already has."""
    syscalls.prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every orphan below (PR_SET_CHILD_SUBREAPER)."""
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)


def limit(kind: int, value: int) -> None:
    """Set soft and hard limit to ``value``, or leave the hard limit where it is lower (getrlimit(2))."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


USER_NAME: Final = "picoclaw-sandbox"  # used if the image has such a user
FALLBACK_UID: Final = 61_900  # above what distributions give to people and services (systemd UIDS-GIDS)
MAX_ADOPTED: Final = 200_000  # entries of a workspace whose owner is changed at start
_ALL: Final = os.R_OK | os.W_OK | os.X_OK


class Identity(NamedTuple):
    """uid and gid to drop to (None: stay), and whether that uid is used for nothing else."""

    uid: int | None = None
    gid: int | None = None
    own: bool = False


def choose_identity(
    workspace: str, needed: list[tuple[str, int]], wanted: tuple[int, int] | None
) -> Identity:
    """Choose for a supervisor that may be root.

    ``needed``: further paths with the access they must allow (``os.access`` bits). ``wanted``: the operator's
    choice, taken as it is (0: stay root, without any capability). A workspace of root's is handed to the
    sandbox's uid; one that belongs to somebody else (a bind mount) is worked in under that uid, so that its
    owner can still use the files.
    """
    if os.geteuid() != 0 or (wanted is not None and wanted[0] == 0):
        return Identity()
    owner = os.stat(workspace)
    if wanted is not None:
        candidate = Identity(*wanted, own=True)
    elif owner.st_uid in (0, dedicated()[0]):
        candidate = Identity(*dedicated(), own=True)
    else:
        candidate = Identity(owner.st_uid, owner.st_gid)
    if not _allows(candidate, [(workspace, os.F_OK), *needed]):
        return Identity()
    if candidate.own:
        adopt(workspace, candidate)
    return candidate if _allows(candidate, [(workspace, _ALL)]) else Identity()


def unreachable(identity: Identity, paths: list[str]) -> list[str]:
    """Return the paths that are there and that the uid may not read, such as those below ``/root``; for
    another user than root also those of which it can't be seen whether they are there.
    """
    needed = os.R_OK | os.X_OK
    if identity.uid is None:
        return [path for path in paths if _is_closed(path, needed)]
    return [path for path in paths if os.path.exists(path) and not _allows(identity, [(path, needed)])]


def _is_closed(path: str, needed: int) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.EACCES
    return not os.access(path, needed)


def why_no_uids(directory: str, first: int) -> str:
    """Return why principals, the first one's uid ``first``, can't have uids of their own; "" if they can."""
    if os.geteuid() != 0:
        return "the host is not root"
    if not first:
        return "no uids are free here: SANDBOX_UID_BASE must begin 30000 that /proc/self/uid_map has"
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    lacking = set(FOR_UIDS) - set(permitted(tuple(FOR_UIDS)))
    if lacking:
        return f"the host lacks {', '.join(FOR_UIDS[each] for each in sorted(lacking))}"
    if not _allows(Identity(first, first), [(directory, os.X_OK)]):
        return f"uid {first} can't be used, or can't pass through {directory} (chmod o+x)"
    return ""


def dedicated() -> tuple[int, int]:
    """Return uid and gid of the sandbox's own user."""
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(USER_NAME)
        return entry.pw_uid, entry.pw_gid
    return FALLBACK_UID, FALLBACK_UID


def adopt(workspace: str, identity: Identity) -> None:
    """Give what root owns in the workspace to the sandbox's uid: no links followed, no hard links touched."""
    if identity.uid is None or identity.gid is None:
        return
    with contextlib.suppress(RecursionError):  # deeper than anybody works: the rest keeps its owner
        _adopt_all(workspace, identity.uid, identity.gid)


def _adopt_all(workspace: str, uid: int, gid: int) -> None:
    count = 0
    for _, directories, files, descriptor in os.fwalk(workspace, follow_symlinks=False):
        if os.fstat(descriptor).st_uid == 0:
            os.fchown(descriptor, uid, gid)
        for name in (*directories, *files):
            _adopt_entry(descriptor, name, uid, gid)
            count += 1
        if count > MAX_ADOPTED:
            return


def _adopt_entry(directory: int, name: str, uid: int, gid: int) -> None:
    with contextlib.suppress(OSError):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        ordinary = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if status.st_uid == 0 and (ordinary or stat.S_ISLNK(status.st_mode)):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)


def _allows(identity: Identity, needed: list[tuple[str, int]]) -> bool:
    """Try it in a child: become the uid and ask the kernel."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(identity.gid or 0, identity.gid or 0, identity.gid or 0)
            os.setresuid(identity.uid or 0, identity.uid or 0, identity.uid or 0)
            os._exit(0 if all(os.access(path, bits) for path, bits in needed) else 1)
        except BaseException:  # noqa: BLE001 - whatever it is, the answer is no
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0
