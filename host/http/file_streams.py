"""The bytes of files between a client and a descriptor that the sandbox opened.

They pass in pieces, one at a time in each direction and off the event loop: a large file costs no memory, and
a client that is slow holds one of its principal's few streams and nothing else.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from host.http.bodies import PIECE, LentBody
from host.http.callers import VERBATIM
from host.http.runs import until_gone
from host.ports import Sandbox, SandboxFault, Workspace
from host.telemetry import Metrics
from shared import errors

MOST_OF_ONE: Final = 4
MOST: Final = 64
_THREADS: Final = 8

_REFUSALS: Final[Mapping[str, type[errors.PicoError]]] = {
    "ENOENT": errors.NotFound,
    "ENOTDIR": errors.NotFound,
    "EACCES": errors.Forbidden,
    "EPERM": errors.Forbidden,
    "EROFS": errors.ReadOnly,
    "read_only": errors.ReadOnly,
    "is_directory": errors.IsDirectory,
    "ENOTEMPTY": errors.NotEmpty,
    "EEXIST": errors.Exists,
    "precondition_failed": errors.PreconditionFailed,
    "workspace_full": errors.WorkspaceFull,
    "ENOSPC": errors.DiskFull,
    "EDQUOT": errors.DiskFull,
}
"""What the sandbox's codes are over HTTP; another one is a path that can't be used."""
_OF_THE_DISK: Final = frozenset(
    {"EIO", "ESTALE", "ENOTCONN", "ENODEV", "EREMOTEIO", "ETIMEDOUT", "EHOSTDOWN", "EUCLEAN"}
    | {"EMFILE", "ENFILE", "ENOMEM", "EBUSY"}
)
"""Codes of a disk that fails or is away: nothing is wrong with the request."""

T = TypeVar("T")


class Streams:
    """The uploads and downloads at work, few enough for a host and for each principal."""

    def __init__(self, counts: Metrics) -> None:
        self.counts = counts
        self._open: Counter[str] = Counter()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self.hashing = ThreadPoolExecutor(_THREADS)
        """Beside the threads that write, one for each at most."""

    @contextlib.contextmanager
    def one(self, principal_id: str) -> Iterator[None]:
        """Count a stream while it lasts; raises Unavailable ``busy``."""
        if self._open[principal_id] >= MOST_OF_ONE or self._open.total() >= MOST:
            self.counts.files_refused["busy"] += 1
            sentence = f"{MOST_OF_ONE} files of a principal and {MOST} of a host move at once; try again."
            raise errors.Unavailable(sentence, code="busy", retry_after=1)
        self._open[principal_id] += 1
        self.counts.file_streams += 1
        try:
            yield
        except errors.PicoError as error:
            self.counts.files_refused[error.code] += 1
            raise
        finally:
            self.counts.file_streams -= 1
            self._open[principal_id] -= 1
            self._open += Counter()  # without those that have none

    async def thread(self, work: partial[T]) -> T:
        """Run what may wait for a disk; it is done before a cancelled caller goes on."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise what the sandbox says about files as errors of the API."""
    try:
        yield
    except SandboxFault as fault:
        raise _error(str(fault).replace("./", "", 1), fault.code) from None


def _error(sentence: str, said: str) -> errors.PicoError:
    code, _, field = said.partition("@")
    if kind := _REFUSALS.get(code):
        return kind(sentence)
    if not code or code in _OF_THE_DISK:
        return errors.Unavailable(sentence, retry_after=1)
    return errors.InvalidInput(f"{field or 'path'}: {sentence}")


def require_size(size: int, most: int) -> None:
    """Raise FileTooLarge for more than ``most`` bytes."""
    if size > most:
        raise errors.FileTooLarge(f"The file is larger than {most >> 20} MiB (files.max_mb).")


def etag_of(descriptor: int) -> str:
    """Return the ETag of an open file, as the worker makes it (``transfer.etag_of``)."""
    status = os.fstat(descriptor)
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(f"{part:x}" for part in parts)


