"""What processes need that hold secrets or own other processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anyio.abc import Process

PR_SET_DUMPABLE: Final = 4


def not_dumpable() -> None:
    """Keep this process's memory and first environment from others: not dumpable, no core files.

    prctl(2), PR_SET_DUMPABLE: other processes of the user can't read /proc/PID/environ and mem, nor trace it.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


async def terminate(process: Process, within_s: float) -> None:
    """Return when the process has ended, by itself or killed after ``within_s``; not to be cancelled."""
    import anyio  # not at the top: `picoclaw supervise` lives without it

    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(within_s):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()
