"""Workspaces and private directories: made for the sandbox's uid, removed with the conversation."""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH112, PTH116

from __future__ import annotations

import contextlib
import hashlib
import os

from .config import Config, Place
from .identity import Identity, adopt

_NAME_CHARS = 16


class Places:
    """Where each conversation works."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._places: dict[str, Place] = {}
        os.chmod(config.temporary, 0o711)  # noqa: S103 - others may pass through, not list

    def of(self, conversation: str, workspace: str) -> Place:
        """Return the place of a conversation; made at its first use. Raises ``OSError``."""
        known = self._places.get(conversation)
        if known is None or known.workspace != workspace:
            known = self._make(conversation, workspace)
            self._places[conversation] = known
        return known

    def _make(self, conversation: str, workspace: str) -> Place:
        name = hashlib.sha256(conversation.encode()).hexdigest()[:_NAME_CHARS]
        place = Place(workspace, f"{self._config.temporary}/{name}")
        if not os.path.isdir(workspace):
            os.makedirs(workspace, 0o755, exist_ok=True)
        self._take_over(workspace)
        for path in (place.temporary, place.home):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                if self._config.uid is not None and self._config.gid is not None:
                    os.chown(path, self._config.uid, self._config.gid)
        return place

    def _take_over(self, workspace: str) -> None:
        if self._config.own_uid and os.stat(workspace).st_uid == 0:
            adopt(workspace, Identity(self._config.uid, self._config.gid, own=True))

    def forget(self, conversation: str) -> None:
        """Remove a conversation's private directory."""
        place = self._places.pop(conversation, None)
        if place is not None:
            remove_tree(place.temporary)

    def remove_all(self) -> None:
        """Remove everything private."""
        self._places.clear()
        remove_tree(self._config.temporary)


def remove_tree(path: str) -> None:
    """Remove a directory without ever following a link; what can't be removed stays."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(path)


def _empty(directory: int) -> None:
    with contextlib.suppress(OSError):
        os.fchmod(directory, 0o700)
    with os.scandir(directory) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in names:
        with contextlib.suppress(OSError):
            if is_directory:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                try:
                    _empty(below)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
