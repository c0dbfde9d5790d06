"""Where /proc is: under its own name, or for who has left it behind, in the working directory."""

from __future__ import annotations

import os

from .syscalls import held

_root = "/proc"


def path(*names: object) -> str:
    """Return the path of something in /proc as this process sees it."""
    return "/".join((_root, *map(str, names)))


def write(text: str, *names: object) -> None:
    """Write into something in /proc. Raises ``OSError``."""
    with held(os.open(path(*names), os.O_WRONLY | os.O_CLOEXEC)) as file:
        os.write(file, text.encode())


def take_along() -> None:
    """Keep this /proc for good, whatever becomes the root: it turns into the working directory."""
    global _root
    os.chdir("/proc")
    _root = "."
