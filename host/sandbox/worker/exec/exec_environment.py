"""What the commands of one reaper have in common: their root, and the rules of their Landlock domain.

It is made ahead of any request and becomes one conversation's with its first. As long as a command
leaves nothing in it, the conversation's next command finds it ready.
"""

import os
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Final

from ..confine import confine, grants, privileges
from ..confine.grants import Access
from ..confine.namespaces import PrivateRoot
from ..frames import DEVICES, Config, Place
from ..limits.quota import Quota
from ..names import Words
from .name_calls import NameCalls

_SOCKETS: Final = "/proc/1/net/sockstat"
_SOCKETS_LEFT: Final = re.compile(rb"(?:TCP|UDP): inuse [1-9]|TCP: .*\btw [1-9]")


class Environment:
    """Made with all rights that there will be; ``admit`` gives up the last of them.

    ``guarded``: its conversation may not change what is obeyed, so that the reaper makes and changes names
    for its commands. ``scoped``: ``kill(-1)`` reaches what is below the reaper and nothing else.
    """

    def __init__(self, config: Config, workspace: str, *, scoped: bool, guarded: bool = False) -> None:
        """Lay out what needs no request. Raises ``OSError``."""
        self.config = config
        self.guarded = guarded
        self.scoped = scoped
        self.place: Place | None = None
        self.settled = False
        self._workspace = workspace
        self.quota = Quota(config) if config.most_bytes else None
        self._root = PrivateRoot(config, workspace) if config.namespaces else None
        self._system = grants.system_grants(config)
        self._inodes: dict[str, tuple[int, int]] = {}  # of the system's files, which rules hold
        self._rules = confine.ruleset(config, network=config.allow_network or config.namespaces)

    @property
    def descriptors(self) -> list[int]:
        """What a launcher needs of what the reaper holds open."""
        return [] if self._rules is None else [self._rules.descriptor]

    def enter(self) -> None:
        """Make its root that of the reaper and the calling process, its launcher, who is process 1."""
        if self._root is not None:
            self._root.enter()

    def furnish(self) -> None:
        """Lay down the rules, in the root that the launcher has entered."""
        if self._root is not None:
            self._root.entered()
        self._inodes = self._allow(self._system)
        self._allow(grants.shared_grants(self.config, self._workspace))

    def _allow(self, more: Iterable[grants.Grant]) -> dict[str, tuple[int, int]]:
        return {} if self._rules is None else grants.add_rules(self._rules, more)

    def admit(self, place: Place) -> None:
        """Make it the conversation's who works in ``place``; it can't become another's."""
        if self.place is None:
            if self._root is not None:
                self._root.show(place)
                privileges.renounce()
            self._allow([grants.private_grant(place)])
            self.renew()
            self.place = place
        elif self.place != place:
            raise ValueError("the environment is another conversation's")

    def renew(self) -> None:
        """Follow what was replaced in the system while a command ran or nobody came; never in a root of our
        own.
        """
        if self._root is None and self._rules is not None:
            now = {grant: grants.inode(grant.path) for grant in self._system}
            self._inodes |= self._allow(
                grant for grant, there in now.items() if there and there != self._inodes.get(grant.path)
            )

    def settle_in(self) -> None:
        """Confine the calling process, a launcher, to it for good."""
        if self._rules is not None:
            self._rules.enforce()
        self.settled = True

    @cached_property
    def writable(self) -> list[str]:
        """The paths below which a command may change files."""
        assert self.place is not None  # noqa: S101 - asked once somebody is in
        return [g.path for g in grants.worker_grants(self.config, self.place) if g.access & Access.MAKE_REG]

    def name_calls(self) -> NameCalls | None:
        """Return who makes names for commands that may not themselves."""
        if not self.guarded or self.place is None:
            return None
        own = [path for path in (*grants.TERMINALS, grants.SHARED_MEMORY) if self.config.namespaces]
        devices = [*DEVICES, "/dev/full", "/dev/tty", *own]
        words = Words(self.place.workspace, self.place.words)
        return NameCalls([*self.writable, *own], devices, words)

    def is_clean(self) -> bool:
        """Return whether nothing is left that the next command would meet outside the conversation's files:
        no shared memory, and no socket that still keeps a port (proc_pid_net(5)).
        """
        if not self.config.namespaces:
            return True
        if os.listdir(grants.SHARED_MEMORY):
            return False
        if self.config.allow_network:
            return True
        with open(_SOCKETS, "rb", buffering=0) as file:
            return _SOCKETS_LEFT.search(file.read(4096)) is None
