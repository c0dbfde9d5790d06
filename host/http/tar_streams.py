"""A folder of a workspace on its way out as a tar archive, one file after the other as they are found."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from host.http.callers import VERBATIM
from host.http.file_requests import describing
from host.http.file_streams import Streams, pieces, refusals
from host.http.runs import until_gone
from host.ports import Sandbox, Workspace
from shared.errors import NotFound, PicoError

AT_ONCE: Final = 500
"""Names that are looked at before their files are sent."""
LEFT_OUT: Final = "LEFT-OUT.txt"
"""Stands last in an archive that lacks something."""
INCOMPLETE: Final = (
    b"This archive is incomplete: it has at most 100,000 names, and none that is not UTF-8 or "
    b"that may not be read. Links are left out of every archive.\n"
)
_END: Final = bytes(2 * tarfile.BLOCKSIZE)


class TarDownload(Response):
    """The files below a prefix as a tar archive. One that changes while it is read ends the answer short."""

    def __init__(self, streams: Streams, sandbox: Sandbox, workspace: Workspace, prefix: str) -> None:
        self.status_code = 200
        self.background = None
        name = prefix.strip("/").rpartition("/")[2] or "files"
        self.init_headers({**describing(f"{name}.tar"), "accept-ranges": "none"})
        self._streams = streams
        self._sandbox = sandbox
        self._workspace = workspace
        self._prefix = prefix
        self._held = contextlib.ExitStack()
        self._incomplete = False
        self._page: list[dict[str, Any]] = []

    async def begin(self, held: contextlib.ExitStack) -> None:
        """Look what there is, and let go of ``held`` in the end; raises NotFound where there is nothing."""
        await self._look("")
        self._held = held.pop_all() if self._page else self._held
        if not self._page:
            raise NotFound(f"Nothing has a path that begins with {self._prefix[:200]!r}.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive."""
        scope[VERBATIM] = True
        with self._held:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until_gone, receive, tasks.cancel_scope)
                if scope["method"] == "HEAD" or await self._send(send):
                    await send({"type": "http.response.body"})
                tasks.cancel_scope.cancel()

    async def _send(self, send: Send) -> bool:
        """Send entry after entry; returns whether all of it is sent."""
        while self._page:
            for entry in self._page[:AT_ONCE]:
                async for data in self._entry(entry):
                    if data is None:
                        return False
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            more = len(self._page) > AT_ONCE
            await self._look(self._page[AT_ONCE - 1]["path"] if more else None)
        size = len(INCOMPLETE)
        note = _header(LEFT_OUT, size) + INCOMPLETE + _padding(size) if self._incomplete else b""
        await send({"type": "http.response.body", "body": note + _END, "more_body": True})
        return True

    async def _look(self, after: str | None) -> None:
        if after is None:
            self._page = []
            return
        wanted = {"prefix": self._prefix, "after": after, "limit": AT_ONCE}
        with refusals():
            found = await self._sandbox.file(self._workspace, "list_files", wanted)
        self._page = found["files"]
        self._incomplete = self._incomplete or found["incomplete"]

    async def _entry(self, entry: dict[str, Any]) -> AsyncIterator[bytes | None]:
        """Yield the bytes of an entry; None: it changed, so what was sent of it is no archive."""
        if entry["type"] == "directory":
            yield _header(entry["path"], 0, entry["modified_ms"], directory=True)
        if entry["type"] != "file":
            return
        try:
            with refusals():
                found = await self._sandbox.file(self._workspace, "open_file", {"path": entry["path"]})
        except PicoError as error:
            # One that is gone meanwhile was never there.
            self._incomplete = self._incomplete or not isinstance(error, NotFound)
            return
        try:
            status = os.fstat(found["descriptor"])
            if not stat.S_ISREG(status.st_mode):
                return
            yield _header(entry["path"], status.st_size, status.st_mtime_ns // 10**6)
            sent = 0
            async for piece in pieces(self._streams, found["descriptor"], (0, status.st_size)):
                sent += len(piece)
                yield piece
            yield _padding(status.st_size) if sent == status.st_size else None
        finally:
            os.close(found["descriptor"])


def _header(path: str, size: int, modified_ms: int = 0, *, directory: bool = False) -> bytes:
    info = tarfile.TarInfo(path)
    info.size, info.mtime = size, modified_ms // 1000
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if directory else (tarfile.REGTYPE, 0o644)
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
