"""What a request says of files: path, bytes, what must hold there; those that come with a message."""

import mimetypes
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Self
from urllib.parse import quote, unquote_to_bytes

import anyio.to_thread
from pydantic import ConfigDict, Field, model_validator
from starlette.requests import Request

from host.http.bodies import Body, NotBlank, Text
from host.http.callers import Caller
from host.http.file_streams import refusals
from host.ports import Sandbox, Workspace
from host.runs.attachments import LARGEST_OF_ALL, PDF, WRITER, Attachments, NewFile, decoded, media_type_of
from host.runs.principals import Spaces
from host.runs.spec import RunSpec
from host.tools.pictures_and_documents import is_picture
from shared.clock import now_ms
from shared.errors import FileTooLarge, InvalidInput, NoConversation, PicoError, RangeUnsatisfiable
from shared.ids import CONVERSATION, new_id
from shared.store.store import Store
from shared.values import Idempotency, Lease

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
    _, _, _, _, *names = raw.partition(b"?")[0].split(b"/")
    return checked_path([unquote_to_bytes(name) for name in names])


def checked_path(names: Sequence[bytes], field: str = "path") -> str:
    """Return names as one path in a workspace; raises InvalidInput that names the field."""
    shown = b"/".join(names)[:LONGEST_PATH].decode(errors="replace")
    for name in names:
        if not name:
            raise InvalidInput(f"{field}: {shown!r} has an empty name, or begins or ends with /")
        if name in (b".", b".."):
            raise InvalidInput(f"{field}: {shown!r} must not contain . or ..")
        if b"/" in name or b"\0" in name:
            raise InvalidInput(f"{field}: {shown!r}: a name can't contain / or NUL")
        if len(name) > LONGEST_NAME:
            raise InvalidInput(f"{field}: a name has at most {LONGEST_NAME} bytes")
    whole = b"/".join(names)
    if len(names) > MOST_LEVELS or len(whole) > LONGEST_PATH:
        raise InvalidInput(f"{field}: has at most {LONGEST_PATH} bytes and {MOST_LEVELS} names")
    try:
        return whole.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{field}: must be UTF-8") from None


def conditions(request: Request) -> dict[str, Any]:
    """Return what must hold of a file before it is changed, as ``transfer`` takes it; raises InvalidInput."""
    if "if-unmodified-since" in request.headers:
        raise InvalidInput("If-Unmodified-Since: times are too coarse; send the file's ETag in If-Match")
    found = {"match": tags(request, "if-match"), "unless": tags(request, "if-none-match")}
    return {name: value for name, value in found.items() if value is not None}


def tags(request: Request, header: str) -> list[str] | None:
    """Return the ETags in a header, None without it; raises InvalidInput."""
    lines = request.headers.getlist(header)
    if not lines:
        return None
    said, found, at = ",".join(lines), [], 0
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


MOST_ATTACHMENTS: Final = 100
TOO_LARGE: Final = "attachments: have more than 20 MiB in all; bring large files by /chat/{id}/files"
TOO_LARGE_TO_SHOW: Final = "the attachments up to it have more than 20 MiB"
MEDIA_TYPE: Final = r"^[A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+-]{1,60}$"


