"""What file operations share: what a file is (plain or not, text or something else), and their time."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import stat
from typing import Any, Final

from ..names import Refused, quoted

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
