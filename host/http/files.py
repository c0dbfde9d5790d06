"""The files of a conversation's workspace over HTTP: listing, fetching, bringing, moving, deleting."""

import contextlib
import email.utils
import os
import platform
import stat
from collections.abc import Iterator
from functools import partial
from typing import Final, Literal, NotRequired

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from host.http import file_streams
from host.http.auth import TokenBook
from host.http.bodies import JSON, LEND, Body, NotBlank, refuse_packed
from host.http.callers import caller_of
from host.http.conversations import conversation_of
from host.http.file_requests import (
    LONGEST_PATH,
    OCTETS,
    checked_path,
    conditions,
    describing,
    path_of,
    span_of,
    tags,
)
from host.http.file_sets import FOLDER, Form, TarDownload
from host.http.routing import PAGE, Api, Parameter, operation, page_of
from host.ports import Sandbox, Workspace
from host.runs.principals import Spaces
from host.telemetry import Metrics
from shared.clock import iso
from shared.errors import BodyTimeout, InvalidInput, NotFound, PicoError, PreconditionFailed, Unavailable
from shared.settings import Settings
from shared.shapes import PageShape, Shape
from shared.store.store import Store

INBOX: Final = "inbox"
FORM: Final = "multipart/form-data"
FILE: Final = "/chat/{id}/files/{path:path}"


class FileShape(Shape):
    """A file, a directory, a link or something else in a workspace; ``size`` is in bytes."""

    path: str
    size: int
    modified_at: str
    type: Literal["file", "directory", "link", "other"]


class FilesShape(PageShape):
    """A page of files in the order of their paths' bytes."""

    files: list[FileShape]
    incomplete: bool


class StoredFileShape(Shape):
    """A file that was stored; ``host`` names the host that has it, where there are several."""

    path: str
    size: int
    sha256: str
    host: NotRequired[str]


class StoredFilesShape(Shape):
    """Files that were stored."""

    files: list[StoredFileShape]


class MovedShape(Shape):
    """Where a file or directory is now."""

    path: str


class MoveRequest(Body):
    """POST /chat/{id}/files/{path}."""

    move_to: NotBlank


IF_MATCH: Final = Parameter("If-Match", "Only if it has this ETag", place="header")
IF_NONE_MATCH: Final = Parameter(
    "If-None-Match", "Only if it has none of these ETags; `*`: if nothing is there", place="header"
)
RANGE: Final = Parameter("Range", "Only these bytes, one range", place="header")
TAR: Final = "tar"
FORMAT: Final = Parameter("format", "`tar`: their contents as an archive", (TAR,))
PREFIX: Final = Parameter("prefix", "Only paths that begin so")
SHA256: Final = Parameter("sha256", "Also the header X-Content-SHA256", "flag")
RECURSIVE: Final = Parameter("recursive", "Also a directory with all that is in it", "flag")
INTO: Final = Parameter(FOLDER, "The directory they go to; inbox if not given")