class AttachmentRequest(Body):
    """A file of the workspace by its path, or one that comes along in base64."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["path"]}, {"required": ["name", "data"]}],
        }
    )

    path: NotBlank | None = None
    name: Annotated[NotBlank | None, Field(max_length=LONGEST_NAME)] = None
    media_type: Annotated[str | None, Field(pattern=MEDIA_TYPE)] = None
    data: Annotated[Text | None, Field(json_schema_extra={"contentEncoding": "base64"})] = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        brought = (self.name, self.media_type, self.data)
        if self.path is None and None in (self.name, self.data):
            raise ValueError("must have name and data, or path alone")
        if self.path is not None and any(each is not None for each in brought):
            raise ValueError("must have path alone, or name and data")
        return self


class Intake:
    """Takes the files of requests in."""

    def __init__(self, store: Store, sandbox: Sandbox, spaces: Spaces, attachments: Attachments) -> None:
        self._store = store
        self._sandbox = sandbox
        self._spaces = spaces
        self._attachments = attachments

    async def with_files(
        self, spec: RunSpec, caller: Caller, asked: Sequence[AttachmentRequest | NewFile]
    ) -> RunSpec:
        """Return what is asked of a run with the files that come along: looked at, not written yet.

        Raises NoConversation, InvalidInput, FileTooLarge, WorkspaceFull, NotFound (a path).
        """
        said, owner = spec.conversation_id, spec.new_conversation_id or new_id(CONVERSATION)
        if said is None:
            spec = replace(spec, new_conversation_id=owner)
        else:
            found = await self._store.conversations.reach(caller.within, said)
            conversation = NoConversation.unless(found, said)
            owner = conversation.id
            spec = replace(spec, conversation_id=owner, principal_id=conversation.principal_id)
        if spec.idempotency is not None and await self._is_answered(spec.idempotency):
            return spec
        workspace = await self._spaces.of_host(WRITER, spec.principal_id, owner)
        files: list[NewFile] = []
        for number, each in enumerate(asked):
            where = f"attachments.{number}"
            # What is shown of the workspace takes no room from what is brought.
            room = LARGEST_OF_ALL - sum(len(file.data) for file in files if each.path or file.path is None)
            if isinstance(each, AttachmentRequest):
                files.append(await self._file(each, where, workspace, room))
            else:
                files.append(each)
        with refusals():
            attached = await self._attachments.staged(files, spec.principal_id, owner)

        async def place(lease: Lease) -> None:
            with refusals():
                await attached.place(lease)

        return replace(spec, attached=replace(attached, place=place))

    async def _is_answered(self, key: Idempotency) -> bool:
        """Return whether a key stands for a run that is told again: its files have come, and may be gone."""
        kept = await self._store.runs.keyed(key, now_ms())
        run = await self._store.runs.get(kept.conversation_id or "", kept.subject) if kept else None
        return run is not None and run.code != "retryable"

    async def _file(self, asked: AttachmentRequest, where: str, workspace: Workspace, room: int) -> NewFile:
        if asked.path is not None:
            return await self._by_path(asked.path, where, workspace, room)
        name, data = asked.name or "", asked.data or ""
        try:
            content = await anyio.to_thread.run_sync(decoded, data)
        except ValueError:
            raise InvalidInput(f"{where}.data: is not base64") from None
        if len(content) > room:
            raise FileTooLarge(TOO_LARGE)
        return NewFile(name, asked.media_type or media_type_of(name), content)

    async def _by_path(self, said: str, where: str, workspace: Workspace, room: int) -> NewFile:
        try:
            path = checked_path(said.encode(errors="replace").split(b"/"))
            with refusals():
                found = await self._sandbox.file(workspace, "open_file", {"path": path})
        except PicoError as error:
            error.message = f"{where}.path: {error.message.removeprefix('path: ')}"
            if error.status == 404 and self._store.several_hosts:
                error.message += f" (on the host {platform.node()}; files lie on the host that took them)"
            raise
        seen = await anyio.to_thread.run_sync(_read_shown, found["descriptor"], room)
        return NewFile(path.rpartition("/")[2], media_type_of(path), path=path, **seen)


def _read_shown(descriptor: int, most: int) -> dict[str, Any]:
    """Return what ``NewFile`` says of a file of the workspace: its content where the model can be shown it,
    its size, and why that is too much. Closes it.
    """
    with open(descriptor, "rb") as file:
        size, start = os.fstat(descriptor).st_size, file.read(64)
        if not (start.startswith(PDF) or is_picture(start)):
            return {"data": b"", "size": size}
        if size > most:
            return {"data": b"", "size": size, "why": TOO_LARGE_TO_SHOW}
        return {"data": start + file.read(size - len(start)), "size": size}
