"""Which uid commands run under: one of their own where the workspace allows it, or the one that is there."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from dataclasses import dataclass
from typing import Final

from . import privileges

USER_NAME: Final = "picoclaw-sandbox"  # used if the image has such a user
FALLBACK_UID: Final = 61_900  # above what distributions give to people and services (systemd UIDS-GIDS)
MAX_ADOPTED: Final = 200_000  # entries of a workspace whose owner is changed at start
_ALL: Final = os.R_OK | os.W_OK | os.X_OK


@dataclass(frozen=True, slots=True)
class Identity:
    """uid and gid to drop to (None: stay), and whether that uid is used for nothing else."""

    uid: int | None = None
    gid: int | None = None
    own: bool = False


def choose(workspace: str, needed: list[tuple[str, int]], wanted: tuple[int, int] | None) -> Identity:
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
    """Return the paths that are there and that the uid may not read, such as those below ``/root``."""
    if identity.uid is None:
        return []
    needed = os.R_OK | os.X_OK
    return [path for path in paths if os.path.exists(path) and not _allows(identity, [(path, needed)])]


def why_no_uids(directory: str, first: int) -> str:
    """Return why principals, the first one's uid ``first``, can't have uids of their own; "" if they can."""
    if os.geteuid() != 0:
        return "the host is not root"
    if not first:
        return "no uids are free here: SANDBOX_UID_BASE must begin 30000 that /proc/self/uid_map has"
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    lacking = set(privileges.FOR_UIDS) - set(privileges.permitted(tuple(privileges.FOR_UIDS)))
    if lacking:
        return f"the host lacks {', '.join(privileges.FOR_UIDS[each] for each in sorted(lacking))}"
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
