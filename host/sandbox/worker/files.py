"""The five file tools. Each takes the arguments of its schema and returns text, or raises ``Refused``."""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH123

from __future__ import annotations

import base64
import contextlib
import difflib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from . import syscalls
from .paths import Location, Refused, Roots, explain, is_device

Answer = dict[str, Any]

READ_LINES: Final = 2000  # lines, unless asked otherwise
READ_BYTES: Final = 50_000  # bytes of text in one answer
SCAN_BYTES: Final = 64 << 20  # how far into a file an offset may reach
WHOLE_BYTES: Final = 8 << 20  # largest file edited
IMAGE_BYTES: Final = 3_750_000  # the model's limit of 5 MB, in base64
LIST_ENTRIES: Final = 500
LIST_ENTRIES_MAX: Final = 5000
LIST_DEPTH_MAX: Final = 8
_SNIFF: Final = 8192
_DEVICE_BYTES: Final = 4096
_DIFF_LINES: Final = 60


def read_file(roots: Roots, arguments: Answer) -> Answer:
    """Text with a header line, an image as an image, anything else named as binary."""
    path = arguments["path"]
    if is_device(path):
        return {"text": _describe_bytes(path, _read_device(path))}
    with _regular(roots, path, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        start = os.pread(descriptor, _SNIFF, 0)
        media_type = _image_type(start)
        if media_type is not None:
            return _image(descriptor, path, size, media_type)
        if b"\0" in start:
            return {"text": f"[{path}: binary file, {size} bytes; not shown]"}
        first = max(1, arguments.get("offset") or 1)
        return {"text": _text(descriptor, path, size, first, arguments.get("limit") or READ_LINES)}


def read_text(roots: Roots, arguments: Answer) -> Answer:
    """Plain content for the host's own use: at most ``limit`` bytes."""
    with _regular(roots, arguments["path"], os.O_RDONLY) as descriptor:
        return {"text": os.pread(descriptor, arguments["limit"], 0).decode("utf-8", "replace")}


def _text(descriptor: int, path: str, size: int, first: int, limit: int) -> str:
    lines: list[bytes] = []
    taken = number = 0
    more = False
    for number, line in enumerate(_lines(descriptor), 1):
        if number < first:
            continue
        if len(lines) == limit or taken >= READ_BYTES:
            more = True
            break
        lines.append(line[: READ_BYTES - taken])
        cut = len(line) > READ_BYTES - taken
        taken += len(lines[-1])
        if cut:
            more = True
            break
    if not lines:
        return f"[{path}: {size} bytes, {number} lines; nothing at line {first}]"
    last = first + len(lines) - 1
    tail = f"; cut here, more follows (offset={last + 1})" if more else "; end of file"
    header = f"[{path}: {size} bytes, lines {first}-{last}{tail}]"
    return f"{header}\n{b''.join(lines).decode('utf-8', 'replace')}"


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines, reading at most ``SCAN_BYTES``; a line is cut where it is longer than an answer."""
    rest = b""
    read = 0
    while read < SCAN_BYTES:
        data = os.read(descriptor, 256 << 10)
        if not data:
            break
        read += len(data)
        *whole, rest = (rest + data).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > READ_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


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
        return {"text": f"[{path}: {media_type}, {size} bytes; too large to be shown]"}
    data = os.pread(descriptor, IMAGE_BYTES, 0)
    text = f"[{path}: {media_type}, {size} bytes]"
    return {"text": text, "image": {"data": base64.b64encode(data).decode(), "media_type": media_type}}


def _read_device(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _DEVICE_BYTES)
    finally:
        os.close(descriptor)


def _describe_bytes(path: str, data: bytes) -> str:
    return f"[{path}: device; read {len(data)} bytes]"


def write_file(roots: Roots, arguments: Answer) -> Answer:
    """Replace or create a file in one step: temporary file, fsync, rename."""
    path, content = arguments["path"], arguments["content"].encode()
    if is_device(path):
        return {"text": _write_device(path, content)}
    with roots.parent(path, make=True) as location:
        existing = _existing(location, path)
        if existing is not None and not arguments.get("overwrite"):
            raise Refused(f"{path} already exists; pass overwrite=true to replace it")
        _replace(location, path, content, existing)
    verb = "wrote" if existing is None else "replaced"
    return {"text": f"ok: {verb} {path} ({len(content)} bytes)"}


def save_file(roots: Roots, arguments: Answer) -> Answer:
    """Write bytes that the host brings (base64), for instance a file that somebody sent."""
    path, content = arguments["path"], base64.b64decode(arguments["data"])
    with roots.parent(path, make=True) as location:
        _replace(location, path, content, _existing(location, path))
    return {"text": f"ok: saved {path} ({len(content)} bytes)"}


def _write_device(path: str, content: bytes) -> str:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return f"ok: wrote {os.write(descriptor, content)} bytes to {path}"
    finally:
        os.close(descriptor)


def _existing(location: Location, path: str) -> os.stat_result | None:
    try:
        status = os.stat(location.name, dir_fd=location.directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    require_plain(path, status)
    return status


def _replace(location: Location, path: str, content: bytes, existing: os.stat_result | None) -> None:
    """Write beside the target, make it durable, and put it in place; an existing file's mode is kept."""
    temporary = f".{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o644, dir_fd=location.directory)
    except OSError as error:
        raise Refused(explain(path, error)) from error
    try:
        with open(descriptor, "wb", closefd=True) as file:
            if existing is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(existing.st_mode) & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(location, temporary, replace=existing is not None)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=location.directory)
        raise Refused(explain(path, error)) from error


