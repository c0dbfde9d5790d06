"""Seeing processes off that somebody owns."""

from __future__ import annotations

import anyio
from anyio.abc import Process


async def see_off(process: Process, within_s: float) -> None:
    """Return when the process has ended, by itself or killed after ``within_s``; not to be cancelled."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(within_s):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.aclose()
