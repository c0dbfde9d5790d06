"""Reading files: what one is (plain or not, text or something else), its text by pages, images; and the time.

What a page's header names as the next part begins where the page ends.
"""

import base64
import codecs
import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from ..names import Refused, quoted
from ..syscalls import held
from .paths import Roots, is_device

Answer = dict[str, Any]

SNIFF: Final = 8192
"""Bytes at the beginning of a file that tell."""

WHOLE_BYTES: Final = 8 << 20
"""Largest text that is looked at as a whole: edited, or decoded from another encoding than UTF-8."""

_LOSSLESS: Final = ("surrogatepass", "surrogateescape")
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
for _, _name in _MARKS:
    codecs.lookup(_name)  # a confined process can load nothing

PDF: Final = "PDF document"

# By their place and sign; no text begins like that.
_FORMATS: Final = (
    (0, b"%PDF-", PDF),
    (0, b"PK\x03\x04", "ZIP archive or Office document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office document"),
    (0, b"\x1f\x8b", "gzip archive"),
    (4, b"1AY&SY", "bzip2 archive"),
    (0, b"\xfd7zXZ\0", "xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip archive"),
    (0, b"Rar!\x1a\x07", "RAR archive"),
    (257, b"ustar", "tar archive"),
    (0, b"SQLite format 3\0", "SQLite database"),
    (0, b"II*\0", "TIFF image"),
    (0, b"MM\0*", "TIFF image"),
    (4, b"ftyp", "MPEG-4, HEIC or AVIF media"),
    (0, b"ID3\x03", "MP3 audio"),
    (0, b"ID3\x04", "MP3 audio"),
    (8, b"WAVEfmt ", "WAV audio"),
    (0, b"OggS\0", "Ogg media"),
    (0, b"fLaC\0", "FLAC audio"),
)


def binary_name(start: bytes) -> str | None:
    """Return what a file is that is no text: by its first bytes, or ``binary file``."""
    known = next((name for at, sign, name in _FORMATS if start.startswith(sign, at)), None)
    return known or ("binary file" if b"\0" in start and encoding(start) == "utf-8" else None)


def encoding(start: bytes) -> str:
    """Return the encoding of a text by its byte order mark; UTF-8 without one."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def decoded(path: str, data: bytes) -> str:
    """Return a text of which ``encoded`` makes the same bytes again. Raises ``Refused`` if there is none."""
    name = encoding(data)
    with contextlib.suppress(UnicodeError):
        text = data.decode(name, _LOSSLESS[name == "utf-8"])
        if encoded(text, name) == data:
            return text
    raise Refused(f"{path} is no valid {name.upper()} and can't be edited")


def encoded(text: str, name: str) -> bytes:
    """Return the bytes of a text that ``decoded`` gave, changed or not."""
    return text.encode(name, _LOSSLESS[name == "utf-8"])


def kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def require_plain(path: str, status: os.stat_result, *, hard_links: bool = False) -> None:
    """Refuse what is no ordinary file, and hard links unless welcome: their other name may lie outside."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused(f"{quoted(path)} is a directory", "is_directory")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{quoted(path)} is not a regular file ({kind_of(status.st_mode)})")
    if status.st_nlink > 1 and not hard_links:
        raise Refused(f"{quoted(path)} has several hard links, one of which may lie outside the workspace")


PROCESSOR_S: Final = 10.0
ELAPSED_S: Final = 20.0  # less than the host waits


class TooLong(BaseException):
    """The time is up, and nothing has been changed. No ``except`` for faults catches it."""


def settle_clock() -> None:
    """Have ``begin`` work in this process."""
    signal.signal(signal.SIGPROF, _stop)
    signal.signal(signal.SIGALRM, _stop)


def start_clock(processor_s: float) -> None:
    """Raise ``TooLong`` in the main thread when time is up, until ``end``."""
    signal.setitimer(signal.ITIMER_PROF, processor_s)
    signal.setitimer(signal.ITIMER_REAL, ELAPSED_S)


def stop_clock() -> None:
    """Let what follows be done to its end: it changes something, or nothing follows."""
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, frame: Any) -> None:
    raise TooLong


IMAGE_BYTES: Final = 3_750_000  # the model's limit of 5 MB, in base64
_DEVICE_BYTES: Final = 4096
READ_LINES: Final = 2000  # lines, unless asked otherwise
READ_BYTES: Final = 50_000  # bytes of text in one answer
SCAN_BYTES: Final = 64 << 20  # how far into a file lines are counted
_CHUNK: Final = 256 << 10
_FARTHEST: Final = 1 << 62


Read = Callable[[int, int], bytes]
"""Returns bytes by their place and number; fewer only at the end."""


def read_file(roots: Roots, arguments: Answer) -> Answer:
    """Text with a header line, an image as an image, a PDF as an open file, anything else by what it is."""
    path = arguments["path"]
    if is_device(path):
        return {"text": f"[{path}: device; read {len(_read_device(path))} bytes]"}
    with regular(roots, path) as descriptor:
        size = os.fstat(descriptor).st_size
        called = f"{quoted(path)}: {size} bytes"
        start = os.pread(descriptor, SNIFF, 0)
        media_type = _image_type(start)
        if media_type is not None:
            return _image(descriptor, path, size, media_type)
        binary = binary_name(start)
        if binary == PDF:
            return {"pdf": f"{quoted(path)}: {binary}, {size} bytes", "descriptors": [os.dup(descriptor)]}
        if binary is not None:
            return {"text": f"[{quoted(path)}: {binary}, {size} bytes; not shown]"}
        name = encoding(start)
        if name == "utf-8":
            return {"text": page(called, partial(read_at, descriptor), arguments)}
        if size > WHOLE_BYTES:
            return {"text": f"[{called} of {name.upper()}; too large to be decoded, convert it with iconv]"}
        made = read_at(descriptor, 0, WHOLE_BYTES).decode(name, "replace").removeprefix("\ufeff").encode()
        called = f"{called} of {name.upper()}, shown as {len(made)} bytes of UTF-8"
        return {"text": page(called, lambda place, count: made[place : place + count], arguments)}