def _put_in_place(location: Location, temporary: str, *, replace: bool) -> None:
    if replace:
        os.rename(temporary, location.name, src_dir_fd=location.directory, dst_dir_fd=location.directory)
    else:
        syscalls.rename_no_replace(location.directory, temporary, location.name)
    os.fsync(location.directory)


def edit_file(roots: Roots, arguments: Answer) -> Answer:
    """Replace one exact occurrence, or all; answers with a short diff."""
    path, old, new = arguments["path"], arguments["old_text"], arguments["new_text"]
    if not old:
        raise Refused("old_text is empty; use write_file to create a file, append_file to add to one")
    with roots.parent(path, make=False) as location:
        existing = _existing(location, path)
        if existing is None:
            raise Refused(f"{path}: no such file or directory")
        before = _whole_text(location, path)
        count = before.count(old)
        if count == 0:
            raise Refused(f"old_text occurs 0 times in {path}; it must match exactly, white space included")
        if count > 1 and not arguments.get("replace_all"):
            raise Refused(
                f"old_text occurs {count} times in {path}; give more context, or pass replace_all=true"
            )
        after = before.replace(old, new)
        _replace(location, path, after.encode("utf-8", "surrogateescape"), existing)
    return {"text": f"ok: replaced {count} occurrence{'s'[: count > 1]} in {path}\n{_diff(before, after)}"}


def _whole_text(location: Location, path: str) -> str:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(location.name, flags, dir_fd=location.directory)
    with open(descriptor, "rb", closefd=True) as file:
        status = os.fstat(descriptor)
        require_plain(path, status)
        if status.st_size > WHOLE_BYTES:
            raise Refused(f"{path} is too large to edit ({status.st_size} bytes, the limit is {WHOLE_BYTES})")
        data = file.read(WHOLE_BYTES + 1)
    if b"\0" in data:
        raise Refused(f"{path} is a binary file")
    return data.decode("utf-8", "surrogateescape")


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", "", "", 2, "")
    shown = [line for _, line in zip(range(_DIFF_LINES + 1), lines, strict=False)]
    if len(shown) > _DIFF_LINES:
        shown[-1] = "[... more changes]"
    return "\n".join(shown)


