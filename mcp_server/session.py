"""One session from birth to the end of its input; and all that it would build, done once before a fork."""

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any, Final

import anyio
import uvloop
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server

from mcp_server.server import Asking, build_server
from mcp_server.session_request import DEFAULT_TASK_QUOTA, Identity
from mcp_server.tools import Caller, Tools
from mcp_server.transport import NotPollable, claim_standard_streams, open_streams
from shared import jsons
from shared.clock import checked_zone, machine_zone, now_ms
from shared.errors import InvalidInput, NoConversation, PicoError, StoreError
from shared.logging import configure
from shared.principals import OPERATOR, principal_of, said_name, stored_name
from shared.redact import Redactor
from shared.store import open_tool_store, warm_shared_store
from shared.store.sqlite.content import temporary_directory
from shared.store.store import Store
from shared.tasks import TaskService
from shared.tool_contract import tool_declarations
from shared.values import Conversation

Wire = tuple[int, int]
"""The descriptors a session reads and writes."""


def run_session(
    identity: Identity, *, wire: Wire | None = None, lifeline: int | None = None, asks: bool = False
) -> int:
    """Serve ``wire`` (default: descriptors 0 and 1) until its client is gone; return the exit status.

    ``lifeline``: a descriptor that becomes readable when whoever asked for the session has ended. ``asks``:
    the client is another agent, which may ask the host's.
    """
    configure("WARNING", "json", Redactor(()))
    try:
        store = open_tool_store(identity.db_path, identity.store_dir, identity.access, identity.token_id)
    except StoreError as error:
        print(f"picoclaw tool server: {error}", file=sys.stderr)  # noqa: T201 - no log is set up for people here
        return 1
    return anyio.run(
        _serve, store, identity, wire, lifeline, asks, backend_options={"loop_factory": uvloop.new_event_loop}
    )


async def _serve(
    store: Store, identity: Identity, wire: Wire | None, lifeline: int | None, asks: bool
) -> int:
    try:
        conversation = await _conversation(store, identity)
        server = _prepared(store, identity, conversation)
        if asks:
            server.middleware.append(Asking(identity._replace(conversation_id=conversation.id), store))
        async with anyio.create_task_group() as group:
            if lifeline is not None:
                group.start_soon(_end_with, lifeline, group.cancel_scope)
            await _run(server, wire)
            group.cancel_scope.cancel()
    except PicoError as error:
        logging.getLogger("picoclaw.mcp").error("the session could not start: %s", error.message)
        return 1
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()
    return 0


async def _end_with(lifeline: int, scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(lifeline)
    scope.cancel()


async def _conversation(store: Store, identity: Identity) -> Conversation:
    """Return the conversation that the principal calls so, made if there is none. Raises NoConversation."""
    whose, said = identity.principal_id, identity.conversation_id
    name = said_name(whose, said)
    found = await store.conversations.reach(whose, said)
    if found is None and principal_of(name) == OPERATOR:
        stored = stored_name(whose, name)
        found = await store.conversations.ensure(stored, now_ms(), trusted=False, principal_id=whose)
    if found is None or found.principal_id != whose:
        raise NoConversation(said)
    await store.durable()
    return found


def _prepared(store: Store, identity: Identity, conversation: Conversation) -> Server[Any]:
    caller = Caller(conversation, identity.is_main)
    tasks = TaskService(
        store,
        default_timezone=_timezone(identity),
        quota=identity.task_quota,
        acting=conversation.id,
    )
    tools = Tools(store, tasks, caller)
    return build_server(tools, caller, version=program_version())


def _timezone(identity: Identity) -> str:
    try:
        return checked_zone(identity.timezone) if identity.timezone else machine_zone()
    except ValueError as error:
        raise InvalidInput(f"TZ: {error}") from None


async def _run(server: Server[Any], wire: Wire | None) -> None:
    options = server.create_initialization_options()
    try:
        reader, writer = open_streams(*(wire or claim_standard_streams()))
    except NotPollable:
        async with stdio_server() as (read, write):
            await server.run(read, write, options)
        return
    await server.run(reader, writer, options)


@cache
def program_version() -> str:
    """Return the installed version, ``0`` from a bare source tree."""
    try:
        return installed_version("picoclaw")
    except PackageNotFoundError:
        return "0"


_HELLO: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "rehearsal", "version": "0"},
}
_TASK: Final = {"prompt": "rehearse", "schedule_type": "interval", "schedule_value": "3600000"}
_SCRIPT: Final[tuple[dict[str, Any], ...]] = (
    {"id": 1, "method": "initialize", "params": _HELLO},
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/list"},
    {"id": 3, "method": "tools/call", "params": {"name": "send_message", "arguments": {"text": "x"}}},
    {"id": 4, "method": "tools/call", "params": {"name": "schedule_task", "arguments": _TASK}},
    {"id": 5, "method": "tools/call", "params": {"name": "list_tasks"}},
    {"id": 6, "method": "resources/read", "params": {"uri": "picoclaw://conversation"}},
)


def rehearse(timezone: str) -> None:
    """Play a session to its end. Without a place for temporary files nothing happens but a slower start."""
    with contextlib.suppress(OSError), temporary_directory() as directory:
        database = directory / "store.db"
        _apart(lambda: open_tool_store(database, None, None))
        _play(Identity("rehearsal", True, database, None, timezone, DEFAULT_TASK_QUOTA))


def _apart(work: Callable[[], object]) -> None:
    """Do it in a process of its own: what making a store imports (sqlite-utils, 5 MiB) no session needs."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _play(identity: Identity) -> None:
    script = b"".join(jsons.dump_bytes({"jsonrpc": "2.0", **line}) + b"\n" for line in _SCRIPT)
    # Both fit into a pipe's buffer (64 KiB, pipe(7)), so nobody has to be at the other end.
    heard, said = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    try:
        os.write(heard[1], script)
        os.close(heard[1])
        run_session(identity, wire=(heard[0], said[1]))
    finally:
        for fd in (heard[0], *said):
            os.close(fd)


def warm() -> None:
    """Fill the caches every session would fill again; takes about half a second and 36 MiB."""
    for is_main in (False, True):
        for tool in tool_declarations(is_main=is_main).values():
            _ = tool.input_schema
    program_version()
    rehearse(os.environ.get("TZ") or "UTC")
    if os.environ.get("PICOCLAW_SHARED_STORE"):
        warm_shared_store()
    if threading.active_count() > 1:
        raise RuntimeError("a thread outlived the rehearsal; a fork would not be safe")
    gc.collect()
    # Frozen objects are not visited, so their pages stay shared with the sessions.
    gc.freeze()
