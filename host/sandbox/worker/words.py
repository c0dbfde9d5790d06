"""Paths in the workspace whose words are obeyed, which a conversation may read and not change."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from . import proc

READ_ONLY: Final = "is read-only in this conversation"


class Words:
    """What is obeyed, by names relative to the workspace; nothing without names."""

    def __init__(self, workspace: str, names: Iterable[str]) -> None:
        self._workspace = os.path.realpath(workspace)
        self._names = tuple(names)

    def __bool__(self) -> bool:
        return bool(self._names)

    def cover(self, path: str) -> bool:
        """Return whether changing a name, by its real path, would change what is obeyed: it is one of them,
        beneath or above one. Letter case is passed over, as some file systems do.
        """
        mine = f"{path.casefold()}/"
        return self.hold(path) or any(f"{theirs}/".startswith(mine) for theirs in self._paths())

    def hold(self, path: str) -> bool:
        """Return whether a file, by its real path, is one of them or beneath one."""
        mine = f"{path.casefold()}/"
        return any(mine.startswith(f"{theirs}/") for theirs in self._paths())

    def cover_entry(self, directory: int, name: str) -> bool:
        """Return ``cover`` of a name in a directory that is held open."""
        return bool(self._names) and self.cover(f"{real_path(directory)}/{name}")

    def _paths(self) -> Iterable[str]:
        """Yield them, and where links among them lead now."""
        for name in self._names:
            path = f"{self._workspace}/{name}"
            yield path.casefold()
            if os.path.islink(path):
                yield os.path.realpath(path).casefold()


def real_path(descriptor: int) -> str:
    """Return where an open file is."""
    return os.readlink(proc.path("self", "fd", descriptor))
