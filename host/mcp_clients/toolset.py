"""The tools of one connected server, the resources of all of them, and what they ask a person (elicitation).

A call that asks is given up, and made again with the answer: nothing waits meanwhile.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import anyio
from pydantic import Field, ValidationError

from host.mcp_clients.json_rpc import cut
from host.mcp_clients.listed_tools import ListedTool, shown
from host.mcp_clients.outcomes import Heard, quoted, reason
from host.mcp_clients.server_config import ServerConfig
from host.ports import ToolResult, ToolSpec
from host.tools.arguments import refused
from shared import jsons
from shared.ask_contract import DEPTH
from shared.tool_contract import Arguments
from shared.untrusted import defused, one_line

if TYPE_CHECKING:
    from mcp.client import Client

    from host.schemas import SchemaJudge

LONGEST_MESSAGE: Final = 4000
LONGEST_FIELD: Final = 300
MOST_OPTIONS: Final = 20
Form = Mapping[str, Any]
"""A JSON Schema of an object whose fields are texts, numbers, truth values or choices."""


def question_of(server: str, message: str, form: Form, url: str = "") -> dict[str, Any]:
    """Return the question, and the answers to choose from where there are some."""
    fields = _fields(form)
    said = f"The MCP server {server} asks: {_line(message, LONGEST_MESSAGE)}"
    if url:
        said += f"\nOpen {_line(url, LONGEST_MESSAGE)}, and answer when you are done."
    elif len(fields) == 1:
        said += f"\nYour answer is {_about(fields)[0]}."
    elif fields:
        said += "\nAnswer with a JSON object of\n" + "\n".join(_about(fields))
    options = _options(next(iter(fields.values()))) if len(fields) == 1 else []
    return {"question": said, "options": options} if options else {"question": said}


def content_of(form: Form, answer: str) -> dict[str, Any] | None:
    """Return a person's answer as the form wants it, with its defaults; None if it is no answer."""
    fields = _fields(form)
    given = _parsed(answer)
    if not isinstance(given, dict):
        if len(fields) > 1:
            return None
        given = {name: answer if field.get("type") == "string" else given for name, field in fields.items()}
    if not all(map(_is_value, given.values())):
        return None
    return {name: field["default"] for name, field in fields.items() if "default" in field} | given


def _fields(form: Form) -> dict[str, Mapping[str, Any]]:
    fields = form.get("properties")
    named = fields.items() if isinstance(fields, Mapping) else ()
    return {name: field for name, field in named if isinstance(field, Mapping)}


def _about(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        _line(f"{name}: {jsons.dumps(field) if jsons.fits(field) else 'anything'}", LONGEST_FIELD)
        for name, field in fields.items()
    ]


def _options(field: Mapping[str, Any]) -> list[str]:
    given = ["true", "false"] if field.get("type") == "boolean" else field.get("enum")
    if not isinstance(given, list) or len(given) > MOST_OPTIONS:
        return []
    return [option for option in given if isinstance(option, str)]


def _parsed(answer: str) -> Any:
    try:
        return jsons.loads(answer)
    except jsons.JSONDecodeError:
        return answer


def _is_value(value: Any) -> bool:
    return not isinstance(value, dict | list) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _line(text: str, longest: int) -> str:
    return defused(one_line(text[:longest]))


logger = logging.getLogger("picoclaw.mcp")

PROGRESS_EVERY_S: Final = 1.0
READ: Final = "read_resource"
Progressed = Callable[[float, float | None, str | None], Awaitable[None]]


def _nobody(*_: object) -> None:
    """Nobody listens."""


@dataclass(slots=True)
class Relay:
    """Where a run hears what its servers say besides their answers: warnings, and how far a call is.

    ``asks``: a person can be asked; ``answers``: what people have answered to questions of the call.
    """

    warn: Callable[[str], None] = _nobody
    progressed: Callable[[str, Mapping[str, Any]], None] = _nobody
    asks: bool = False
    answers: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A request that a server has not answered yet; ``question``: what it asks a person first."""

    scope: anyio.CancelScope
    question: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells the run what one server says besides its answers."""

    server: str
    relay: Relay
    judge: SchemaJudge
    calls: list[Call] = field(default_factory=list)
    """The requests that the server is at."""

    async def ask(self, message: str, form: Form, url: str) -> Mapping[str, Any] | None:
        """Return a person's answer, None where nobody can be asked.

        A call that has to wait for it is given up; of several it is not known which one asks.
        """
        question = question_of(self.server, message, form, url)
        for given in self.relay.answers:
            if given[0] == question["question"]:
                self.relay.answers.remove(given)
                content = content_of(form, given[1])
                if content is not None and (await self.judge.value(form, content)).value_fault is None:
                    return content
                self.warn("asked a person, whose answer doesn't fit the form: it was declined")
                return None
        if not self.relay.asks or len(self.calls) != 1:
            self.warn(
                "wanted to ask a person something (elicitation), which is not possible here: it was declined"
            )
            return None
        (call,) = self.calls
        call.question = call.question or question
        call.scope.cancel()
        await anyio.sleep_forever()
        return None

    def warn(self, sentence: str) -> None:
        """Put a sentence into the run's warnings; it is told without the server's name."""
        self.relay.warn(f"The MCP server {self.server} {sentence}.")

    def log(self, level: str, data: Any) -> None:
        """Put the server's words into the log."""
        said = jsons.dumps(data) if jsons.fits(data) else ""
        logger.info("The MCP server %s logs (%s): %s", self.server, level, quoted(said))


