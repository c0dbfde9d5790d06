"""Which files the tools take: ordinary ones of a single name."""

from __future__ import annotations

import os
import stat
from typing import Any

from .names import Refused, quoted

Answer = dict[str, Any]


def kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def require_plain(path: str, status: os.stat_result, *, hard_links: bool = False) -> None:
    """Refuse what is no ordinary file, and hard links unless welcome: their other name may lie outside."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused(f"{quoted(path)} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{quoted(path)} is not a regular file ({kind_of(status.st_mode)})")
    if status.st_nlink > 1 and not hard_links:
        raise Refused(f"{quoted(path)} has several hard links, one of which may lie outside the workspace")