def read_text(roots: Roots, arguments: Answer) -> Answer:
    """Plain content for the host's own use: at most ``limit`` bytes."""
    with regular(roots, arguments["path"]) as descriptor:
        return {"text": os.pread(descriptor, arguments["limit"], 0).decode("utf-8", "replace")}


def open_seen(roots: Roots, arguments: Answer) -> Answer:
    """Open a plain file that a call is about, for the host to compare."""
    with regular(roots, arguments["path"]) as descriptor:
        return {"size": os.fstat(descriptor).st_size, "descriptors": [os.dup(descriptor)]}


def _image_type(start: bytes) -> str | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return "image/webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def _image(descriptor: int, path: str, size: int, media_type: str) -> Answer:
    if size > IMAGE_BYTES:
        return {"text": f"[{quoted(path)}: {media_type}, {size} bytes; too large to be shown]"}
    data = os.pread(descriptor, IMAGE_BYTES, 0)
    text = f"[{quoted(path)}: {media_type}, {size} bytes]"
    return {"text": text, "image": {"data": base64.b64encode(data).decode(), "media_type": media_type}}


def _read_device(path: str) -> bytes:
    with held(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as device:
        return os.read(device, _DEVICE_BYTES)


@contextlib.contextmanager
def regular(roots: Roots, path: str) -> Iterator[int]:
    """Hold a regular file of one name open; never waits on a FIFO, never touches a device twice."""
    with held(roots.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)) as descriptor:
        require_plain(path, os.fstat(descriptor), hard_links=roots.hard_links(path))
        yield descriptor


def read_at(descriptor: int, place: int, count: int) -> bytes:
    """``Read`` of a file."""
    data = os.pread(descriptor, count, place)
    while len(data) < count and (more := os.pread(descriptor, count - len(data), place + len(data))):
        data += more
    return data


def page(called: str, read: Read, arguments: Answer) -> str:
    """Return lines from ``offset`` on under a header that says how to get the rest.

    Lines end in LF alone, as for grep. A page holds whole lines; one that is longer than a page is cut
    between characters. ``from_byte``, counted from 1, is where to begin within the line ``offset``; headers
    name it where counting lines would not lead there. Raises ``Refused``.
    """
    number, start = arguments.get("offset") or 1, arguments.get("from_byte")
    if start is None:
        place, reached = _line_start(read, number)
        if reached < number and place >= SCAN_BYTES:
            return f"[{called}; line {number} begins further on; try offset={reached}, from_byte={place + 1}]"
    elif "offset" in arguments:
        place, reached = min(start - 1, _FARTHEST), number
    else:
        raise Refused("from_byte needs offset, the number of the line that it lies in")
    data = read(place, READ_BYTES + 1) if reached == number else b""
    shown = data[: _page_end(data, arguments.get("limit") or READ_LINES)]
    origin = "" if start is None else f" from byte {place + 1}"
    if not shown:
        end, lines = _line_start(read, _FARTHEST)
        lines -= read(max(0, end - 1), 1) in (b"", b"\n")
        return f"[{called}, {lines} lines; nothing at line {number}{origin}]"
    whole = shown.endswith(b"\n")
    last = number + shown.count(b"\n") - whole
    tail = "end of file"
    if len(data) > len(shown):
        goes_on = f"offset={last + whole}"
        if not whole or start is not None or place + len(shown) > SCAN_BYTES:
            goes_on += f", from_byte={place + len(shown) + 1}"
        tail = f"cut {'here' if whole else f'within line {last}'}, more follows ({goes_on})"
    return f"[{called}, lines {number}-{last}{origin}; {tail}]\n{shown.decode('utf-8', 'replace')}"


def _line_start(read: Read, wanted: int) -> tuple[int, int]:
    """Return where a line begins and its number; where the end or the limit came first, the line there."""
    place, number = 0, 1
    while number < wanted and place < SCAN_BYTES and (data := read(place, _CHUNK)):
        ends = data.count(b"\n")
        if number + ends >= wanted:
            rest = data.split(b"\n", wanted - number)[-1]
            return place + len(data) - len(rest), wanted
        number, place = number + ends, place + len(data)
    return place, number


def _page_end(data: bytes, limit: int) -> int:
    lines = data[:READ_BYTES].split(b"\n", min(limit, READ_BYTES))
    if len(lines) > limit:
        return min(len(data), READ_BYTES) - len(lines[-1])
    if len(data) <= READ_BYTES:
        return len(data)
    return data.rfind(b"\n", 0, READ_BYTES) + 1 or _between_characters(data, READ_BYTES)


def _between_characters(data: bytes, place: int) -> int:
    """Return the place, or the one before the character that it would cut; none has over four bytes."""
    return next((at for at in range(place, place - 4, -1) if data[at] & 0xC0 != 0x80), place)
