"""What a process gives up before it sees input: capabilities, identity, the right to gain either back."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from pathlib import Path
from typing import Final

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
_LAST_CAPABILITY_FILE: Final = Path("/proc/sys/kernel/cap_last_cap")
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
        return int(_LAST_CAPABILITY_FILE.read_text())
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
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            mask = int(line.split()[1], 16)
            return tuple(c for c in wanted if mask >> c & 1)
    return ()


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
