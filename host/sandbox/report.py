"""What the sandbox's self-test found at the start, and what of it the operator should mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
