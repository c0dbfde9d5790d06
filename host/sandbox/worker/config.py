"""What the host decided, as the supervisor holds it: read from the first frame, then immutable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
HOME: Final = "home"  # in the private directory
STREAMS: Final = ("/dev/stdin", "/dev/stdout", "/dev/stderr")


@dataclass(frozen=True, slots=True)
class Config:
    """The policy of the host and the identity that commands run under. Sizes in bytes.

    ``counted``, ``readable``, ``most_bytes``: see ``host.ports.Allowance``; empty for the operator's.
    ``page``: what holds the last count of these (``limits.quota``); ``is_full``: nothing is to be added.
    ``no_uids``: why principals can't have uids of their own.
    """

    restrict_to_workspace: bool
    allow_read_outside_workspace: bool
    read_paths: tuple[str, ...]
    write_paths: tuple[str, ...]
    skill_paths: tuple[str, ...]
    secret_paths: tuple[str, ...]
    allow_network: bool
    uid: int | None
    gid: int | None
    own_uid: bool
    skipped: tuple[str, ...]
    landlock_abi: int
    namespaces: bool
    inner_uid: int
    inner_gid: int
    temporary: str
    path: str
    time_zone: str
    processes: int
    memory: int
    data: int
    file_size: int
    open_files: int
    output: int
    temporary_bytes: int
    reaper_idle_s: float
    uid_processes: int
    no_uids: str = ""
    counted: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    most_bytes: int = 0
    page: int = -1
    is_full: bool = False

    @property
    def kept(self) -> tuple[int, ...]:
        """What its processes hold open of the supervisor's."""
        return () if self.page < 0 else (self.page,)

    @property
    def is_open(self) -> bool:
        """Whether files outside the workspace are to be reachable."""
        return not self.restrict_to_workspace or self.allow_read_outside_workspace

    @property
    def covers(self) -> bool:
        """Whether everything has a name in a command's root, and mounts cover the secrets there."""
        return self.namespaces and self.is_open

    @classmethod
    def from_frame(cls, frame: dict[str, Any], **decided: Any) -> Config:
        """Build it from the host's frame and what the supervisor found out itself."""
        fields = {name: frame[name] for name in cls.__slots__ if name in frame}
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists, **decided})


@dataclass(frozen=True, slots=True)
class Place:
    """Where one conversation works: the workspace and a private directory for HOME and TMPDIR.

    ``words``: names in the workspace that it may read and not change, as what they say is obeyed.
    """

    workspace: str
    temporary: str
    words: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """The private home directory, thrown away with the conversation."""
        return f"{self.temporary}/{HOME}"
