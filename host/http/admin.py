"""The operator's routes: skills, workspace and memory, stopping, the audit, MCP servers and sign-ins."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final, Literal

import anyio.to_thread
from anyio.abc import TaskGroup
from pydantic import Field, StringConstraints
from starlette.requests import Request

from host.http.bodies import Body, Text
from host.http.callers import caller_of
from host.http.routing import OF_PRINCIPAL, PAGE, Api, Operation, Parameter, operation, page_of
from host.ports import Sandbox, SandboxFault, Trust, Workspace
from host.runs.admission import RateLimit
from host.runs.operators_servers import McpServerShape, OperatorsServers
from host.runs.principals import PrincipalCache
from host.sandbox.client import HOST
from host.skills.catalogue import Catalogue, Tier
from host.skills.knowledge import MEMORY_FILE, Knowledge
from shared.errors import Conflict, NotFound, PicoError
from shared.ids import PRINCIPAL
from shared.shapes import PageShape, Shape, view
from shared.store.sql.audit import ACTIONS, ActShape
from shared.store.store import Store

if TYPE_CHECKING:
    from host.mcp_clients.sign_in import Attempt


class SkillTiersShape(Shape):
    """Names of skills: of each tier in the order of their folders, and those in force."""

    builtIn: list[str]  # noqa: N815 - the name on the wire
    org: list[str]
    user: list[str]
    effective: list[str]


class SkillShape(Shape):
    """A skill in force."""

    name: str
    description: str
    tier: Tier
    path: str


class SkillProblemShape(Shape):
    """Why a folder is not used as it was meant."""

    tier: Tier
    path: str
    problem: str


class SkillsShape(Shape):
    """What the agent can load."""

    skills: SkillTiersShape
    details: list[SkillShape]
    problems: list[SkillProblemShape]


class ReloadedShape(SkillsShape):
    """What the agent can load, all read again."""

    status: Literal["reloaded"]


class WorkspaceShape(Shape):
    """A directory's listing or a file's text, and the version that a change of it has to name."""

    path: str
    text: str
    version: str


class MemoryRequest(Body):
    """PUT /admin/memory; ``version`` is that of the text which this one replaces, null if there is none."""

    text: Annotated[Text, Field(max_length=100_000)]
    version: Text | None


class StopRequest(Body):
    """POST /control/stop."""

    reason: Annotated[Text, Field(max_length=1000)] = "requested"


class StopShape(Shape):
    """The host is stopping."""

    status: Literal["stopping"]
    reason: str
    message: str


PATH: Final = Parameter("path", "Within the workspace; a directory's is empty or ends in /")


class AdminApi(Api):
    """Skills, workspace and memory, and the host's end."""

    def __init__(self, knowledge: Knowledge, sandbox: Sandbox, stop: Callable[[str], None]) -> None:
        self._knowledge = knowledge
        self._sandbox = sandbox
        self._workspace = Workspace(HOST, sandbox.root, Trust.MAIN)
        self._stop = stop

    @operation("GET", "/admin/skills")
    async def skills(self, request: Request) -> SkillsShape:
        """The skills as the next turn will see them."""
        return skills_view((await self._knowledge.look()).skills)

    @operation("POST", "/admin/reload-skills")
    async def reload(self, request: Request) -> ReloadedShape:
        """Read the skills again, changed or not."""
        return {"status": "reloaded", **skills_view((await self._knowledge.reload()).skills)}

    @operation("GET", "/admin/workspace", parameters=[PATH], errors=(404,))
    async def workspace(self, request: Request) -> WorkspaceShape:
        """A directory's listing, or a file's text."""
        return await self._look(request.query_params.get(PATH.name, ""))

    @operation("PUT", "/admin/memory", errors=(409,))
    async def memory(self, request: Request, body: MemoryRequest) -> WorkspaceShape:
        """Replace the memory's text, if nobody changed it meanwhile."""
        try:
            now = (await self._look(MEMORY_FILE))["version"]
        except NotFound:
            now = None
        if body.version != now:
            raise Conflict("version: the memory was changed meanwhile; read it again", code="changed")
        wanted = {"path": MEMORY_FILE, "content": body.text, "overwrite": True}
        try:
            await self._sandbox.file(self._workspace, "write_file", wanted)
        except SandboxFault as fault:
            raise Conflict(f"The memory can't be written: {fault}", code="not_written") from None
        return await self._look(MEMORY_FILE)

    async def _look(self, path: str) -> WorkspaceShape:
        """Look at the workspace as agents do: what they can't reach isn't there."""
        tool = "read_text" if path and not path.endswith("/") else "list_dir"
        asked = {"path": path or ".", "limit": 512 * 1024}
        try:
            found = await self._sandbox.file(self._workspace, tool, asked)
        except SandboxFault as fault:
            raise NotFound(f"path: {fault}") from None
        version = hashlib.sha256(found["text"].encode()).hexdigest()
        return {"path": path, "text": found["text"], "version": version}

    @operation("POST", "/control/stop")
    async def stop(self, request: Request, body: StopRequest) -> StopShape:
        """Drain and exit."""
        self._stop(body.reason)
        message = "The host takes no new runs, lets the running ones end, stores everything and exits."
        return {"status": "stopping", "reason": body.reason, "message": message}


