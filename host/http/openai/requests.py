"""What OpenAI's chat API is asked, as far as the door takes it.

Source: the API reference of chat completions (https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic.json_schema import SkipJsonSchema

from host.http.bodies import NO_NUL, NOT_BLANK, WHOLE, Body, NotBlank, Text, storable
from host.http.client_tools import MOST_TOOLS, ToolName
from host.http.openai.parts import ONLY, line_of
from host.tools.client_tools import ClientTool
from shared.errors import InvalidInput


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

    @property
    def warnings(self) -> list[str]:
        """What was asked for that has no effect."""
        said = [name for name, value in (self.model_extra or {}).items() if value is not None]
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

    @property
    def output_schema(self) -> dict[str, Any] | bool | None:
        """What the answer has to be, None for text. An object is promised also where it isn't strict."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return ANY_OBJECT if wanted.json_schema is None else wanted.json_schema.wanted
