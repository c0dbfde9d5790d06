"""Who each principal is, where it works, and with what, as the parts of this host ask for it.

The operator's workspace is MEMORY_DIR, with all that the settings allow. Others have a directory with a
random name in PRINCIPALS_DIR, a uid of their own where the host is root, and of the operator's servers, paths
and network what their grants name.
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from host.ports import Allowance, SandboxFault, Trust, Workspace
from host.sandbox.client import HOST, Sandbox
from host.sandbox.policy import SandboxPolicy
from host.skills.catalogue import built_in_dir
from host.skills.knowledge import Knowledge, Look
from host.volumes import Looks
from shared.errors import Misconfigured, NotFound, Suspended
from shared.principals import OPERATOR, Principal, PrincipalStatus, stored_name
from shared.settings import Settings
from shared.store.store import Store
from shared.values import Conversation, Lease

FRESH_S: Final = 1.0
MOST: Final = 4096
THE_OPERATOR: Final = Principal(OPERATOR, OPERATOR, directory="", created_at=0)


class PrincipalCache:
    """Each is asked for anew once a second at most, and at once after a change on this host (``forget``)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[float, Principal]] = {}
        self._others = False
        self._counted = 0.0
        self._changed = anyio.Event()

    async def get(self, principal_id: str) -> Principal:
        """Return a principal, also one that is suspended or going. The operator costs nothing.

        Raises NotFound.
        """
        if principal_id == OPERATOR:
            return THE_OPERATOR
        asked, found = self._known.get(principal_id, (0.0, None))
        if found is None or time.monotonic() - asked > FRESH_S:
            found = (await self.some([principal_id])).get(principal_id)
            if found is None:
                raise NotFound(f"principal not found: {principal_id}")
        return found

    async def some(self, principal_ids: Sequence[str]) -> dict[str, Principal]:
        """Ask for some principals anew, and return those that there are."""
        asked = time.monotonic()
        found = await self._store.principals.some(principal_ids)
        for each in found.values():
            self.keep(each, asked)
        return found

    def keep(self, principal: Principal, asked: float | None = None) -> None:
        """Take note of a principal as the store has just shown it."""
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[principal.id] = asked or time.monotonic(), principal

    async def active(self, principal_id: str) -> Principal:
        """Return a principal that may act; raises Suspended, NotFound."""
        found = await self.get(principal_id)
        if found.status is not PrincipalStatus.ACTIVE:
            raise Suspended(principal_id)
        return found

    async def is_active(self, principal_id: str) -> bool:
        """Return whether there is such a principal and it may act."""
        try:
            await self.active(principal_id)
        except (NotFound, Suspended):
            return False
        return True

    async def are_there(self) -> bool:
        """Return whether the store has other principals than the operator."""
        if not self._others and time.monotonic() - self._counted > FRESH_S:
            self._counted = time.monotonic()
            self._others = len((await self._store.principals.page(limit=2, cursor=None)).items) > 1
        return self._others

    def forget(self, principal_id: str) -> None:
        """Ask anew at the next ``get``: it was changed on this host."""
        self._known.pop(principal_id, None)
        self.look()

    def look(self) -> None:
        """Let all who wait for changes look at once."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self, within_s: float) -> None:
        """Return once a principal or a token was changed on this host, or so many seconds later."""
        with anyio.move_on_after(within_s):
            await self._changed.wait()


COUNTED_WITHIN_S: Final = 60.0
MOST_KNOWN: Final = 2048
"""Principals whose persona, memory and skills are kept at hand."""


FILES: Final = "The file system of the workspace"


def _open(directory: Path) -> None:
    """Ask a directory's file system, which a look at its name needn't do; what it says is told later."""
    with suppress(OSError), os.scandir(directory):
        pass


@dataclass(frozen=True, slots=True)
class Space:
    """What a run works with: whose it is, where, and what its principal knows."""

    principal: Principal
    workspace: Workspace
    is_main: bool
    knowledge: Knowledge


async def refuse_loosened(policy: SandboxPolicy, store: Store) -> None:
    """Stop a start that would leave principals open to each other. Raises Misconfigured."""
    names = policy.loosened
    if names and len((await store.principals.page(limit=2, cursor=None)).items) > 1:
        raise Misconfigured(f"{names}: not with principals in the store, who would see each other's files")


class Spaces:
    """Spaces by principal. One per host."""

    def __init__(self, settings: Settings, sandbox: Sandbox, principals: PrincipalCache) -> None:
        self._settings = settings
        self._sandbox = sandbox
        self._principals = principals
        self._by_conversation = settings.agents.defaults.workspace_scope == "conversation"
        self._known: OrderedDict[tuple[str, int], Knowledge] = OrderedDict()
        self._looks = Looks(of=FILES)
        self._looks_at_operators = Looks(of=FILES)
        self.operators = Knowledge(
            self._look(Workspace(HOST, sandbox.root, Trust.MAIN)),
            workspace_dir=settings.memory_dir,
            built_in_dir=built_in_dir(settings),
            org_dir=settings.org_dir,
            skills_dir=settings.skills_dir,
            by_path=self._by_conversation,
        )

    def of_run(self, lease: Lease, parent_id: str | None, principal: Principal) -> Space:
        """Return the space of a run; that of a task is the one of the task's conversation (``parent_id``)."""
        owner = parent_id or lease.conversation_id
        workspace, is_main = self._of(principal, lease.conversation_id, owner, trusted=lease.trusted)
        knowledge = self.operators if principal.is_operator else self._knowledge(principal)
        return Space(principal, workspace, is_main, knowledge)

    async def of_conversation(self, conversation: Conversation) -> Workspace:
        """Return where a conversation's runs work, for whoever needs its files now; raises Unavailable."""
        principal = await self._principals.get(conversation.principal_id)
        mine = conversation.id, conversation.owner_id
        workspace = self._of(principal, *mine, trusted=conversation.trusted)[0]
        await self._require(workspace.root)
        return workspace

    async def require(self, principal_id: str, conversation_id: str) -> None:
        """Raise Unavailable if the file system hangs on which a conversation works."""
        await self._require(self._root(await self._principals.get(principal_id), conversation_id)[0])

    async def _require(self, root: Path) -> None:
        looks = self._looks_at_operators if root == self._sandbox.root else self._looks
        await looks(partial(_open, root))

    def _of(
        self, principal: Principal, conversation_id: str, owner: str, *, trusted: bool
    ) -> tuple[Workspace, bool]:
        is_main = self._is_main(principal, owner)
        root, own = self._root(principal, owner)
        # Nothing in a conversation's own directory is obeyed.
        trust = Trust.MAIN if is_main or own else Trust.TRUSTED if trusted else Trust.UNTRUSTED
        return Workspace(conversation_id, root, trust, self._allowance(principal, own=own)), is_main

    async def of_host(
        self, who: str, principal_id: str, conversation_id: str | None = None, trust: Trust = Trust.UNTRUSTED
    ) -> Workspace:
        """Return where the host itself, as ``who``, reads and writes for a conversation or a principal."""
        principal = await self._principals.get(principal_id)
        owner = conversation_id or stored_name(principal.id, self._settings.main_conversation_id)
        root, own = self._root(principal, owner)
        name = who if principal.is_operator and not own else f"{who} {root.name}"
        return Workspace(name, root, trust, self._allowance(principal, own=own))

    async def of_kept(self, who: str, principal_id: str, conversation_id: str) -> Workspace:
        """Return where the host keeps what a conversation's model is shown, out of every run's reach."""
        principal = await self._principals.get(principal_id)
        root = self._kept(principal, conversation_id)
        return Workspace(f"{who} {root.name}", root, allowance=self._allowance(principal, own=True))

    async def forget_conversation(self, principal_id: str, conversation_id: str) -> None:
        """Remove the directories of a conversation that is gone, if it had any. Raises ``SandboxFault``."""
        principal = await self._principals.get(principal_id)
        root, own = self._root(principal, conversation_id)
        paths = [str(self._kept(principal, conversation_id)), *([str(root)] if own else [])]
        there = await self._looks(lambda: any(map(os.path.lexists, paths)))
        if there and not await self._sandbox.remove(paths):
            raise SandboxFault("something is left of its files")

    async def used(self, principal: Principal) -> int | None:
        """Return the bytes that a principal's files take on this host, as they were a minute ago at most.

        None: nobody counts the operator's, or the sandbox can't say.
        """
        if principal.is_operator:
            return None
        if not await self._has_files(principal):
            return 0
        workspace = await self.of_host(HOST, principal.id, trust=Trust.MAIN)
        try:
            found = await self._sandbox.file(workspace, "usage", {"max_age_s": COUNTED_WITHIN_S})
        except SandboxFault:
            return None
        used = found.get("used")
        return used if isinstance(used, int) else None

    async def are_there(self) -> bool:
        """Return whether this host has ever had files of another principal than the operator."""
        return await self._looks(partial(os.path.isdir, self._settings.principals_dir))

    async def forget(self, principal: Principal) -> bool:
        """End what works for a principal on this host, and remove its files; False if some are left.

        Raises ``SandboxFault``.
        """
        assert not principal.is_operator  # noqa: S101 - the operator's files are nobody's to remove
        for key in [key for key in self._known if key[0] == principal.id]:
            del self._known[key]
        self._principals.forget(principal.id)
        return not await self._has_files(principal) or await self._sandbox.remove(
            [*map(str, self.paths(principal))]
        )

    async def _has_files(self, principal: Principal) -> bool:
        return await self._looks(lambda: any(map(os.path.lexists, self.paths(principal))))

    def paths(self, principal: Principal) -> tuple[Path, Path]:
        """Return the directories of this host that hold all files of a principal."""
        return self._directory(principal), self._conversations(principal)

    def _is_main(self, principal: Principal, owner: str) -> bool:
        return owner == stored_name(principal.id, self._settings.main_conversation_id)

    def _directory(self, principal: Principal) -> Path:
        if principal.is_operator:
            return self._sandbox.root
        return self._settings.principals_dir / principal.directory

    def _conversations(self, principal: Principal) -> Path:
        """Return where its conversations' own directories are: beside the principal's, in which its agents
        could put links in their places.
        """
        return self._settings.principals_dir / f"{principal.directory or OPERATOR}.conversations"

    def _root(self, principal: Principal, owner: str) -> tuple[Path, bool]:
        """Return where a conversation works, and whether that is a directory of its own."""
        if not self._by_conversation or self._is_main(principal, owner):
            return self._directory(principal), False
        return self._own(principal, owner), True

    def _own(self, principal: Principal, conversation_id: str) -> Path:
        key = principal.directory.encode()[:64]
        name = hashlib.blake2b(conversation_id.encode(), key=key, digest_size=16)
        return self._conversations(principal) / name.hexdigest()

    def _kept(self, principal: Principal, conversation_id: str) -> Path:
        return self._own(principal, conversation_id).with_suffix(".kept")

    def _allowance(self, principal: Principal, *, own: bool) -> Allowance | None:
        """Return what counts in place of the policy; ``own``: in a conversation's own directory."""
        if principal.is_operator and not own:
            return None
        policy = self._sandbox.policy
        directory = self._directory(principal)
        operators = {"read_paths": policy.read_paths, "write_paths": policy.write_paths}
        granted = principal.terms.grants
        if principal.is_operator:
            granted = {**operators, "skills": True, "network": True}
        words = (name for name in (*policy.obeyed, *policy.obeyed_as_main) if own and "/" not in name)
        without = set() if granted.get("skills") else {self._settings.skills_dir}
        return Allowance(
            uid=principal.uid,
            counted=(str(directory), str(self._conversations(principal))),
            readable=tuple(str(directory / name) for name in words),
            skill_paths=tuple(str(path) for path in policy.skill_paths if path not in without),
            allow_network=policy.allow_network and bool(granted.get("network")),
            most_bytes=(principal.terms.workspace_mb or 0) << 20,
            apart=not principal.is_operator,
            **{
                name: tuple(sorted(set(paths) & set(granted.get(name, ()))))
                for name, paths in operators.items()
            },
        )

    def _knowledge(self, principal: Principal) -> Knowledge:
        key = principal.id, principal.revision
        known = self._known.get(key)
        if known is None:
            directory = self._directory(principal)
            workspace = Workspace(
                f"{HOST} {directory.name}", directory, Trust.MAIN, self._allowance(principal, own=False)
            )
            shelved = bool(principal.terms.grants.get("skills"))
            known = self.operators.of(self._look(workspace), directory, shelved=shelved)
            self._known[key] = known
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known

    def _look(self, workspace: Workspace) -> Look:
        return partial(self._sandbox.survey, workspace)
