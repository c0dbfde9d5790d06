"""The process that everything in the sandbox is below: started, waited for, cleaned up after."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import anyio

from host.sandbox.wire import Wire

PROGRAM: Final = Path(__file__).parent / "worker" / "main.py"
END_TIMEOUT_S: Final = 8.0


class Supervisor:
    """One supervisor, and the directory of the private directories. Raises ``OSError`` if it can't start."""

    def __init__(self, path: str) -> None:
        """Start it: nothing inherited but its socket, and an environment without secrets but PATH."""
        self.temporary = tempfile.mkdtemp(prefix="picoclaw-")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our own file and interpreter
                [sys.executable, "-I", "-S", "-E", str(PROGRAM), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8", "PATH": path},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        self.wire = Wire(ours)

    async def end(self) -> None:
        """Close the socket, wait for it to end what is below it, and clean up."""
        self.wire.close()
        await _wait(self.process)
        await anyio.to_thread.run_sync(_remove, self.temporary)


def _remove(directory: str) -> None:
    """Remove what the supervisor could not, having been killed; it removes everything itself when it ends."""
    with contextlib.suppress(OSError, RecursionError):
        Path(directory).chmod(0o700)
        shutil.rmtree(directory)


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process without a thread (pidfd_open(2)); kill it when it takes too long."""
    if process.poll() is not None:
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        with anyio.move_on_after(END_TIMEOUT_S):
            await anyio.wait_readable(descriptor)
        if process.poll() is None:
            process.kill()
            await anyio.wait_readable(descriptor)
            process.wait()
    finally:
        os.close(descriptor)
