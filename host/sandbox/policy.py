"""What the host allows its agents to touch, decided once from settings; and what the self-test found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from host.ports import Allowance, Trust
from shared.errors import Misconfigured
from shared.settings import Settings

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
    temporary_bytes: int = 1 << 30
    worker_idle_s: float = 30.0
    reaper_idle_s: float = 30.0


OBEYED: Final = ("CLAUDE.md", "AGENTS.md", "AGENT.md", "MEMORY.md", "skills", ".claude")
OBEYED_AS_MAIN: Final = ("HEARTBEAT.md",)
READ_ONLY_RULE: Final = (
    "What agents obey (persona, memory, skills) is changed by conversations that API_TOKEN or another token "
    "for chats began and by private chats of a channel's owners; HEARTBEAT.md by the main conversation, "
    "where the heartbeat is on."
)


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
    alone; ``read_only_because``: a sentence that says which setting decides. ``principals``: where their
    directories are; ``isolation``: how far apart they must be; ``uids``: those that they may have. Raises
    ``Misconfigured`` if a secret lies inside the workspace or inside a directory of skills, or where the
    workspace and the directory of principals don't lie apart.
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
    strict_guard: bool = False
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
    principals: Path | None = None
    isolation: Literal["uid", "weak"] = "uid"
    uids: range = range(0)

    @property
    def principals_dir(self) -> Path:
        """Where the directories of principals are."""
        return self.principals or self.workspace.parent / "principals"

    @property
    def loosened(self) -> str:
        """Which settings would leave principals open to each other, "" if none does."""
        named = {
            "restrict_to_workspace: false": not self.restrict_to_workspace,
            "allow_read_outside_workspace: true": self.allow_read_outside_workspace,
            "SANDBOX_MIN_LEVEL=0": self.min_level == 0,
        }
        return ", ".join(name for name, is_so in named.items() if is_so)

    def within(self, allowance: Allowance) -> SandboxPolicy:
        """Return what counts in place of this one; it is the same for all who have the same grants."""
        read = (*allowance.read_paths, *allowance.readable)
        return self._with(read, allowance.write_paths, allowance.skill_paths, allowance.allow_network)

    @lru_cache  # noqa: B019 - there is one policy
    def _with(self, *granted: Any) -> SandboxPolicy:
        read, write, skills, network = granted
        paths = {"read_paths": read, "write_paths": write, "skill_paths": tuple(map(Path, skills))}
        return replace(self, **paths, allow_network=network)

    def read_only(self, trust: Trust) -> tuple[str, ...]:
        """Return the names in the workspace that a conversation may read and not change."""
        if trust is Trust.MAIN:
            return ()
        return self.obeyed_as_main if trust is Trust.TRUSTED else (*self.obeyed, *self.obeyed_as_main)

    def frame(self, temporary: str) -> dict[str, Any]:
        """Return what the supervisor is told; ``temporary`` is the directory of the private directories."""
        return {
            **{name: value for name, value in asdict(self).items() if name not in _HOSTS_OWN},
            **asdict(self.limits),
            "first_uid": self.uids.start,
            "temporary": temporary,
            "gid": self.uid if self.gid is None else self.gid,
            "workspace": str(self.workspace),
            "principals_dir": str(self.principals_dir),
            "skill_paths": [str(path) for path in self.skill_paths],
            "secret_paths": [str(path) for path in self.secret_paths],
        }

    def __post_init__(self) -> None:
        workspace, principals = self.workspace.resolve(), self.principals_dir.resolve()
        if workspace.is_relative_to(principals) or principals.is_relative_to(workspace):
            raise Misconfigured(f"PRINCIPALS_DIR: {principals} and the workspace {workspace} must lie apart")
        for secret in self.secret_paths:
            if secret.resolve().is_relative_to(workspace):
                raise Misconfigured(f"{secret} must stay secret, but lies inside the workspace {workspace}")
            for skills in self.skill_paths:
                if secret.resolve().is_relative_to(skills.resolve()):
                    raise Misconfigured(f"{secret} must stay secret, but lies inside the skills {skills}")


_HOSTS_OWN: Final = {"uids", "principals", "isolation"}


def principal_uids(base: int | None) -> range:
    """Return the uids that principals get: ``base`` and the next, or those that nobody else uses here.

    Systemd gives 61184 to 65519 to services that have none, so they are second choice
    (https://systemd.io/UIDS-GIDS/); user namespaces of containers often end at 65535. Empty if no file could
    have them.
    """
    lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    mapped = [(int(first), int(first) + int(count)) for first, _, count in map(str.split, lines)]
    wanted = [range(70_000, 100_000), range(61_901, 65_520)]
    if base is not None:
        wanted = [range(base, base + 30_000)]
    fits = (uids for uids in wanted if any(a <= uids.start and uids.stop <= b for a, b in mapped))
    return next(fits, range(0)) if os.geteuid() == 0 else range(0)


def secret_paths(settings: Settings) -> tuple[Path, ...]:
    """Return what stays closed in every mode: the store, the configuration, the home they live in."""
    database = settings.local_db_path
    places = (settings.store_dir, database.parent, database.resolve().parent)
    return (*places, settings.home, settings.config_dir)


def obeyed_names(settings: Settings) -> tuple[str, ...]:
    """Return what stands in every prompt, or is loaded on its word, by its name in the workspace."""
    names = list(OBEYED)
    workspace, skills = settings.memory_dir.resolve(), settings.skills_dir.resolve()
    if skills != workspace and skills.is_relative_to(workspace):
        names.append(str(skills.relative_to(workspace)))
    if not settings.heartbeat.enabled:  # what lies there is obeyed once it is
        names += OBEYED_AS_MAIN
    return tuple(dict.fromkeys(names))


def sandbox_policy(settings: Settings, skill_paths: tuple[Path, ...]) -> SandboxPolicy:
    """Return what the settings let the sandbox reach; the store and the configuration stay closed."""
    defaults, tools = settings.agents.defaults, settings.tools
    return SandboxPolicy(
        workspace=settings.memory_dir,
        restrict_to_workspace=defaults.restrict_to_workspace,
        allow_read_outside_workspace=defaults.allow_read_outside_workspace,
        read_paths=tuple(tools.allow_read_paths),
        write_paths=tuple(tools.allow_write_paths),
        skill_paths=skill_paths,
        secret_paths=secret_paths(settings),
        exec_enabled=tools.exec.enabled,
        exec_timeout_ms=tools.exec.timeout_seconds * 1000,
        allow_network=tools.exec.allow_network,
        strict_guard=tools.exec.guard == "strict",
        deny_patterns=tuple(tools.exec.custom_deny_patterns),
        allow_patterns=tuple(tools.exec.custom_allow_patterns),
        min_level=settings.sandbox_min_level,
        max_level=settings.sandbox_max_level,
        time_zone=settings.timezone,
        obeyed=obeyed_names(settings),
        obeyed_as_main=OBEYED_AS_MAIN if settings.heartbeat.enabled else (),
        read_only_because=" ".join((READ_ONLY_RULE, *settings.channels.without_owners())),
        principals=settings.principals_dir,
        isolation=settings.principals.isolation,
        uids=principal_uids(settings.sandbox_uid_base),
    )


def commands_own(workspace: Path) -> bool:
    """Return whether a workspace belongs to the uid of its commands: root writes it through them alone, where
    it has no right to override permissions.
    """
    return os.geteuid() == 0 and workspace.stat().st_uid != 0


SEEN: Final = ("command lines of all processes", "whether a path that is known exists, and its size")
"""What commands see of others without namespaces (docs/sandbox.md)."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How far principals are apart.

    ``uid``: by namespaces, or by uids of their own; ``weak``: by Landlock alone, for a ``reason``.
    ``visible``: what commands of one still see of the others.
    """

    level: Literal["uid", "weak", "none"]
    reason: str = ""
    visible: tuple[str, ...] = ()


AS_ROOT: Final = (
    "SECURITY: commands run as root, without capabilities: a uid of their own cannot reach the workspace "
    "and all allowed paths. Move the home to /var/lib/picoclaw, or run `chmod o+x` on the folders above it"
)


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """What the start-up self-test found.

    ``level``: 0 nothing, 1 without file rules, 2 full, 3 with namespaces. ``layers``: each layer and whether
    it held when tried. ``missing``: the names of those that did not, or why there is no sandbox at all.
    ``uid``: whose commands are. ``skipped``: folders of skills that this uid cannot read. ``lifted``: the
    operator wants what is the host's user's to be within reach. ``tested``: it has ended. ``no_uids``: why
    principals can't have uids of their own, "" if they can.
    """

    level: int
    landlock_abi: int = 0
    layers: Mapping[str, bool] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    uid: int | None = None
    skipped: tuple[str, ...] = ()
    lifted: bool = False
    tested: bool = True
    no_uids: str = ""

    @property
    def own_uid(self) -> bool:
        """Whether commands run as a uid that is used for nothing else."""
        return self.layers.get("own_uid", False)

    @property
    def isolation(self) -> Isolation:
        """How far principals would be apart."""
        if self.level < 2:
            return Isolation("none", f"the sandbox reached level {self.level} ({', '.join(self.missing)})")
        if self.level == 2 and self.no_uids:
            why = f"{self.no_uids}, and level 3 is not reached"
            return Isolation("weak", f"commands of all principals have one uid: {why}", SEEN)
        return Isolation("uid", visible=SEEN if self.level == 2 else ())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should mend, as sentences."""
        unread = [
            f"The skills in {path} are left out: commands run as uid {self.uid}, which cannot read them. Run "
            f"`chmod -R o+rX {path}` and `chmod o+x` on the folders above it, or move it"
            for path in self.skipped
        ]
        return (*unread, AS_ROOT) if self.uid == 0 and not self.lifted else tuple(unread)


def report_of(value: Any, *, lifted: bool) -> SandboxReport:
    """Read the supervisor's report; ``lifted``: see ``SandboxReport``."""
    lists = {name: tuple(value[name]) for name in ("missing", "skipped")}
    return SandboxReport(**{**value, **lists}, lifted=lifted)
