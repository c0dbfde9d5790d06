"""What the supervisor decides before it serves: identity, kernel features, and all that children share."""

from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import replace
from typing import Any, Final

from ..config import Config
from ..confine import confine, grants, identity, landlock, private_root, privileges, seccomp
from ..frames import Frame
from ..limits import tree

PARALLEL_COMMANDS: Final = 8  # the kernel's own process limit, a backstop, allows so many at their limit


def configure(frame: Frame) -> tuple[Config, str]:
    """Give up what is needed no more; return the configuration, and why namespaces are not tried."""
    chosen = _identity(frame)
    skipped = identity.unreachable(chosen, frame["skill_paths"])
    frame["skill_paths"] = [path for path in frame["skill_paths"] if path not in skipped]
    privileges.drop_bounding_set()
    privileges.keep_capabilities(privileges.permitted(_capabilities(chosen)))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
    reason = "SANDBOX_MAX_LEVEL" if frame["max_level"] < 3 else ""
    # closed to all but those they are for, also where "outside" is open
    closed = (frame["temporary"], frame["principals_dir"], frame["workspace"])
    frame["secret_paths"] = [*frame["secret_paths"], *closed]
    config = Config.from_frame(
        frame,
        uid=chosen.uid,
        gid=chosen.gid,
        own_uid=chosen.own,
        skipped=tuple(skipped),
        landlock_abi=_landlock_abi(frame),
        namespaces=not reason,
        inner_uid=os.geteuid() if chosen.uid is None else chosen.uid,
        inner_gid=os.getegid() if chosen.gid is None else chosen.gid,
        uid_processes=_process_allowance(chosen, frame["processes"]),
        no_uids=identity.why_no_uids(frame["principals_dir"], frame["first_uid"]),
    )
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{config.temporary}/{private_root.ROOT}", 0o755)
    return config, reason


def for_principal(config: Config, allowance: Frame | None) -> Config:
    """Return what counts for the conversations of a principal, None: of the operator."""
    if allowance is None:
        return config
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in allowance.items()
    }
    uid = fields.pop("uid")
    del fields["apart"]
    if uid is not None and not config.no_uids:
        most = PARALLEL_COMMANDS * config.processes
        own = {"uid": uid, "gid": uid, "inner_uid": uid, "inner_gid": uid}
        fields |= {**own, "own_uid": True, "uid_processes": most}
    fields["skill_paths"] = tuple(path for path in fields["skill_paths"] if path not in config.skipped)
    return replace(config, **fields)


def precompute(config: Config) -> None:
    """Compute what all children share, before they are forked."""
    for each in (config, replace(config, own_uid=True)):
        grants.system_grants(each)
    private_root.layout(config)
    seccomp.command_filter(confine.filter_kind(config))
    seccomp.worker_filter()
    gc.collect()
    gc.freeze()


def why(report: Frame) -> str:
    """Return, in a few words, what a self-test with namespaces did not reach."""
    return ", ".join(report["missing"])[:200]


def _landlock_abi(frame: Frame) -> int:
    wanted = frame.get("max_landlock_abi")
    return landlock.abi() if wanted is None else min(landlock.abi(), wanted)


def _identity(frame: dict[str, Any]) -> identity.Identity:
    needed: list[tuple[str, int]] = []
    for names, bits in (("read_paths", os.R_OK), ("write_paths", os.W_OK)):
        for path, _ in grants.expand(frame[names]):
            if os.path.exists(path):
                needed.append((path, bits))
    wanted = (frame["uid"], frame["gid"]) if frame.get("uid") is not None else None
    if wanted is None and not frame["restrict_to_workspace"]:
        return identity.Identity()  # what is outside belongs to root
    return identity.choose(frame["workspace"], needed, wanted)


def _capabilities(chosen: identity.Identity) -> tuple[int, ...]:
    """Return what the supervisor keeps. Without CAP_SETFCAP a user namespace could not have uid 0 in it
    (user_namespaces(7)), so commands that stay root's would have none.
    """
    stays_root = chosen.uid is None and os.geteuid() == 0
    more = (privileges.CAP_SETFCAP,) if stays_root else ()
    return (*privileges.SUPERVISOR_CAPABILITIES, *more)


def _process_allowance(chosen: identity.Identity, processes: int) -> int:
    """RLIMIT_NPROC counts all processes of a uid: leave room for those that are not ours."""
    allowed = PARALLEL_COMMANDS * processes
    if chosen.own:
        return allowed
    return allowed + tree.tasks_of(os.geteuid() if chosen.uid is None else chosen.uid)