class FilesApi(Api):
    """What is there of files."""

    def __init__(
        self,
        store: Store,
        sandbox: Sandbox,
        spaces: Spaces,
        tokens: TokenBook,
        settings: Settings,
        counts: Metrics,
    ) -> None:
        self._store = store
        self._sandbox = sandbox
        self._spaces = spaces
        self._tokens = tokens
        self._most = settings.files.max_mb << 20
        self._streams = file_streams.Streams(counts)

    async def _workspace(self, request: Request) -> Workspace:
        """Return where the conversation of a request works, with its trust; raises NoConversation."""
        return await self._spaces.of_conversation(await conversation_of(request, self._store))

    @operation(
        "GET",
        "/chat/{id}/files",
        scope="files",
        parameters=(PREFIX, FORMAT, *PAGE),
        content="application/x-tar",
    )
    async def list(self, request: Request) -> FilesShape | Response:
        """A workspace's files whose paths begin with a prefix, in the order of their bytes."""
        asked = page_of(request)
        prefix, after = request.query_params.get("prefix", ""), asked["cursor"] or ""
        if max(len(prefix.encode()), len(after.encode())) > LONGEST_PATH:
            raise InvalidInput(f"prefix, cursor: have at most {LONGEST_PATH} bytes")
        wanted = {"prefix": prefix, "after": after, "limit": asked["limit"]}
        workspace = await self._workspace(request)
        if (kind := request.query_params.get(FORMAT.name)) is not None:
            return await self._archive(request, workspace, kind, prefix)
        with file_streams.refusals():
            found = await self._sandbox.file(workspace, "list_files", wanted)
        page = found["files"][: asked["limit"]]
        files: list[FileShape] = [
            {
                "path": entry["path"],
                "size": entry["size"],
                "modified_at": iso(entry["modified_ms"]),
                "type": entry["type"],
            }
            for entry in page
        ]
        more = len(found["files"]) > len(page)
        return {
            "files": files,
            "next_cursor": page[-1]["path"] if more else None,
            "incomplete": found["incomplete"],
        }

    async def _archive(self, request: Request, workspace: Workspace, kind: str, prefix: str) -> Response:
        if kind != TAR:
            raise InvalidInput(f"{FORMAT.name}: must be {TAR}, or left out for a list")
        with contextlib.ExitStack() as held:
            held.enter_context(self._streams.one(caller_of(request).principal.id))
            archive = TarDownload(self._streams, self._sandbox, workspace, prefix)
            await archive.begin(held)
            return archive

    @operation(
        "GET",
        FILE,
        scope="files",
        content=OCTETS,
        parameters=(RANGE, IF_MATCH, IF_NONE_MATCH, SHA256),
        errors=(409, 412, 416),
        also={206: None, 304: None},
    )
    async def get(self, request: Request) -> Response:
        """Fetch a file, or a part of it."""
        path, workspace = path_of(request), await self._workspace(request)
        with contextlib.ExitStack() as held:
            held.enter_context(self._streams.one(caller_of(request).principal.id))
            with file_streams.refusals():
                found = await self._sandbox.file(workspace, "open_file", {"path": path})
            held.callback(os.close, found["descriptor"])
            if not stat.S_ISREG(os.fstat(found["descriptor"]).st_mode):
                raise Unavailable("the sandbox gave no file")
            return await self._answer(request, path, found["descriptor"], held)

    async def _answer(
        self, request: Request, path: str, descriptor: int, held: contextlib.ExitStack
    ) -> Response:
        tag, status = file_streams.etag_of(descriptor), os.fstat(descriptor)
        headers = {"etag": f'"{tag}"', "last-modified": email.utils.formatdate(status.st_mtime, usegmt=True)}
        match, unless = tags(request, "if-match"), tags(request, "if-none-match")
        if match is not None and {"*", tag}.isdisjoint(match):
            raise PreconditionFailed(f"{path} is not the file that If-Match names")
        if unless is not None and not {"*", tag}.isdisjoint(unless):
            return Response(status_code=304, headers=headers)
        span = span_of(request, tag, status.st_size)
        headers |= describing(path)
        if span is not None:
            headers["content-range"] = f"bytes {span[0]}-{span[1] - 1}/{status.st_size}"
        if SHA256.flag(request):
            headers["x-content-sha256"] = await self._streams.thread(
                partial(file_streams.digest_of, descriptor)
            )
        code = 200 if span is None else 206
        whole = (0, status.st_size)
        return file_streams.Download(self._streams, descriptor, held.pop_all(), span or whole, headers, code)

    @operation(
        "PUT",
        FILE,
        scope="files",
        status=201,
        binary=OCTETS,
        parameters=(IF_MATCH, IF_NONE_MATCH),
        errors=(409, 412, 415, 507),
        also={200: None},
    )
    async def put(self, request: Request) -> JSON[StoredFileShape]:
        """Store a file whole; missing directories are made."""
        path = path_of(request)
        if "content-range" in request.headers:
            raise InvalidInput("Content-Range: a file is stored whole")
        refuse_packed(request)
        declared = request.headers.get("content-length", "")
        file_streams.require_size(int(declared) if declared.isdigit() else 0, self._most)
        wanted = {"path": path, **conditions(request)}
        lend = request.scope.get(LEND, contextlib.nullcontext)
        with self._streams.one(caller_of(request).principal.id), _said_idle():
            workspace = await self._workspace(request)
            async with file_streams.uploading(self._upload(workspace), wanted) as upload:
                async for data in request.stream():
                    with lend() as lent:
                        await upload.write(data, lent)
                await upload.finish()
                await self._require_still_there(request)
                done = await upload.commit(wanted)
        return JSON(
            self._stored(path, upload),
            status_code=201 if done["created"] else 200,
            headers={"etag": f'"{done["etag"]}"'},
        )

    def _upload(self, workspace: Workspace) -> file_streams.Upload:
        return file_streams.Upload(self._streams, self._sandbox, workspace, self._most)

    def _stored(self, path: str, upload: file_streams.Upload) -> StoredFileShape:
        found: StoredFileShape = {"path": path, "size": upload.size, "sha256": upload.sha256}
        if self._store.several_hosts:
            found["host"] = platform.node()
        return found

    async def _require_still_there(self, request: Request) -> None:
        """Raise Unauthorized, Suspended, NoConversation for what ended while a file came."""
        await self._tokens.check(caller_of(request))
        await conversation_of(request, self._store)

    @operation(
        "POST",
        "/chat/{id}/files",
        scope="files",
        status=201,
        binary=FORM,
        parameters=(INTO, IF_MATCH, IF_NONE_MATCH),
        errors=(409, 412, 415, 507),
    )
    async def post(self, request: Request) -> StoredFilesShape:
        """Store the files of a form, when all of them have come."""
        workspace = await self._workspace(request)
        form, wanted = Form(request.query_params.get(FOLDER, INBOX)), conditions(request)
        async with contextlib.AsyncExitStack() as held:
            held.enter_context(self._streams.one(caller_of(request).principal.id))
            held.enter_context(_said_idle())
            await form.read(request, lambda: file_streams.uploading(self._upload(workspace), {}), held)
            paths = form.paths()
            await self._require_still_there(request)
            stored: list[str] = []
            try:
                for path, upload in paths:
                    await upload.commit({"path": path, **wanted})
                    stored.append(path)
            except PicoError as error:
                error.message += f"; before it were stored: {', '.join(stored)}" if stored else ""
                raise
        return {"files": [self._stored(path, upload) for path, upload in paths]}

    @operation("POST", FILE, scope="files", parameters=(IF_MATCH,), errors=(409, 412))
    async def move(self, request: Request, body: MoveRequest) -> MovedShape:
        """Give a file or directory another path, at which there is nothing."""
        path = path_of(request)
        target = checked_path(body.move_to.encode(errors="replace").split(b"/"), "move_to")
        if target.startswith(f"{path}/"):
            raise InvalidInput("move_to: lies within what is to be moved")
        wanted = {"path": path, "target": target, **conditions(request)}
        workspace = await self._workspace(request)
        with file_streams.refusals():
            await self._sandbox.file(workspace, "move_path", wanted)
        return {"path": target}

    @operation("DELETE", FILE, scope="files", parameters=(IF_MATCH, RECURSIVE), errors=(409, 412))
    async def delete(self, request: Request) -> None:
        """Delete a file, a link or an empty directory."""
        wanted = {"path": path_of(request), "recursive": RECURSIVE.flag(request), **conditions(request)}
        workspace = await self._workspace(request)
        with file_streams.refusals():
            await self._sandbox.file(workspace, "delete_path", wanted)

    @operation("POST", "/files", scope="files", listed=False)
    async def nowhere(self, request: Request) -> None:
        """Say where files go."""
        raise NotFound(
            "Files belong to a conversation: begin one with POST /chat, then use /chat/{id}/files."
        )


@contextlib.contextmanager
def _said_idle() -> Iterator[None]:
    """Name what ends a stream: its client's silence, or its going."""
    try:
        yield
    except BodyTimeout as error:
        raise BodyTimeout(error.message, code="idle") from None
    except ClientDisconnect:
        raise InvalidInput("body: ended before it was whole") from None
