"""Where /proc is: under its own name, or for who has left it behind, in the working directory."""

# Raw paths on purpose: what is looked at here is the kernel's, not a person's.
from __future__ import annotations

import os

_root = "/proc"


def path(*names: object) -> str:
    """Return the path of something in /proc as this process sees it."""
    return "/".join((_root, *map(str, names)))


def take_along() -> None:
    """Keep this /proc for good, whatever becomes the root: it turns into the working directory."""
    global _root
    os.chdir("/proc")
    _root = "."
