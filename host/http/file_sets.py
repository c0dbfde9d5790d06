"""Many files in one body: forms, read as they come, and folders on their way out as tar archives."""

import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from host.http.bodies import refuse_packed
from host.http.file_requests import (
    LONGEST_PATH,
    checked_path,
    describing,
)
from host.http.file_streams import Streamed, Streams, Upload, pieces, refusals
from host.ports import Sandbox, Workspace
from shared.errors import InvalidInput, NotFound, NotJson, PicoError

FOLDER: Final = "path"
MOST_FILES: Final = 100
MOST_HEADERS: Final = 16
LONGEST_HEADER: Final = 8192


class Form:
    """The files of a form, and the directory that they go to."""

    def __init__(self, folder: str) -> None:
        self._folder = folder.encode()
        self._files: list[tuple[bytes, Upload]] = []

    async def read(
        self, request: Request, begin: Callable[[], AbstractAsyncContextManager[Upload]], held: AsyncExitStack
    ) -> None:
        """Read all of it; ``begin`` makes an upload that ``held`` lets go of. Raises what that does,
        InvalidInput, NotJson.
        """
        upload: Upload | None = None
        field = b""
        async for part, data in parts_of(request):
            if part.filename is None:
                field = self._field(part.name, field, data)
                continue
            if upload is None:
                if len(self._files) >= MOST_FILES:
                    raise InvalidInput(f"body: a form has at most {MOST_FILES} files")
                upload = await held.enter_async_context(begin())
                self._files.append((part.filename.encode(), upload))
            if data is not None:
                await upload.write(data)
            else:
                await upload.finish()
                upload = None

    def _field(self, name: str, value: bytes, data: bytes | None) -> bytes:
        if name != FOLDER:
            raise InvalidInput(f"{name or 'body'}: is neither a file nor the field {FOLDER}")
        if data is None:
            self._folder = value
            return b""
        if len(value) + len(data) > LONGEST_PATH:
            raise InvalidInput(f"{FOLDER}: has at most {LONGEST_PATH} bytes")
        return value + data

    def paths(self) -> list[tuple[str, Upload]]:
        """Return the files with their paths; raises InvalidInput."""
        if not self._files:
            raise InvalidInput("body: the form has no file (a part with a filename)")
        folder = self._folder.removesuffix(b"/")
        above = folder.split(b"/") if folder else []
        found = {checked_path([*above, name]): upload for name, upload in self._files}
        if len(found) < len(self._files):
            raise InvalidInput("body: two files of the form have the same name")
        return list(found.items())


PACKED: Final = (b"content-transfer-encoding", b"content-encoding")
PLAIN: Final = (b"", b"7bit", b"8bit", b"binary", b"identity")
"""What these headers of a part may say: RFC 7578 leaves no encoding, and it would be kept as it came."""


class Part:
    """A part of a form; ``filename`` None: it is a field."""

    def __init__(self, disposition: bytes) -> None:
        _, options = parse_options_header(disposition)
        try:
            self.name = options.get(b"name", b"").decode()
            filename = options.get(b"filename")
            self.filename = None if filename is None else filename.decode()
        except UnicodeDecodeError:
            raise InvalidInput("body: a name in the form is not UTF-8") from None


async def parts_of(request: Request) -> AsyncIterator[tuple[Part, bytes | None]]:
    """Yield the pieces of a form's parts in their order, and None at the end of each.

    Raises NotJson (another body), InvalidInput (not a whole form).
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise NotJson("Content-Type: must be multipart/form-data with a boundary")
    refuse_packed(request)
    try:
        reader = _Reader(options[b"boundary"])
        async for data in request.stream():
            reader.parser.write(data)
            for piece in reader.taken():
                yield piece
        reader.parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"body: is no valid form ({error})") from None
    except ClientDisconnect:
        raise InvalidInput("body: ended before it was whole") from None
    if not reader.whole:
        raise InvalidInput("body: the form has no end")


class _Reader:
    """Turns the parser's calls into pieces."""

    def __init__(self, boundary: bytes) -> None:
        self.whole = False
        self._pieces: list[tuple[Part, bytes | None]] = []
        self._name = self._value = self._disposition = b""
        self._part = Part(b"")
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._content,
                "on_header_end": self._header,
                "on_headers_finished": self._headers,
                "on_part_data": lambda data, start, end: self._pieces.append((self._part, data[start:end])),
                "on_part_end": lambda: self._pieces.append((self._part, None)),
                "on_end": self._end,
            },
            max_header_count=MOST_HEADERS,
            max_header_size=LONGEST_HEADER,
        )

    def taken(self) -> list[tuple[Part, bytes | None]]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _begin(self) -> None:
        self._disposition = b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        name = self._name.lower()
        if name == b"content-disposition":
            self._disposition = self._value
        if name in PACKED and self._value.strip().lower() not in PLAIN:
            raise InvalidInput("body: send the files of a form as they are, without an encoding")
        self._name = self._value = b""

    def _headers(self) -> None:
        self._part = Part(self._disposition)

    def _end(self) -> None:
        self.whole = True


