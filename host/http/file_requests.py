"""What a request says of files: path, bytes, what must hold there; forms, read as they come."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from host.http.file_streams import Upload
from shared.errors import InvalidInput, NotJson, RangeUnsatisfiable

LONGEST_PATH: Final = 4096
LONGEST_NAME: Final = 255
MOST_LEVELS: Final = 32
OCTETS: Final = "application/octet-stream"
_SHOWN: Final = re.compile(r"html|xml|script")
"""Media types that a browser could run instead of saving."""
_TAG: Final = re.compile(r'\s*(?:W/)?(?:"([^"]*)"|(\*))\s*(?:,|$)')
_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*")


def path_of(request: Request) -> str:
    """Return the path of a file that a request's address names; raises InvalidInput.

    It is decoded once and taken as it is, so what the client wrote between slashes is one name.
    """
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    _, _, conversation, _, *names = raw.partition(b"?")[0].split(b"/")
    if unquote_to_bytes(conversation) != str(request.path_params["id"]).encode():
        raise InvalidInput("path: a name can't contain %2F")
    return checked_path([unquote_to_bytes(name) for name in names])


def checked_path(names: Sequence[bytes]) -> str:
    """Return names as one path in a workspace; raises InvalidInput."""
    shown = b"/".join(names)[:LONGEST_PATH].decode(errors="replace")
    for name in names:
        if not name:
            raise InvalidInput(f"path: {shown!r} has an empty name, or begins or ends with /")
        if name in (b".", b".."):
            raise InvalidInput(f"path: {shown!r} must not contain . or ..")
        if b"/" in name or b"\0" in name:
            raise InvalidInput(f"path: {shown!r}: a name can't contain / or NUL")
        if len(name) > LONGEST_NAME:
            raise InvalidInput(f"path: a name has at most {LONGEST_NAME} bytes")
    whole = b"/".join(names)
    if len(names) > MOST_LEVELS or len(whole) > LONGEST_PATH:
        raise InvalidInput(f"path: has at most {LONGEST_PATH} bytes and {MOST_LEVELS} names")
    try:
        return whole.decode()
    except UnicodeDecodeError:
        raise InvalidInput("path: must be UTF-8") from None


def conditions(request: Request) -> dict[str, Any]:
    """Return what must hold of a file before it is changed, as ``transfer`` takes it."""
    found = {"match": tags(request, "if-match"), "unless": tags(request, "if-none-match")}
    return {name: value for name, value in found.items() if value is not None}


def tags(request: Request, header: str) -> list[str] | None:
    """Return the ETags in a header, None without it; raises InvalidInput."""
    said = request.headers.get(header)
    if said is None:
        return None
    found, at = [], 0
    while at < len(said):
        tag = _TAG.match(said, at)
        if tag is None:
            raise InvalidInput(f'{header}: must be *, or ETags in quotation marks ("...")')
        found.append(tag[1] if tag[2] is None else "*")
        at = tag.end()
    return found


def span_of(request: Request, tag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte that is asked for and the one behind the last; None: the whole file.

    Several ranges, and what is no range of bytes, are answered with the whole (RFC 9110, 14.2). Raises
    RangeUnsatisfiable.
    """
    said, only_of = request.headers.get("range"), request.headers.get("if-range")
    asked = None if said is None else _RANGE.fullmatch(said)
    if asked is None or asked[1] == asked[2] == "" or only_of not in (None, f'"{tag}"'):
        return None
    if not asked[1]:
        first, last = max(size - int(asked[2][:20]), 0), size
    else:
        first, last = int(asked[1][:20]), min(int(asked[2][:20]) + 1 if asked[2] else size, size)
    if asked[1] and asked[2] and int(asked[2][:20]) < first:
        return None
    if first >= size or (not asked[1] and first == size):
        raise RangeUnsatisfiable(f"Range: the file has {size} bytes", size=size)
    return first, last


def describing(path: str) -> dict[str, str]:
    """Return the headers that have a browser save a file and never show it."""
    name = path.rpartition("/")[2]
    kind, packed = mimetypes.guess_type(name, strict=False)
    if kind is None or packed or _SHOWN.search(kind):
        kind = OCTETS
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return {
        "content-type": kind,
        "content-disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
    }


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
        self,
        request: Request,
        begin: Callable[[], AbstractAsyncContextManager[Upload]],
        held: AsyncExitStack,
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
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise NotJson("Content-Type: must be multipart/form-data with a boundary")
    reader = _Reader(options[b"boundary"])
    try:
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
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers(self) -> None:
        self._part = Part(self._disposition)

    def _end(self) -> None:
        self.whole = True
