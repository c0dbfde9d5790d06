"""What keeps a process that holds secrets from being read by its neighbours."""

from __future__ import annotations

import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4


def hide_memory() -> None:
    """Keep this process's memory and first environment from others: not dumpable, no core files.

    prctl(2), PR_SET_DUMPABLE: other processes of the user can't read /proc/PID/environ and mem, nor trace it.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
