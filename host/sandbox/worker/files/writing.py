"""Writing, editing and adding to files, each in one step or not at all."""

import base64
import contextlib
import io
import os
import stat
from collections.abc import Callable
from typing import Final

from .. import syscalls
from ..names import Refused, explain, new_name, quoted
from . import reading
from .editing import edit
from .paths import Location, Roots, is_device
from .reading import SNIFF, WHOLE_BYTES, Answer, binary_name, decoded, encoded, encoding, require_plain

_ATTEMPTS: Final = 10


class Overtaken(Exception):
    """Somebody else has changed the file meanwhile."""


def write_file(roots: Roots, arguments: Answer) -> Answer:
    """Replace or create a file in one step: temporary file, fsync, rename."""
    path, content = arguments["path"], arguments["content"].encode()
    if is_device(path):
        return {"text": _write_device(path, content)}
    with roots.parent(path, make=True) as location:
        existing = existing_file(location, path)
        if existing is not None and not arguments.get("overwrite"):
            raise Refused(f"{quoted(path)} already exists; pass overwrite=true to replace it")
        note = "" if existing is not None else new_name(location.directory, location.name)
        note += _replace(location, content, existing)
    verb = "wrote" if existing is None else "replaced"
    said = f"ok: {verb} {quoted(path)} ({len(content)} bytes){note}"
    return {"text": said, "size": len(content), "created": existing is None}


def save_file(roots: Roots, arguments: Answer) -> Answer:
    """Write bytes that the host brings (base64), for instance a file that somebody sent."""
    path, content = arguments["path"], base64.b64decode(arguments["data"])
    with roots.parent(path, make=True) as location:
        note = _replace(location, content, existing_file(location, path))
    return {"text": f"ok: saved {quoted(path)} ({len(content)} bytes){note}"}


def _write_device(path: str, content: bytes) -> str:
    with syscalls.held(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as device:
        reading.stop_clock()
        return f"ok: wrote {os.write(device, content)} bytes to {path}"


def existing_file(location: Location, path: str) -> os.stat_result | None:
    """Return what is in a place, None if there is nothing. Raises ``Refused`` unless it is a plain file."""
    try:
        status = os.stat(location.name, dir_fd=location.directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    require_plain(path, status)
    return status


def _replace(
    location: Location,
    content: bytes,
    existing: os.stat_result | None,
    unless: Callable[[], bool] = lambda: False,
) -> str:
    """Write beside the target, make it durable, and put it in place; an existing file's mode is kept.

    Returns what is to be added to the answer. Raises ``OSError``, and ``Overtaken`` if ``unless`` says so at
    the last moment.
    """
    if location.quota is not None:
        location.quota.require(len(content) - (existing.st_size if existing else 0))
    temporary = f".{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644, dir_fd=location.directory)
    try:
        with open(descriptor, "wb", closefd=True) as file:
            if existing is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(existing.st_mode) & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if unless():
            raise Overtaken
        reading.stop_clock()
        rename = os.replace if existing else syscalls.rename_new
        rename(temporary, location.name, src_dir_fd=location.directory, dst_dir_fd=location.directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=location.directory)
        raise
    return kept(location.directory)


def kept(descriptor: int) -> str:
    """Have what has changed reach the disk; returns what to say if it may not have: it has changed all the
    same.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        return f"; the disk did not confirm it ({os.strerror(error.errno or 0).lower()})"
    return ""


def edit_file(roots: Roots, arguments: Answer) -> Answer:
    """Replace one exact occurrence, or all; answers with a short diff.

    Every byte that the edit does not name stays. What a command writes at the same time is not lost either:
    the file is looked at again before the edited one takes its place.
    """
    path = arguments["path"]
    if not arguments["old_text"]:
        raise Refused("old_text is empty; use write_file to create a file, append_file to add to one")
    with roots.parent(path, make=False) as location:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(Overtaken):
                return _edit(location, path, arguments)
    raise Refused(f"{quoted(path)} is being written all the time; nothing was changed")


def _edit(location: Location, path: str, arguments: Answer) -> Answer:
    before, existing = _whole(location, path)
    called = quoted(path)
    text = decoded(called, before)
    old, new, everywhere = arguments["old_text"], arguments["new_text"], bool(arguments.get("replace_all"))
    after, count, diff = edit(called, text, old, new, everywhere=everywhere, limit=WHOLE_BYTES)
    content = encoded(after, encoding(before))
    if len(content) > WHOLE_BYTES:
        raise Refused(f"{called} would become too large ({len(content)} bytes, the limit is {WHOLE_BYTES})")
    note = _replace(location, content, existing, lambda: _whole(location, path)[0] != before)
    said = f"ok: replaced {count} occurrence{'s'[: count > 1]} in {called}{note}\n{diff}"
    return {"text": said, "size": len(content), "created": False}


def _whole(location: Location, path: str) -> tuple[bytes, os.stat_result]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(location.name, flags, dir_fd=location.directory)
    with open(descriptor, "rb", closefd=True, buffering=0) as file:
        status = os.fstat(descriptor)
        require_plain(path, status)
        data = file.read(WHOLE_BYTES + 1) or b""
    if len(data) > WHOLE_BYTES:
        size = f"{status.st_size} bytes, the limit is {WHOLE_BYTES}"
        raise Refused(f"{quoted(path)} is too large to edit ({size})")
    name = binary_name(data[:SNIFF])
    if name is not None:
        raise Refused(f"{quoted(path)} is no text but a {name}")
    return data, status


def append_file(roots: Roots, arguments: Answer) -> Answer:
    """Add to the end of a file; it is created if missing, and never rewritten.

    What is added gets the file's own encoding and line ends.
    """
    path, content = arguments["path"], arguments["content"]
    if is_device(path):
        return {"text": _write_device(path, content.encode())}
    with roots.parent(path, make=True) as location:
        if location.quota is not None:
            location.quota.require(len(content.encode()))
        is_there = existing_file(location, path) is not None
        note = "" if is_there else new_name(location.directory, location.name)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(location.name, flags, 0o644, dir_fd=location.directory)
        with open(descriptor, "ab", closefd=True, buffering=0) as file:
            require_plain(path, os.fstat(descriptor))
            data = _in_the_manner_of(location, content)
            reading.stop_clock()
            _add(file, data, path)
            note += kept(descriptor)
            size = os.fstat(descriptor).st_size
    said = f"ok: appended {len(data)} bytes to {quoted(path)} (now {size} bytes){note}"
    return {"text": said, "size": size, "created": not is_there}


def _in_the_manner_of(location: Location, content: str) -> bytes:
    """Return text as a file is written at its beginning: encoded alike, with CR LF if all lines end so."""
    start = b""
    with contextlib.suppress(OSError):  # who may only write can't know
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(location.name, flags, dir_fd=location.directory), "rb", buffering=0) as file:
            start = file.read(SNIFF) or b""
    name = encoding(start)
    seen = start.decode(name, "replace")
    if "\r" not in content and 0 < seen.count("\r\n") == seen.count("\n"):
        content = content.replace("\n", "\r\n")
    return content.encode(name)


def _add(file: io.FileIO, content: bytes, path: str) -> None:
    """Write all of it, or take back what was written of it. Raises ``Refused``."""
    before = os.fstat(file.fileno()).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError as error:
        written = len(content) - len(rest)
        if os.fstat(file.fileno()).st_size == before + written:
            os.ftruncate(file.fileno(), before)
            written = 0
        some = f"; {written} of {len(content)} bytes were added" if written else "; nothing was added"
        raise Refused(f"{explain(path, error)}{some}") from error
