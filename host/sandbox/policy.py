"""What the host allows its agents to touch: decided once, from settings, and never again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final

from shared.errors import Misconfigured

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one command and on what waits for the next, in bytes (docs/limits.md: what happens then)."""

    processes: int = 512
    memory: int = 1 << 30
    data: int = 4 << 30
    file_size: int = 1 << 30
    open_files: int = 4096
    output: int = 64 << 10
    temporary: int = 1 << 30
    worker_idle_s: float = 30.0
    reaper_idle_s: float = 30.0


OBEYED: Final = ("CLAUDE.md", "AGENTS.md", "AGENT.md", "MEMORY.md", "skills", ".claude")
OBEYED_AS_MAIN: Final = ("HEARTBEAT.md",)


class Trust(IntEnum):
    """What a conversation may change of the words that agents obey; fixed at its birth."""

    UNTRUSTED = 0
    TRUSTED = 1
    MAIN = 2


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """The sandbox's rules. Immutable; made by the host from settings.

    ``workspace``: directory that relative paths start from. ``read_paths``, ``write_paths``: further
    directories or anchored globs. ``skill_paths``: directories of skills, readable and executable, never
    writable. ``secret_paths``: what no mode opens (store, configuration). ``min_level``: below it file
    tools and exec are refused; ``max_level``: 2 does without namespaces. ``uid``, ``gid``: the identity
    commands get when the host is root; None chooses one. ``max_landlock_abi``: use no newer kernel
    feature than this ABI has (to try what an older kernel holds). ``obeyed``: names in the workspace that
    stand in every prompt, changed by trusted conversations alone; ``obeyed_as_main``: by the main one
    alone; ``read_only_because``: a sentence that says which setting decides. Raises ``Misconfigured`` if
    a secret lies inside the workspace or inside a directory of skills.
    """

    workspace: Path
    restrict_to_workspace: bool = True
    allow_read_outside_workspace: bool = False
    read_paths: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    skill_paths: tuple[Path, ...] = ()
    secret_paths: tuple[Path, ...] = ()
    exec_enabled: bool = True
    exec_timeout_ms: int = 60_000
    allow_network: bool = False
    deny_patterns: tuple[str, ...] = ()
    allow_patterns: tuple[str, ...] = ()
    min_level: int = 2
    max_level: int = 3
    uid: int | None = None
    gid: int | None = None
    limits: Limits = field(default_factory=Limits)
    time_zone: str = "UTC"
    path: str = DEFAULT_PATH
    max_landlock_abi: int | None = None
    obeyed: tuple[str, ...] = OBEYED
    obeyed_as_main: tuple[str, ...] = OBEYED_AS_MAIN
    read_only_because: str = ""

    def read_only(self, trust: Trust) -> tuple[str, ...]:
        """Return the names in the workspace that a conversation may read and not change."""
        if trust is Trust.MAIN:
            return ()
        return self.obeyed_as_main if trust is Trust.TRUSTED else (*self.obeyed, *self.obeyed_as_main)

    def __post_init__(self) -> None:
        workspace = self.workspace.resolve()
        for secret in self.secret_paths:
            if secret.resolve().is_relative_to(workspace):
                raise Misconfigured(f"{secret} must stay secret, but lies inside the workspace {workspace}")
            for skills in self.skill_paths:
                if secret.resolve().is_relative_to(skills.resolve()):
                    raise Misconfigured(f"{secret} must stay secret, but lies inside the skills {skills}")