def skills_view(catalogue: Catalogue) -> SkillsShape:
    """Return the names of each tier and of those in force, what is known of these, and the problems."""
    tiers = {tier: [skill.name for skill in skills] for tier, skills in catalogue.tiers.items()}
    return {
        "skills": view(SkillTiersShape, catalogue, **tiers, effective=list(catalogue.effective)),
        "details": [view(SkillShape, skill) for skill in catalogue.effective.values()],
        "problems": [view(SkillProblemShape, each) for each in catalogue.problems],
    }


logger = logging.getLogger("picoclaw.audit")

SINCE: Final = Parameter("since", "Only from this instant on", "instant")
ACTION: Final = Parameter("action", "Only this action", ACTIONS)
OF: Final = (
    Parameter(OF_PRINCIPAL.name, "Only what is about this principal"),
    ACTION,
    SINCE,
)

NAMED: Final = ("id", "run_id")
"""Parts of a path that are ids; names of files are nobody's here."""


class AuditShape(PageShape):
    """A page of the audit."""

    audit: list[ActShape]


class AuditApi(Api):
    """The audit."""

    def __init__(self, store: Store, principals: PrincipalCache) -> None:
        self._store = store
        self._principals = principals
        self._noted = RateLimit(1)

    @operation("GET", "/audit", parameters=[*PAGE, *OF])
    async def list(self, request: Request) -> AuditShape:
        """List what was done, newest first."""
        page = await self._store.audit.page(
            **page_of(request),
            principal_id=request.query_params.get(OF_PRINCIPAL.name),
            action=ACTION.text(request),
            since=SINCE.instant(request) or 0,
        )
        return {"audit": page.items, "next_cursor": page.next_cursor}

    async def reached(self, request: Request, declared: Operation) -> None:
        """Note that the operator reaches what is another principal's, once a minute for each thing."""
        whose = request.query_params.get(OF_PRINCIPAL.name)
        named = {key: request.path_params[key] for key in NAMED if key in request.path_params}
        subject = next(iter(named.values()), None)
        if declared.scope is None or caller_of(request).within is not None:
            return
        others = whose == "*" or (whose or "").startswith(PRINCIPAL)
        if not (subject or others) or not await self._principals.are_there():
            return
        what = f"{declared.method} {declared.path}"
        for key, said in named.items():
            what = what.replace(f"{{{key}}}", said)
        if self._noted.retry_after((what, whose)) is not None:
            return
        self._noted.count((what, whose))
        try:
            await self._store.audit.reached(str(subject), what, None if subject else whose)
        except PicoError as error:
            # A full disk keeps nobody from deleting.
            logger.warning("Not in the audit: %s (%s)", what, error.message)


class McpServersShape(Shape):
    """The operator's servers."""

    servers: list[McpServerShape]


class SignInShape(Shape):
    """Where a person signs in."""

    address: str


class SignInRequest(Body):
    """Where the browser is to be sent afterwards."""

    redirect_uri: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048)]


class CallbackRequest(Body):
    """The address that the browser was sent back to, whole."""

    callback: Annotated[str, StringConstraints(min_length=1, max_length=8192)]


class McpServersApi(Api):
    """The routes below /mcp/servers."""

    def __init__(
        self, servers: OperatorsServers, background: TaskGroup, allowed_hosts: tuple[str, ...]
    ) -> None:
        self._servers = servers
        self._background = background
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._attempts: dict[str, Attempt] = {}

    @operation("GET", "/mcp/servers")
    async def list(self, request: Request) -> McpServersShape:
        """Connect to the operator's MCP servers and tell how each is."""
        return {"servers": await self._servers.look()}

    @operation("GET", "/mcp/servers/{name}", errors=(404,))
    async def get(self, request: Request) -> McpServerShape:
        """Connect to one of the operator's MCP servers and tell how it is."""
        return await self._look(request.path_params["name"])

    @operation("POST", "/mcp/servers/{name}/sign-in", errors=(404, 409))
    async def begin(self, request: Request, body: SignInRequest) -> SignInShape:
        """Begin a sign-in; one that was begun before is given up."""
        sign_in = self._servers.sign_in(request.path_params["name"])
        sign_in.check_key()
        if (before := self._attempts.pop(sign_in.name, None)) is not None:
            before.give_up()
        # Half a second of imports.
        module = await anyio.to_thread.run_sync(importlib.import_module, "host.mcp_clients.sign_in")
        attempt = self._attempts[sign_in.name] = module.Attempt(
            sign_in, body.redirect_uri, self._allowed_hosts
        )
        return {"address": await attempt.begin(self._background)}

    @operation("POST", "/mcp/servers/{name}/sign-in/callback", errors=(404, 409))
    async def end(self, request: Request, body: CallbackRequest) -> McpServerShape:
        """End a sign-in with the address that the browser was sent back to."""
        name = self._servers.sign_in(request.path_params["name"]).name
        attempt = self._attempts.get(name)
        if attempt is None:
            raise Conflict(f"No sign-in at {name} was begun at this host")
        await attempt.end(body.callback)
        del self._attempts[name]
        return await self._look(name)

    @operation("DELETE", "/mcp/servers/{name}/sign-in", errors=(404, 409))
    async def forget(self, request: Request) -> None:
        """Forget the tokens of a server."""
        sign_in = self._servers.sign_in(request.path_params["name"])
        if not await sign_in.forget():
            raise NotFound(f"There is no sign-in at {sign_in.name}")

    async def _look(self, name: str) -> McpServerShape:
        (shape,) = await self._servers.look(name)
        return shape
