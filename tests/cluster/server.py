"""A PostgreSQL of a test's own, to be stopped and started."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

SCRIPT: Final = Path(__file__).parent.parent.parent / ".ci" / "postgres"


class Server:
    """One server on a directory; fsync is on, as it is where it matters."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = ""

    def start(self) -> None:
        """Start it; the first time it is made."""
        self.url = self._do("start", "fsync=on")

    @property
    def socket(self) -> tuple[str, str]:
        """Return the directory and the port of its socket, where the superuser needs no password."""
        return str(self._directory), (self._directory / "port").read_text().strip()

    @property
    def process(self) -> psutil.Process:
        """Return its main process, the parent of all others."""
        return psutil.Process(int((self._directory / "data" / "postmaster.pid").read_text().split()[0]))

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is a crash."""
        self._do("stop", mode)

    def remove(self) -> None:
        """Stop it and remove its files."""
        self._do("remove")

    def _do(self, action: str, *arguments: str) -> str:
        done = subprocess.run(
            [SCRIPT, action, self._directory, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()


@contextlib.contextmanager
def running_server(directory: Path) -> Iterator[Server]:
    """Give a server that runs while the block does."""
    server = Server(directory)
    server.start()
    try:
        yield server
    finally:
        server.remove()