@dataclass(eq=False)
class ExternalToolset:
    """The tools of one connected server, ``specs`` in its order."""

    config: ServerConfig
    client: Client
    heard: Heard
    teller: Teller
    judge: SchemaJudge
    depth: int = 0
    specs: list[ToolSpec] = field(default_factory=list)
    _tools: dict[str, ListedTool] = field(default_factory=dict)

    def clear(self) -> None:
        """Offer no tool any more."""
        self.specs, self._tools = [], {}

    def add(self, spec: ToolSpec, tool: ListedTool) -> None:
        """Offer a tool of the server under the spec's name."""
        self.specs.append(spec)
        self._tools[spec.name] = tool

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool; a hung or broken server gives an error result."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolResult(f"There is no tool named {name}.", is_error=True)

        async def ask(scope: anyio.CancelScope) -> ToolResult:
            told = self._progress(name, scope)
            wanted = tool.arguments(arguments)
            result, structured = await sdk().called(
                self.client, tool.name, wanted, told, {DEPTH: self.depth + 1}
            )
            scope.deadline = math.inf  # it has answered
            return await self._judged(tool, result, structured)

        return await self._asked(ask)

    async def read(self, uri: str) -> ToolResult:
        """Read a resource; see ``call``."""
        return await self._asked(lambda _: sdk().read(self.client, uri))

    async def _asked(self, ask: Callable[[anyio.CancelScope], Awaitable[ToolResult]]) -> ToolResult:
        seconds = self.config.timeout_ms / 1000
        self.heard.status, self.heard.fault, self.heard.noise = 0, "", ""
        try:
            with anyio.fail_after(seconds) as scope:
                call = Call(scope)
                self.teller.calls.append(call)
                try:
                    return await ask(scope)
                finally:
                    self.teller.calls.remove(call)
        except TimeoutError:
            late = f"did not answer within {seconds:g} s; the call may have taken effect"
            return self._fault(late + self.heard.noise)
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever a server makes it raise
            logger.warning("A call of an MCP server failed: %s", type(error).__name__)
            return self._fault(reason(error, self.heard, self.config))
        return replace(self._fault("asks a person first"), question=call.question)

    def _progress(self, name: str, scope: anyio.CancelScope) -> Progressed:
        """Return what hears of a call's progress: each keeps it alive, one a second is told."""
        told_at = -PROGRESS_EVERY_S

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            nonlocal told_at
            now = anyio.current_time()
            scope.deadline = now + self.config.timeout_ms / 1000
            if now - told_at >= PROGRESS_EVERY_S:
                told_at = now
                self.teller.relay.progressed(
                    name, {"progress": progress, "total": total, "message": message or ""}
                )

        return progressed

    async def _judged(self, tool: ListedTool, result: ToolResult, structured: Any) -> ToolResult:
        if result.is_error or tool.output is None:
            return result
        fault = (await self.judge.value(tool.output, structured)).value_fault
        if fault is None:
            return result
        said = self._fault(
            f"answered what misses its own output schema ({shown(fault)}); the call took effect, and it said"
        )
        return replace(said, text=cut(f"{said.text[:-1]}:\n{result.text}"))

    def _fault(self, reason: str) -> ToolResult:
        return ToolResult(f"The MCP server {self.teller.server} {reason}.", is_error=True)


class Resource(Arguments):
    """The arguments of ``read_resource``."""

    server: str = Field(max_length=64, description="The server's name")
    uri: str = Field(max_length=8192, description="The resource's address, as a result or the server gave it")


class Resources:
    """The tool that reads resources of the ``servers`` that have some."""

    def __init__(self) -> None:
        self.servers: dict[str, ExternalToolset] = {}

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The one tool, if there is such a server."""
        if not self.servers:
            return []
        about = "Read a resource of an MCP server, such as one that a result links to; of these servers: "
        schema = Resource.model_json_schema()
        return [ToolSpec(READ, about + ", ".join(self.servers), schema, read_only=True)]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Read one."""
        try:
            asked = Resource.model_validate(arguments)
        except ValidationError as error:
            return refused(error)
        server = self.servers.get(asked.server)
        if server is None:
            return ToolResult(f"server: must be one of {', '.join(self.servers)}", is_error=True)
        return await server.read(asked.uri)


def sdk() -> Any:
    """Return the SDK's side: loaded with the first external server, as most runs have none."""
    return importlib.import_module("host.mcp_clients.sdk_session")
