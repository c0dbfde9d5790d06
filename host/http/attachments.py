"""What a request says of files that come with its message, until they can be taken in."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, Self

import anyio.to_thread
from pydantic import ConfigDict, Field, model_validator

from host.http.bodies import Body, NotBlank, Text
from host.http.callers import Caller
from host.http.file_requests import LONGEST_NAME, checked_path
from host.http.file_streams import refusals
from host.ports import Sandbox, Workspace
from host.runs.attachments import LARGEST_OF_ALL, PDF, WRITER, Attachments, NewFile, decoded, media_type_of
from host.runs.principals import Spaces
from host.runs.spec import RunSpec
from host.tools.pictures_and_documents import is_picture
from shared.errors import FileTooLarge, InvalidInput, NoConversation, PicoError
from shared.ids import CONVERSATION, new_id
from shared.store.store import Store

MOST: Final = 100
TOO_LARGE: Final = "attachments: have more than 20 MiB in all; bring large files by /chat/{id}/files"
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
            conversation = await self._store.conversations.reach(caller.within, said)
            if conversation is None:
                raise NoConversation(said)
            owner = conversation.id
            spec = replace(spec, conversation_id=owner, principal_id=conversation.principal_id)
        workspace = await self._spaces.of_host(WRITER, spec.principal_id, owner)
        files: list[NewFile] = []
        for number, each in enumerate(asked):
            where = f"attachments.{number}"
            room = LARGEST_OF_ALL - sum(len(file.data) for file in files)
            if isinstance(each, AttachmentRequest):
                files.append(await self._file(each, where, workspace, room))
            else:
                files.append(each)
        with refusals():
            attached = await self._attachments.staged(files, spec.principal_id, owner)
        return replace(spec, attached=attached)

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
        data, size = await anyio.to_thread.run_sync(_read, found["descriptor"], room)
        return NewFile(path.rpartition("/")[2], media_type_of(path), data, path, size)


def _read(descriptor: int, most: int) -> tuple[bytes, int]:
    """Return a file's content where the model can be shown it, and its size; closes it."""
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        start = file.read(64)
        is_shown = size <= most and (start.startswith(PDF) or is_picture(start))
        return start + file.read(size - len(start)) if is_shown else b"", size
