"""What the supervisor decides before it serves; and the reapers that wait for the next command."""

import contextlib
import gc
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

from ..confine import confine, grants, namespaces, privileges, seccomp
from ..confine.workspaces import Places
from ..frames import Closed, Config, Frame, Place
from ..limits import tree
from . import reaper
from .children import Child, Children

PARALLEL_COMMANDS: Final = 8  # the kernel's own process limit, a backstop, allows so many at their limit


def configure(frame: Frame) -> tuple[Config, str]:
    """Give up what is needed no more; return the configuration, and why namespaces are not tried."""
    chosen = _identity(frame)
    skipped = privileges.unreachable(chosen, frame["skill_paths"])
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
        no_uids=privileges.why_no_uids(frame["principals_dir"], frame["first_uid"]),
    )
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{config.temporary}/{namespaces.ROOT}", 0o755)
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
    return config._replace(**fields)


def precompute(config: Config) -> None:
    """Compute what all children share, before they are forked."""
    for each in (config, config._replace(own_uid=True)):
        grants.system_grants(each)
    namespaces.layout(config)
    seccomp.command_filter(confine.filter_kind(config))
    seccomp.worker_filter()
    gc.collect()
    gc.freeze()


def why(report: Frame) -> str:
    """Return, in a few words, what a self-test with namespaces did not reach."""
    return ", ".join(report["missing"])[:200]


def _landlock_abi(frame: Frame) -> int:
    wanted = frame.get("max_landlock_abi")
    return grants.abi() if wanted is None else min(grants.abi(), wanted)


def _identity(frame: dict[str, Any]) -> privileges.Identity:
    needed: list[tuple[str, int]] = []
    for names, bits in (("read_paths", os.R_OK), ("write_paths", os.W_OK)):
        for path, _ in grants.expand(frame[names]):
            if os.path.exists(path):
                needed.append((path, bits))
    wanted = (frame["uid"], frame["gid"]) if frame.get("uid") is not None else None
    if wanted is None and not frame["restrict_to_workspace"]:
        return privileges.Identity()  # what is outside belongs to root
    return privileges.choose_identity(frame["workspace"], needed, wanted)


def _capabilities(chosen: privileges.Identity) -> tuple[int, ...]:
    """Return what the supervisor keeps. Without CAP_SETFCAP a user namespace could not have uid 0 in it
    (user_namespaces(7)), so commands that stay root's would have none.
    """
    stays_root = chosen.uid is None and os.geteuid() == 0
    more = (privileges.CAP_SETFCAP,) if stays_root else ()
    return (*privileges.SUPERVISOR_CAPABILITIES, *more)


def _process_allowance(chosen: privileges.Identity, processes: int) -> int:
    """RLIMIT_NPROC counts all processes of a uid: leave room for those that are not ours."""
    allowed = PARALLEL_COMMANDS * processes
    if chosen.own:
        return allowed
    return allowed + tree.tasks_of(os.geteuid() if chosen.uid is None else chosen.uid)


WARM: Final = 1
MAX_RESTING: Final = 8


class Reapers:
    """Forks them ahead of requests, and lends them out."""

    def __init__(self, children: Children, config: Config, workspace: str) -> None:
        self._children = children
        self._config = config
        self._workspace = workspace
        self._warm: list[Child] = []
        self._resting: dict[str, Child] = {}  # by conversation, last used last
        self._parent = os.getpid()

    def take(self, conversation: str, place: Place, config: Config) -> Child:
        """Return one for a conversation's command: its own, a warm or a new one. Raises ``OSError``."""
        child = self._fitting(conversation, place, config) or self.fork(
            place.workspace, config, guarded=bool(place.words)
        )
        child.conversation = conversation
        child.place = place
        return child

    def _fitting(self, conversation: str, place: Place, config: Config) -> Child | None:
        stamp = grants.stamp(config, place.workspace)
        for child in self._waiting(conversation, place):
            if child.stamp == stamp and child.place in (None, place) and child.config == config:
                self.lost(child)
                return child
            self._dismiss(child)  # what it was made for has been replaced
        return None

    def fork(self, workspace: str, config: Config, *, guarded: bool = False) -> Child:
        """Fork a new one; ``guarded``: for who may not change all of the workspace. Raises ``OSError``."""
        stamp = grants.stamp(config, workspace)
        seccomp.command_filter(confine.filter_kind(config, guarded=guarded))  # once, not in each
        child = self._children.fork(
            lambda channel: reaper.reap(channel, config, workspace, self._parent, guarded=guarded),
            config,
            kept=config.kept,
        )
        child.stamp, child.config = stamp, config
        return child

    def tried(self, places: Places) -> Frame:
        """Have a new one run the self-test, and return what came of it."""
        try:
            child = self.fork(self._workspace, self._config)
        except OSError as error:
            return {"fault": f"no process could be started: {error}"}
        waiting = select.poll()
        waiting.register(child.channel, select.POLLIN)
        try:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                port = listening.getsockname()[1]
                child.channel.send(confine.self_test_request(self._config, places, self._workspace, port))
                ended = waiting.poll(2 * confine.SELF_TEST_MS)
            return child.channel.receive() if ended else {"fault": "the self-test did not end"}
        except Closed:
            return {"fault": "the self-test died"}
        finally:
            self._children.kill(child)
            self._dismiss(child)

    def rest(self, child: Child) -> None:
        """Keep one whose environment is as it was for its conversation's next command."""
        self.forget(child.conversation)
        if len(self._resting) >= MAX_RESTING:
            self.forget(next(iter(self._resting)))
        child.used = time.monotonic()
        self._resting[child.conversation] = child

    def warm_up(self) -> None:
        """See that some are warm."""
        with contextlib.suppress(OSError):  # no process to be had at this moment: the next turn tries again
            while len(self._warm) < WARM:
                self._warm.append(self.fork(self._workspace, self._config))

    def retire_stale(self) -> None:
        """End the one that rests longest, if that is too long; a turn is often enough."""
        oldest = next(iter(self._resting.values()), None)
        if oldest is not None and oldest.used < time.monotonic() - self._config.reaper_idle_s:
            self._dismiss(oldest)

    def forget(self, conversation: str) -> None:
        """End what waits for a conversation."""
        child = self._resting.get(conversation)
        if child is not None:
            self._dismiss(child)

    def lost(self, child: Child) -> None:
        """One waits no longer."""
        if child in self._warm:
            self._warm.remove(child)
        if self._resting.get(child.conversation) is child:
            del self._resting[child.conversation]

    def _waiting(self, conversation: str, place: Place) -> Iterator[Child]:
        if conversation in self._resting:
            yield self._resting[conversation]
        if place.workspace == self._workspace and not place.words:
            yield from reversed(list(self._warm))

    def _dismiss(self, child: Child) -> None:
        """Close its channel, at which it ends."""
        self.lost(child)
        self._children.forget(child)
