"""What OpenAI's chat API is asked, as far as the door takes it.

Source: the API reference of chat completions (https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from host.http.bodies import NO_NUL, WHOLE, Body, Text


def _text_of(value: Any) -> Any:
    """Return a message's content as one text: a string, or the text parts of a list."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _plain(value)
    return "\n".join(_part(part) for part in value)


def _part(part: Any) -> str:
    """Return a part as text; pictures and the like become a line, so that no conversation ends at one."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise ValueError("must be a text or a list of parts with a type")
    if kind in ("text", "refusal"):
        return str(_plain(part.get(kind)))
    return f"[{_plain(kind)[:40]} left out: only text is taken here]"


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text or a list of text parts")
    if "\x00" in value:
        raise ValueError("must not contain the character U+0000")
    return value


ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
SHOWN: Final = {"type": "string", "pattern": NO_NUL}
PARTS: Final = [
    *(
        {"type": "object", "properties": {"type": {"const": kind}, kind: SHOWN}, "required": ["type", kind]}
        for kind in ("text", "refusal")
    ),
    {
        "type": "object",
        "properties": {"type": {"enum": ["image_url", "input_audio", "file"]}},
        "required": ["type"],
    },
]
"""Parts of the other kinds become a line of text."""

Content = Annotated[
    str,
    BeforeValidator(_text_of),
    WithJsonSchema({"anyOf": [SHOWN, {"type": "array", "items": {"anyOf": PARTS}}, {"type": "null"}]}),
]


class Tolerant(Body):
    """A body whose unknown fields mean nothing: chat programs send many."""

    # Built when first used: most hosts are never asked this way, and the start is short.
    model_config = ConfigDict(extra="ignore", defer_build=True)


class DoorMessage(Tolerant):
    """One message as a chat program tells it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: Annotated[Text | None, Field(max_length=200)] = None


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


class ChatCompletionRequest(Tolerant):
    """POST /v1/chat/completions: the fields that have an effect."""

    model: Annotated[Text, Field(min_length=1, max_length=200)]
    messages: Annotated[list[DoorMessage], Field(min_length=1, max_length=10_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[Text | None, Field(max_length=200)] = None
    n: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    reasoning_effort: Text | None = None
    tool_choice: Annotated[Any, WithJsonSchema({"enum": ["auto", "none", None]})] = None
    function_call: Annotated[Any, WithJsonSchema({"enum": ["auto", "none", None]})] = None
    response_format: ResponseFormat | None = None
    logprobs: Annotated[Any, WithJsonSchema({"enum": [False, None]})] = None
    modalities: Annotated[Any, WithJsonSchema({"not": {"contains": {"const": "audio"}}})] = None

    @field_validator("logprobs")
    @classmethod
    def _no_probabilities(cls, value: Any) -> Any:
        if value:
            raise ValueError("the model tells no probabilities; leave it out")
        return value

    @field_validator("modalities")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if isinstance(value, list) and "audio" in value:
            raise ValueError("answers are text only; leave it out")
        return value

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _not_required(cls, value: Any) -> Any:
        if value == "required" or isinstance(value, dict):
            raise ValueError(
                "the tools of a request can't be required, tools run inside the host; leave it out"
            )
        return value

    @property
    def output_schema(self) -> dict[str, Any] | bool | None:
        """What the answer has to be, None for text. An object is promised also where it isn't strict."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return ANY_OBJECT if wanted.json_schema is None else wanted.json_schema.wanted
