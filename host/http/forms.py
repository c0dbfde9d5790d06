"""Forms with files, read as they come: parts of any size, of which only the names are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from host.http.file_requests import LONGEST_PATH, checked_path
from host.http.file_streams import Upload
from shared.errors import InvalidInput, NotJson

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
