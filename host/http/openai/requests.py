"""What OpenAI's chat API is asked, as far as the door takes it: fields, messages, pictures and files."""

import base64
import hashlib
import mimetypes
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

import anyio
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from host.http.approvals import MOST_TOOLS, ToolName
from host.http.bodies import NO_NUL, NOT_BLANK, WHOLE, Body, NotBlank, Text, storable
from host.runs.attachments import LARGEST_OF_ALL, NewFile, decoded, media_type_of
from host.tools.pictures_and_documents import is_picture
from host.tools.without_sandbox import ClientTool
from shared import jsons
from shared.errors import InvalidInput, PicoError

_DATA: Final = re.compile(
    r"data:([\w.+-]{1,60}/[\w.+-]{1,60})?(?:;[^,;]{0,100})*;base64,", re.ASCII | re.IGNORECASE
)

KINDS: Final = {b"\x89": "image/png", b"\xff": "image/jpeg", b"G": "image/gif", b"R": "image/webp"}
"""What begins as a picture, by its first byte."""
WITHIN_S: Final = 10.0
"""For all pictures of a message that are fetched."""
ONLY: Final = "only text, pictures and files in base64 are taken here"


def line_of(part: dict[str, Any], why: str) -> str:
    """Return the line that stands for a part, alike whenever it is sent again."""
    digest = hashlib.sha256(jsons.dump_bytes(part)).hexdigest()[:12]
    return f"[{part['type'][:40]} {digest} left out: {why}]"


async def fetched(
    parts: Sequence[dict[str, Any]], hosts: Sequence[str], turns: anyio.Semaphore
) -> Sequence[dict[str, Any]]:
    """Return a message's parts with pictures in place of their addresses, or lines for what doesn't come."""
    if not hosts or all(_address(part) is None for part in parts):
        return parts
    async with turns:
        return await _fetched(parts, hosts)