class Upload:
    """A file on its way in: without a name until it is whole. Made by ``uploading``."""

    def __init__(self, streams: Streams, sandbox: Sandbox, workspace: Workspace, most: int) -> None:
        self._streams = streams
        self._sandbox = sandbox
        self._workspace = workspace
        self._most = most
        self._hash = hashlib.sha256()
        self._waiting = bytearray()
        self._written = 0
        self._reserved = 0
        self._begun: dict[str, Any] = {}

    @property
    def size(self) -> int:
        """The bytes of what has come."""
        return self._written + len(self._waiting)

    @property
    def sha256(self) -> str:
        """The digest of what has come, in hexadecimal."""
        return self._hash.hexdigest()

    async def begin(self, wanted: Mapping[str, Any]) -> None:
        """Open it; ``wanted``: its path if that is known already, and what must hold there."""
        with refusals():
            self._begun = await self._sandbox.file(self._workspace, "begin_upload", wanted)
        if not stat.S_ISREG(os.fstat(self._begun["descriptor"]).st_mode):
            raise errors.Unavailable("the sandbox gave no file")

    async def write(self, data: bytes, lent: LentBody | None = None) -> None:
        """Add to it, waiting for disk and quota: data, and what comes at once of a lent body.

        Raises FileTooLarge, DiskFull.
        """
        self._waiting += data
        require_size(self.size, self._most)
        if lent is not None or len(self._waiting) >= PIECE:
            await self._flush(lent)

    async def _flush(self, lent: LentBody | None = None) -> None:
        coming = lent.most if lent else 0
        more = self.size + coming - self._begun["credit"] - self._reserved
        if self._begun["counted"] and more > 0:
            with refusals():
                held = {"held": self._reserved + more, "upload": self._begun["upload"]}
                await self._sandbox.file(self._workspace, "reserve", {"more": more, **held})
            self._reserved += more
        waiting = memoryview(self._waiting)
        pieces = itertools.chain([waiting], lent.pieces() if lent else ())
        written = await self._on_disk(partial(self._write, pieces))
        self._waiting = bytearray()
        self._written += written
        self._streams.counts.file_bytes["up"] += written

    def _write(self, pieces: Iterable[memoryview]) -> int:
        written = 0
        for piece in pieces:
            hashed = self._streams.hashing.submit(self._hash.update, piece)
            written += len(piece)
            while piece:
                piece = piece[os.write(self._begun["descriptor"], piece) :]
            hashed.result()
        return written

    async def _on_disk(self, work: partial[T]) -> T:
        try:
            return await self._streams.thread(work)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "")
            raise _error(f"The file can't be written: {error.strerror}", code) from None

    async def finish(self) -> None:
        """Have what has come reach the disk."""
        if self._waiting:
            await self._flush()
        await self._on_disk(partial(os.fsync, self._begun["descriptor"]))

    async def commit(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Put it in its place, where ``wanted`` must hold; see ``transfer.commit_upload``."""
        asked = {**wanted, "temporary": self._begun["temporary"], "begun": self._begun["begun"]}
        with refusals():
            done = await self._sandbox.file(
                self._workspace, "commit_upload", asked, [self._begun["descriptor"]]
            )
        self._begun |= {"temporary": "", "counted": False}
        return done

    async def close(self) -> None:
        """Let go of it: what has no name is gone then."""
        descriptor = self._begun.pop("descriptor", None)
        if descriptor is None:
            return
        os.close(descriptor)
        if self._begun["temporary"] or self._begun["counted"]:
            left = {name: self._begun[name] for name in ("temporary", "upload")}
            with anyio.CancelScope(shield=True), contextlib.suppress(SandboxFault):
                await self._sandbox.file(self._workspace, "abandon_upload", left)


@contextlib.asynccontextmanager
async def uploading(upload: Upload, wanted: Mapping[str, Any]) -> AsyncIterator[Upload]:
    """Begin an upload, and let go of it in the end."""
    try:
        await upload.begin(wanted)
        yield upload
    finally:
        await upload.close()


def digest_of(descriptor: int) -> str:
    """Return the SHA-256 of an open file, in hexadecimal."""
    with open(os.dup(descriptor), "rb") as file:  # noqa: PTH123 - it has no path here
        return hashlib.file_digest(file, "sha256").hexdigest()


class Streamed(Response):
    """A body that is read while it is sent, until its client is gone; ``_held`` is let go of in the end."""

    _held: contextlib.ExitStack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope[VERBATIM] = True
        with self._held:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until_gone, receive, tasks.cancel_scope)
                if scope["method"] == "HEAD" or await self._send(send):
                    await send({"type": "http.response.body"})
                tasks.cancel_scope.cancel()

    async def _send(self, send: Send) -> bool:
        """Send piece after piece; returns whether all of it is sent."""
        raise NotImplementedError


class Download(Streamed):
    """A file on its way out: bytes ``start`` to ``end`` of an open descriptor, which it closes.

    If the file changes meanwhile the answer ends short of its length.
    """

    def __init__(
        self,
        streams: Streams,
        descriptor: int,
        held: contextlib.ExitStack,
        span: tuple[int, int],
        headers: Mapping[str, str],
        status: int,
    ) -> None:
        self.status_code = status
        self.background = None
        self.init_headers({**headers, "content-length": str(span[1] - span[0])})
        self._streams = streams
        self._descriptor = descriptor
        self._held = held
        self._span = span
        self._etag = etag_of(descriptor)

    async def _send(self, send: Send) -> bool:
        left = self._span[1] - self._span[0]
        async for piece in pieces(self._streams, self._descriptor, self._span, self._etag):
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        return not left


async def pieces(
    streams: Streams, descriptor: int, span: tuple[int, int], etag: str | None = None
) -> AsyncIterator[bytes]:
    """Yield bytes ``span`` of an open file, and no more once it has changed (since it had ``etag``)."""
    etag = etag or etag_of(descriptor)
    at, end = span
    while at < end:
        piece = await streams.thread(partial(os.pread, descriptor, min(PIECE, end - at), at))
        if not piece or not _is_as_it_was(descriptor, etag):
            return
        at += len(piece)
        streams.counts.file_bytes["down"] += len(piece)
        yield piece


def _is_as_it_was(descriptor: int, etag: str) -> bool:
    now = etag_of(descriptor)
    if now == etag:
        return True
    # A name that was taken away, or given to another file, changes the ctime and no byte.
    is_gone = os.fstat(descriptor).st_nlink == 0
    return is_gone and now.rpartition("-")[0] == etag.rpartition("-")[0]