NAMES_AT_ONCE: Final = 500
"""Names that are looked at before their files are sent."""
LEFT_OUT: Final = "LEFT-OUT.txt"
"""Stands last in an archive that lacks something."""
INCOMPLETE: Final = "This archive is incomplete. Links are left out of every archive."
UNSEEN: Final = (
    "Not everything could be looked at: more than 100,000 names, more than 32 levels, a directory that can't "
    "be read, or a name that isn't UTF-8."
)
MOST_NAMED: Final = 1000
"""Files that are said to be left out."""
_TAR_BLOCK: Final = 512
_TAR_END: Final = bytes(2 * _TAR_BLOCK)


class TarDownload(Streamed):
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
        self._left_out: list[str] = []
        self._page: list[dict[str, Any]] = []

    async def begin(self, held: contextlib.ExitStack) -> None:
        """Look what there is, and let go of ``held`` in the end; raises NotFound where there is nothing."""
        await self._look("")
        self._held = held.pop_all() if self._page else self._held
        if not self._page:
            raise NotFound(f"Nothing has a path that begins with {self._prefix[:200]!r}.")

    async def _send(self, send: Send) -> bool:
        while self._page:
            for entry in self._page[:NAMES_AT_ONCE]:
                async for data in self._entry(entry):
                    if data is None:
                        return False
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            more = len(self._page) > NAMES_AT_ONCE
            await self._look(self._page[NAMES_AT_ONCE - 1]["path"] if more else None)
        await send({"type": "http.response.body", "body": self._note() + _TAR_END, "more_body": True})
        return True

    def _leave_out(self, sentence: str) -> None:
        if len(self._left_out) <= MOST_NAMED:
            self._left_out.append(sentence if len(self._left_out) < MOST_NAMED else "and more")

    def _note(self) -> bytes:
        if not (self._left_out or self._incomplete):
            return b""
        note = "\n".join([INCOMPLETE, *[UNSEEN] * self._incomplete, *self._left_out, ""]).encode()
        return _header(LEFT_OUT, len(note)) + note + _padding(len(note))

    async def _look(self, after: str | None) -> None:
        if after is None:
            self._page = []
            return
        wanted = {"prefix": self._prefix, "after": after, "limit": NAMES_AT_ONCE}
        with refusals():
            found = await self._sandbox.file(self._workspace, "list_files", wanted)
        self._page = found["files"]
        self._incomplete = self._incomplete or found["incomplete"]

    async def _entry(self, entry: dict[str, Any]) -> AsyncIterator[bytes | None]:
        """Yield the bytes of an entry; None: it changed, so what was sent of it is no archive."""
        if entry["type"] == "directory":
            yield _header(entry["path"], 0, entry["modified_ms"], directory=True)
        if entry["type"] not in ("file", "other"):
            return
        try:
            with refusals():
                found = await self._sandbox.file(self._workspace, "open_file", {"path": entry["path"]})
        except PicoError as error:
            # One that is gone meanwhile was never there.
            if not isinstance(error, NotFound):
                self._leave_out(error.message.removeprefix("path: "))
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
    import tarfile  # not at the top: 0.35 MiB that few hosts need

    info = tarfile.TarInfo(path)
    info.size, info.mtime = size, modified_ms // 1000
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if directory else (tarfile.REGTYPE, 0o644)
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _TAR_BLOCK)
