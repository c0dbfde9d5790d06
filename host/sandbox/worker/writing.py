"""Writing, editing and adding to files, each in one step or not at all."""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH123

from __future__ import annotations

import base64
import contextlib
import difflib
import os
import stat
from collections.abc import Callable
from typing import Final

from . import syscalls
from .paths import Location, Refused, Roots, explain, is_device
from .plain_files import Answer, require_plain

WHOLE_BYTES: Final = 8 << 20  # largest file edited
_DIFF_LINES: Final = 60


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
