"""How long a file worker may work at one request."""

from __future__ import annotations

import signal
from typing import Any, Final

PROCESSOR_S: Final = 10.0
ELAPSED_S: Final = 20.0  # less than the host waits


class TooLong(BaseException):
    """The time is up, and nothing has been changed. No ``except`` for faults catches it."""


def settle() -> None:
    """Have ``begin`` work in this process."""
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, _stop)


def begin(processor_s: float) -> None:
    """Raise ``TooLong`` in the main thread when time is up, until ``end``."""
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, ELAPSED_S)


def end() -> None:
    """Let what follows be done to its end: it changes something, or nothing follows."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, frame: Any) -> None:
    raise TooLong
