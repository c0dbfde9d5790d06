"""The ports: what an agent speaks to. Each protocol says what it promises, whoever implements it.

Model     a language model (``host.models``)
Toolset   tools of one conversation (``host.tools``, ``host.mcp_clients``)
Sandbox   files and commands of agents (``host.sandbox``)

Three more stand where others need them: ``host.agent.asking.Recorder`` (where an agent's steps go),
``shared.store.store.Store`` (the tool server has it too) and ``host.channels.base.Channel`` (plugins
implement it).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from shared.usage_values import Usage

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from shared.values import Block

WHOLE: Final = frozenset({"end_turn", "stop_sequence", "tool_use"})
"""Stop reasons of a reply that the model itself brought to its end
(https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons)."""

LIMITS: Final = {
    "max_tokens": "max_tokens, the most that one answer may have",
    "model_context_window_exceeded": "the end of the model's window",
}
"""Stop reasons of a reply that was cut off, and what it reached."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model's id, and the address of the API that knows it ("": Anthropic's)."""

    model: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply.

    ``blocks`` are plain content blocks, ready to be stored and to be sent back as the assistant's message;
    blank text blocks, which the API would refuse there, are left out. ``malformed`` holds, by tool use id,
    tool input that is not a JSON object; such a block stays in ``blocks`` with an empty input.
    ``asked`` is what was asked; ``model`` is what the API says answered. ``left_out`` are the kinds of blocks
    that the API had refused (``host.models.mending``): the history goes on without them.
    """

    blocks: list[Block]
    stop_reason: str
    usage: Usage
    model: str
    malformed: Mapping[str, str] = field(default_factory=dict)
    asked: Target | None = None
    left_out: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "".join(block["text"] for block in self.blocks if block["type"] == "text")

    @property
    def cut_call(self) -> str | None:
        """The id of the call that a limit cut off, which is the last block then, None if there is none."""
        last = self.blocks[-1] if self.blocks else {"type": ""}
        if self.stop_reason not in LIMITS or last["type"] != "tool_use":
            return None
        # Cut off before the first letter of its input, a call looks like one without any.
        return last["id"] if last["id"] in self.malformed or not last["input"] else None

    @property
    def tool_uses(self) -> list[Block]:
        """The ``tool_use`` blocks in their order."""
        return [block for block in self.blocks if block["type"] == "tool_use"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text, whitespace exact."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUseStart:
    """The model begins to write a tool call; its input is in the finished reply."""

    id: str
    name: str


Delta = TextDelta | ThinkingDelta | ToolUseStart


@dataclass(eq=False, repr=False)
class ModelError(Exception):
    """A step failed. ``message`` is a sentence of our own, without the API's text, a URL or a credential.

    ``retryable``: the same request may succeed later, after ``retry_after_s`` seconds if the API said so.
    ``status``: the HTTP status, or what an error inside the stream stands for; None without an answer.
    ``reason``: ``too_long`` when the request's ``tokens`` are too many for the model's ``window``,
    ``max_tokens`` when less output would fit, at most ``output`` (figures if the API named them), else "".
    ``said``: the API's own words, one line; ``asked``: whose. Not redacted before a KeyedModel raises it.
    """

    message: str
    _: KW_ONLY
    retryable: bool
    retry_after_s: float | None = None
    status: int | None = None
    reason: Literal["", "too_long", "max_tokens"] = ""
    tokens: int | None = None
    window: int | None = None
    output: int | None = None
    said: str = ""
    asked: Target | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def sentence(self) -> str:
        """The message with the API's own words behind it."""
        return f"{self.message.removesuffix('.')}: {self.said}" if self.said else self.message


Message = dict[str, Any]
"""A message of a Messages request: ``role`` and ``content``, a list of blocks."""

OnDelta = Callable[[Delta], None]
Ask = Callable[[Mapping[str, Any], OnDelta], Awaitable[Reply]]
"""Makes one request of one API, as ``Model.reply`` does; the request names the model."""