def append_file(roots: Roots, arguments: Answer) -> Answer:
    """Add to the end of a file; it is created if missing, and never rewritten."""
    path, content = arguments["path"], arguments["content"].encode()
    if is_device(path):
        return {"text": _write_device(path, content)}
    with roots.parent(path, make=True) as location:
        _existing(location, path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(location.name, flags, 0o644, dir_fd=location.directory)
        except OSError as error:
            raise Refused(explain(path, error)) from error
        with open(descriptor, "ab", closefd=True, buffering=0) as file:
            require_plain(path, os.fstat(descriptor))
            _write_all(file.write, content, path)
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
    return {"text": f"ok: appended {len(content)} bytes to {path} (now {size} bytes)"}


def _write_all(write: Callable[[memoryview], int | None], content: bytes, path: str) -> None:
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[write(rest) or 0 :]
    except OSError as error:
        raise Refused(explain(path, error)) from error


def list_dir(roots: Roots, arguments: Answer) -> Answer:
    """Names, kinds and sizes in a stable order; bounded in depth and number."""
    path = arguments.get("path") or "."
    depth = min(max(1, arguments.get("depth") or 1), LIST_DEPTH_MAX)
    limit = min(max(1, arguments.get("limit") or LIST_ENTRIES), LIST_ENTRIES_MAX)
    listing = _Listing(limit)
    with roots.directory(path) as directory:
        listing.walk(directory, "", depth)
    note = f"; cut after {limit}, more follow (raise limit or list a subdirectory)" if listing.cut else ""
    return {"text": "\n".join([f"[{path}: {len(listing.lines)} entries{note}]", *listing.lines])}


class _Listing:
    """Collects lines until the limit."""

    def __init__(self, limit: int) -> None:
        self.lines: list[str] = []
        self.cut = False
        self._limit = limit

    def walk(self, directory: int, prefix: str, depth: int) -> None:
        for name in sorted(self._names(directory)):
            if len(self.lines) >= self._limit:
                self.cut = True
                return
            self._entry(directory, prefix, name, depth)

    def _names(self, directory: int) -> list[str]:
        """Return the names, at most so many that a giant directory can't fill the memory."""
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(names) >= 20 * LIST_ENTRIES_MAX:
                    self.cut = True
                    break
                names.append(entry.name)
        return names

    def _entry(self, directory: int, prefix: str, name: str, depth: int) -> None:
        shown = f"{prefix}{name}".encode("utf-8", "replace").decode()
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return  # gone meanwhile
        self.lines.append(_line(shown, status))
        if depth > 1 and stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(OSError):
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                try:
                    self.walk(below, f"{prefix}{name}/", depth - 1)
                finally:
                    os.close(below)


def remove_folder(roots: Roots, arguments: Answer) -> Answer:
    """Remove a folder and the files in it. What folders it holds stays, and so does it.

    For the host alone: no tool of an agent has this name.
    """
    path = arguments["path"]
    above, name = os.path.split(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(Refused, FileNotFoundError), roots.directory(above or ".") as directory:
        folder = os.open(name, flags, dir_fd=directory)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(IsADirectoryError):
                        os.unlink(entry.name, dir_fd=folder)
        finally:
            os.close(folder)
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=directory)
    return {"text": f"ok: removed {path}"}


def _line(name: str, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return f"{name}/"
    if stat.S_ISREG(status.st_mode):
        return f"{name}  {status.st_size}"
    return f"{name}  ({_kind(status.st_mode)})"


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISFIFO(mode):
        return "fifo"
    return "socket" if stat.S_ISSOCK(mode) else "device"


@contextlib.contextmanager
def _regular(roots: Roots, path: str, flags: int) -> Iterator[int]:
    """Open a regular file of one name; never waits on a FIFO, never touches a device twice."""
    descriptor = roots.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        require_plain(path, os.fstat(descriptor), hard_links=roots.hard_links(path))
        yield descriptor
    finally:
        os.close(descriptor)


def require_plain(path: str, status: os.stat_result, *, hard_links: bool = False) -> None:
    """Refuse what is no ordinary file, and hard links unless welcome: their other name may lie outside."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused(f"{path} is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file ({_kind(status.st_mode)})")
    if status.st_nlink > 1 and not hard_links:
        raise Refused(f"{path} has several hard links, one of which may lie outside the workspace")


TOOLS: Final[dict[str, Callable[[Roots, Answer], Answer]]] = {
    "read_file": read_file,
    "read_text": read_text,
    "save_file": save_file,
    "write_file": write_file,
    "edit_file": edit_file,
    "append_file": append_file,
    "list_dir": list_dir,
    "remove_folder": remove_folder,
}
