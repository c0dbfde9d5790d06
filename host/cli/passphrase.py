"""Asking for the passphrase of sealed secrets, without echo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from getpass import getpass


def passphrase_asker() -> Callable[[], str | None] | None:
    """Return what asks the person at the terminal, or None when there is none."""
    return _ask if sys.stdin.isatty() else None


def _ask() -> str | None:
    try:
        return getpass("Passphrase of the encrypted secrets: ")
    except EOFError:
        return None
