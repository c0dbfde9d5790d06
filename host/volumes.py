"""The directories a host must be able to write, looked at before anything is opened."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import Misconfigured
from shared.settings import Settings


def make_volumes(settings: Settings) -> None:
    """Make the directories that are missing; raises Misconfigured with what mends one that can't be used."""
    volumes = {
        "STORE_DIR": settings.store_dir,
        "MEMORY_DIR": settings.memory_dir,
        "LOCAL_DB_PATH": settings.local_db_path.parent,
    }
    for name, path in volumes.items():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise Misconfigured(f"{name}: {path} is not a directory") from None
        except OSError as error:
            raise Misconfigured(f"{name}: {path} cannot be made ({error.strerror}). {_cure(path)}") from None
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise Misconfigured(f"{name}: {path} cannot be written. {_cure(path)}")


def _cure(path: Path) -> str:
    """Return whose the nearest directory is that exists, and what gives it to the host's user."""
    place = path
    while not place.is_dir() and place != place.parent:
        place = place.parent
    uid, gid = os.geteuid(), os.getegid()
    owner = place.stat().st_uid
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a read-only file system: mount a writable volume there"
    return (
        f"{place} belongs to uid {owner} and the host runs as uid {uid}: "
        f"run `chown -R {uid}:{gid} {place}` once, or start the host as uid {owner} "
        f"(docker run --user {owner}; in Kubernetes fsGroup: {gid})"
    )