class Model(Protocol):
    """A model that answers one request at a time, telling its pieces as they come."""

    @property
    def ids(self) -> Sequence[str]:
        """The model's ids at its APIs: what may have to be paid for, the first one first."""

    @property
    def targets(self) -> Sequence[Target]:
        """The model at its addresses."""

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """Answer a Messages request (without ``model`` and ``stream``).

        Raises ``ModelError``; what ``on_delta`` raises passes unchanged.
        """


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it.

    ``input_schema`` is a JSON Schema object with ``additionalProperties: false``.
    ``parallel``: calls of one reply may run side by side with others. ``read_only``: a call has no effect,
    so that a run that was cut off during one may be repeated. ``definition``: the tool as the Messages API
    wants it, given where that runs the tool itself. ``speaks``: after a call the conversation may have said
    something that its readers should see at once. ``asks``: the result of a call is given by a person
    (``question``) or by the calling program. ``title``: the name for people, if it is another one.
    """

    name: str
    description: str
    input_schema: Mapping[str, Any]
    parallel: bool = True
    read_only: bool = False
    delegable: bool = True
    speaks: bool = False
    asks: Literal["", "question", "client_tool"] = ""
    definition: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    def __post_init__(self) -> None:
        if not self.definition:
            made = {"name": self.name, "description": self.description, "input_schema": self.input_schema}
            object.__setattr__(self, "definition", made)


@dataclass(frozen=True, slots=True)
class Image:
    """An image for the model: base64 ``data`` of an ``image/png|jpeg|gif|webp`` ``media_type``."""

    data: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gave: text for the model (a sentence if ``is_error``), and images if any.

    ``trusted``: the operator's own words, which the model needs no warning of. ``question``: what a person is
    to be asked before the call can come to an end.
    """

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()
    trusted: bool = False
    question: Mapping[str, Any] | None = None


class Toolset(Protocol):
    """A group of tools bound to one conversation at its birth; no argument changes whose it is."""

    @property
    def specs(self) -> Sequence[ToolSpec]:
        """The tools, in a stable order (the prompt cache depends on it)."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run one tool. Faults come back as ``ToolResult(is_error=True)``; only cancellation raises."""


@runtime_checkable
class SeenFiles(Protocol):
    """A toolset some of whose calls change a file that people see before they allow them."""

    async def base_sha256(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        """Return the SHA-256 of the file that a call changes, "" if there is none; None: it changes none."""


class Trust(IntEnum):
    """What a conversation may change of the words that agents obey; fixed at its birth."""

    UNTRUSTED = 0
    TRUSTED = 1
    MAIN = 2


@dataclass(frozen=True, slots=True)
class Allowance:
    """What files and commands of one principal have, in place of what the sandbox's policy allows.

    ``uid`` None: that of all commands. ``apart``: from others as ``principals.isolation`` says. ``counted``:
    the principal's directories, which may hold ``most_bytes`` (0: without a limit). ``readable``: names that
    may be read and are no links. The rest is what its grants name of the operator's, and everybody's skills.
    """

    uid: int | None
    counted: tuple[str, ...]
    readable: tuple[str, ...] = ()
    read_paths: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    skill_paths: tuple[str, ...] = ()
    allow_network: bool = False
    most_bytes: int = 0
    apart: bool = True


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where somebody works: whose processes and temporary files, which directory, with how much trust.

    ``allowance`` None: the operator's, who has what the sandbox's policy allows.
    """

    conversation: str
    root: Path
    trust: Trust = Trust.UNTRUSTED
    allowance: Allowance | None = None


class SandboxFault(Exception):
    """A request could not be served; the sentence is for the model.

    ``code``: why the request is refused (the name of an errno, or a word), "" if the sandbox failed.
    """

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


class Sandbox(Protocol):
    """Files and commands of agents, in a place that the kernel closes. All calls raise ``SandboxFault``."""

    @property
    def root(self) -> Path:
        """The directory that conversations work in."""

    async def file(
        self, workspace: Workspace, op: str, arguments: Mapping[str, Any], descriptors: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Have a file read, written or listed (``sandbox/worker/files/files.py`` knows the ``op``s).

        ``descriptors`` go along; one that comes with the answer is its ``descriptor``, the caller's to close.

        A cancelled caller's request is finished, or its worker ended, first.
        """

    async def view(self, descriptor: int, kind: str, **asked: int) -> dict[str, Any]:
        """Look into an open file with libraries, where it can do no harm (``sandbox/view.py`` knows how):
        a ``picture`` made smaller, the ``text`` of a PDF's pages. What is there no way to see is a ``fault``.
        """

    async def run(self, workspace: Workspace, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command line to its end, or with ``background`` start it and return its job's number.

        ``command``: ``command``, and as wanted ``cwd``, ``stdin``, ``timeout_ms``, ``background``. It is
        ended before a cancelled call raises.
        """

    async def jobs(self, workspace: Workspace, action: str, job: int | None = None) -> dict[str, Any]:
        """``list`` the background commands, ``read`` what one wrote, or ``kill`` one."""

    def program(
        self, workspace: Workspace, words: Sequence[str], environment: Mapping[str, str]
    ) -> AbstractAsyncContextManager[ByteStream]:
        """Run a program that lives longer than a call; yield its stdin and stdout."""

    async def forget(self, conversation: str) -> None:
        """End what a conversation left running, and remove its temporary files."""