async def _fetched(parts: Sequence[dict[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    # It brings a client along, of which a start has no use.
    from host.egress.receivers import fetch_picture

    allowed, room = frozenset(host.lower() for host in hosts), LARGEST_OF_ALL
    until, told = anyio.current_time() + WITHIN_S, list[dict[str, Any]]()
    for part in parts:
        if (url := _address(part)) is None:
            told.append(part)
            continue
        data, why = b"", f"it did not come within {WITHIN_S:g} s"
        with anyio.CancelScope(deadline=until):
            try:
                data, why = await fetch_picture(url, allowed, room), "its address leads to no picture"
            except PicoError as error:
                why = error.message.removeprefix("url: ")
        room -= len(data)
        told.append(_shown(data) if is_picture(data) else {"type": "text", "text": line_of(part, why)})
    return told


def _address(part: dict[str, Any]) -> str | None:
    """Return where a part's picture is to be fetched."""
    url = _said(part)[1] if part["type"] == "image_url" else None
    return url if isinstance(url, str) and url[:8].lower().startswith(("https://", "http://")) else None


def _shown(data: bytes) -> dict[str, Any]:
    url = f"data:{KINDS[data[:1]]};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def taken(parts: Sequence[dict[str, Any]]) -> tuple[str, list[NewFile]]:
    """Return a message's text, with a line for each part that can't be taken, and its files."""
    lines, files = list[str](), list[NewFile]()
    for part in parts:
        kind = part["type"]
        if kind in ("text", "refusal"):
            lines.append(part[kind])
            continue
        try:
            files.append(_file(part, LARGEST_OF_ALL - sum(len(file.data) for file in files)))
        except ValueError as error:
            lines.append(line_of(part, str(error)))
    return "\n".join(lines), files


def _file(part: dict[str, Any], room: int) -> NewFile:
    """Return the file of a part. Raises ValueError for one that can't be taken."""
    name, data = _said(part)
    if not isinstance(data, str):
        raise ValueError(ONLY)
    head = _DATA.match(data)
    if head is None and (part["type"] != "file" or ":" in data[:20]):
        raise ValueError("only data: addresses in base64 are taken here")
    media_type = head[1].lower() if head is not None and head[1] else media_type_of(name)
    try:
        content = decoded(data[head.end() :] if head is not None else data)
    except ValueError:
        raise ValueError("its data is not base64") from None
    if len(content) > room:
        raise ValueError(f"files have more than {LARGEST_OF_ALL >> 20} MiB in all")
    return NewFile(name or f"picture{mimetypes.guess_extension(media_type) or ''}", media_type, content)


def _said(part: dict[str, Any]) -> tuple[str, Any]:
    """Return the name and the data that a part says."""
    inner = part.get(part["type"])
    if part["type"] == "image_url":
        return "", inner.get("url") if isinstance(inner, dict) else inner
    if part["type"] != "file" or not isinstance(inner, dict):
        return "", None
    name = inner.get("filename")
    return name[:200] if isinstance(name, str) and name.strip() else "file", inner.get("file_data")


def _text_of(value: Any) -> Any:
    """Return a message's content as one text: a string, or the text parts of a list."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _plain(value)
    return "\n".join(_part(part) for part in value)


def _part(part: Any) -> str:
    """Return a part as text; pictures and the like become a line, so that no conversation ends at one, the
    same one whenever it is sent again.
    """
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise ValueError("must be a text or a list of parts with a type")
    if kind in ("text", "refusal"):
        return str(_plain(part.get(kind)))
    _plain(kind)
    return line_of(part, "it was sent before" if kind in ("image_url", "file") else ONLY)


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text or a list of text parts")
    return str(storable(value))


ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
SHOWN: Final = {"type": "string", "pattern": NO_NUL}


def documented(**texts: str) -> WithJsonSchema:
    """Return how content is documented: the kinds of parts that are text, and where each has it. Parts of the
    other kinds become a line of text.
    """
    parts = [
        {"type": "object", "properties": {"type": {"const": kind}, field: SHOWN}, "required": ["type", field]}
        for kind, field in texts.items()
    ]
    others = {
        "type": "object",
        "properties": {"type": {**SHOWN, "not": {"enum": [*texts]}}},
        "required": ["type"],
    }
    return WithJsonSchema(
        {"anyOf": [SHOWN, {"type": "array", "items": {"anyOf": [*parts, others]}}, {"type": "null"}]}
    )


Content = Annotated[
    str,
    BeforeValidator(_text_of),
    documented(text="text", refusal="refusal"),
]


class Tolerant(Body):
    """A body whose unknown fields mean nothing: chat programs send many."""

    # Built when first used: most hosts are never asked this way, and the start is short.
    model_config = ConfigDict(extra="ignore", defer_build=True)


class DoorFunction(Tolerant):
    """A function that the program carries out itself."""

    name: ToolName
    description: Text | None = None
    parameters: Annotated[dict[str, Any], Field(json_schema_extra={"format": "json-schema"})] | None = None


class DoorTool(Tolerant):
    """A tool: functions are all there are."""

    type: Literal["function"]
    function: DoorFunction

    def tool(self) -> ClientTool:
        """Return the tool."""
        return ClientTool(self.function.name, self.function.description or "", self.function.parameters or {})


class DoorCall(Tolerant):
    """A call that the program was told of."""

    id: Text


class DoorMessage(Tolerant):
    """One message as a chat program tells it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: Annotated[Text | None, Field(max_length=200)] = None
    tool_calls: Annotated[list[DoorCall], Field(max_length=1000)] | None = None
    tool_call_id: Annotated[Text | None, Field(max_length=200)] = None
    parts: SkipJsonSchema[list[Any]] = Field(default_factory=list)
    """What ``content`` was, if that was a list."""

    @model_validator(mode="before")
    @classmethod
    def _with_parts(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        content = value.get("content")
        return {**value, "parts": content if isinstance(content, list) else []}


class StreamOptions(Tolerant):
    """What a stream ends with."""

    include_usage: bool | None = None


class NamedSchema(Tolerant):
    """A schema of the answer."""

    wanted: Annotated[dict[str, Any] | bool, Field(alias="schema")]


class ResponseFormat(Tolerant):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


Tokens = Annotated[int, Field(gt=0, le=2**31), WHOLE]
Stop = Annotated[NotBlank, Field(max_length=200)]
STOP: Final = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": NOT_BLANK}
Stops = Annotated[
    list[Stop],
    Field(max_length=4),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": 4}]}),
]
Label = Annotated[Text, Field(max_length=64)]
Value = Annotated[Text, Field(max_length=512)]


class Parameters(Tolerant):
    """What requests at both doors may ask beside their words; ``LEFT_OUT`` says what of the rest is refused.

    Anything else has no effect, and the answer's ``warnings`` name it.
    """

    model_config = ConfigDict(extra="allow", defer_build=True)

    model: Annotated[Text, Field(min_length=1, max_length=200)]
    stream: bool | None = None
    user: Annotated[Text | None, Field(max_length=200)] = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[dict[Label, Value], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def _nothing_that_is_left_out(self) -> Self:
        for name, (harmless, why) in LEFT_OUT.items():
            value = (self.model_extra or {}).get(name)
            if value and value not in harmless:
                raise InvalidInput(f"{name}: {why}; leave it out")
        return self

    def idle(self) -> dict[str, Any]:
        """Return the known fields that ask for something and have no effect."""
        return {}

    @property
    def warnings(self) -> list[str]:
        """What was asked for that has no effect."""
        asked = {**(self.model_extra or {}), **self.idle()}
        said = [name for name, value in asked.items() if value is not None]
        return [f"{name[:64]} has no effect." for name in said[:MOST_WARNINGS] if name not in LEFT_OUT]


MOST_WARNINGS: Final = 32
NO_AUDIO: Final = "answers are text only"
OLD: Final = "functions are offered as tools"
LEFT_OUT: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "n": ((1,), "there is one answer"),
    "logprobs": ((), "the model tells no probabilities"),
    "top_logprobs": ((), "the model tells no probabilities"),
    "logit_bias": ((), "the model takes no bias"),
    "audio": ((), NO_AUDIO),
    "modalities": ((["text"],), NO_AUDIO),
    "prediction": ((), "the model takes no prediction"),
    "functions": ((), OLD),
    "prompt": ((), "no prompts are kept here"),
    "function_call": (("auto", "none"), OLD),
    "web_search_options": ((), "the agent searches by itself"),
}
"""Fields that are refused unless they ask for nothing, and why: what is harmless beside null, false and
empty values.
"""


class ChatCompletionRequest(Parameters):
    """POST /v1/chat/completions: the fields that have an effect."""

    messages: Annotated[list[DoorMessage], Field(min_length=1, max_length=10_000)]
    stream_options: StreamOptions | None = None
    reasoning_effort: Text | None = None
    tools: Annotated[list[DoorTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Annotated[Any, WithJsonSchema({"enum": ["auto", "none", None]})] = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: Stops | None = None
    response_format: ResponseFormat | None = None

    def idle(self) -> dict[str, Any]:
        """Return the options of a stream where there is none."""
        return {} if self.stream else {"stream_options": self.stream_options}

    @property
    def output_schema(self) -> dict[str, Any] | bool | None:
        """What the answer has to be, None for text. An object is promised also where it isn't strict."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return ANY_OBJECT if wanted.json_schema is None else wanted.json_schema.wanted
