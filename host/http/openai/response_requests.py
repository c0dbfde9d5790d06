"""What POST /v1/responses is asked: items in, as messages; the fields that a response tells again.

Source: Open Responses 2026-04-24 (https://www.openresponses.org), CreateResponseBody.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from host.http.approvals import MOST_TOOLS
from host.http.bodies import Text
from host.http.openai.requests import (
    ChatCompletionRequest,
    Content,
    DoorCall,
    DoorFunction,
    DoorMessage,
    DoorTool,
    NamedSchema,
    Parameters,
    ResponseFormat,
    Tokens,
    Tolerant,
    documented,
)
from shared.errors import InvalidInput

TEXTS: Final = ("input_text", "output_text", "text")
MESSAGE: Final = "message"
OUTPUT: Final = "function_call_output"
REFERENCE: Final = "item_reference"
IGNORED: Final = ("reasoning", "compaction")
"""Items whose content is the host's own, or another server's."""
OWN: Final = "picoclaw:"
"""Before the types of items that are not of the document."""
MOST_ITEMS: Final = 10_000

ItemContent = Annotated[Content, documented(**dict.fromkeys(TEXTS, "text"), refusal="refusal")]


def _parts(value: Any) -> Any:
    """Return an item's parts as chat completions have them."""
    return [_part(part) for part in value] if isinstance(value, list) else value


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXTS:
        return {**part, "type": "text"}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return {"type": "file", "file": part} if kind == "input_file" else part


class Item(DoorMessage):
    """One item of the input: a message, a call of a function, its output."""

    type: Text = MESSAGE
    id: Annotated[Text, Field(max_length=200)] = ""
    role: Literal["user", "assistant", "system", "developer"] = "user"
    call_id: Annotated[Text | None, Field(max_length=200)] = None
    name: Annotated[Text | None, Field(max_length=200)] = None
    arguments: Text = ""
    content: ItemContent = ""
    output: ItemContent = ""

    @model_validator(mode="before")
    @classmethod
    def _with_parts(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        content = _parts(value.get("content"))
        told = {"content": content, "output": _parts(value.get("output"))}
        # The type of a reference may be left out.
        bare = value.get("type") is None and "id" in value and "role" not in value
        told["type"] = value.get("type") or (REFERENCE if bare else MESSAGE)
        # Other items may have ids of another server's, whatever those look like.
        told["id"] = value.get("id", "") if told["type"] == REFERENCE else ""
        return {**value, **told, "parts": content if isinstance(content, list) else []}

    @model_validator(mode="after")
    def _is_taken(self) -> Self:
        if self.type not in (MESSAGE, REFERENCE, *CALLS, *IGNORED) and not self.type.startswith(OWN):
            raise ValueError(f"items of type {self.type[:40]} are not taken")
        if self.type == REFERENCE and not self.id:
            raise ValueError("id is missing")
        if self.type in CALLS and not self.call_id:
            raise ValueError("call_id is missing")
        return self

    def message(self) -> DoorMessage | None:
        """Return the item as a message; None for one that means nothing here."""
        if self.type == "function_call":
            return DoorMessage(role="assistant", tool_calls=[DoorCall(id=str(self.call_id))])
        if self.type == OUTPUT:
            return DoorMessage(role="tool", tool_call_id=self.call_id, content=self.output)
        return self if self.type == MESSAGE else None

    def view(self) -> dict[str, Any]:
        """Return the item as it is listed."""
        if self.type == MESSAGE:
            kind = "output_text" if self.role == "assistant" else "input_text"
            return {"type": MESSAGE, "role": self.role, "content": [{"type": kind, "text": self.content}]}
        return {"type": self.type, **self.model_dump(include=CALL_FIELDS.get(self.type, set()))}

    def told(self) -> DoorMessage | None:
        """Return the item as words, for whoever has only them."""
        if self.type in CALLS:
            said = f"{self.type} {self.call_id} {self.name or ''} {self.arguments}{self.output}"
            return DoorMessage(role="assistant" if self.name else "user", content=said)
        return self.message()


CALL_FIELDS: Final = {
    "function_call": {"call_id", "name", "arguments"},
    OUTPUT: {"call_id", "output"},
}
CALLS: Final = tuple(CALL_FIELDS)


class Typed(Tolerant):
    """What is looked at first: a tool of another type may lack all else."""

    type: Literal["function"]


class ResponseTool(DoorFunction, Typed):
    """A tool: functions are all there are, the agent has the others itself."""

    strict: bool | None = None


class Format(Tolerant):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text = ""
    description: Text | None = None
    wanted: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and self.wanted is None:
            raise ValueError("schema is missing")
        return self

    def chat(self) -> ResponseFormat:
        """Return it as chat completions have it."""
        named = None if self.wanted is None else NamedSchema.model_validate({"schema": self.wanted})
        return ResponseFormat(type=self.type, json_schema=named)

    def echo(self) -> dict[str, Any]:
        """Return it as a response tells it again: the document has no schema there."""
        if self.type != "json_schema":
            return {"type": self.type}
        said = {"name": self.name, "description": self.description, "strict": bool(self.strict)}
        return {"type": self.type, "schema": None, **said}


class TextOptions(Tolerant):
    """How the answer is written."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Tolerant):
    """Whether the model thinks first."""

    effort: Text | None = None
    summary: Text | None = None


def _conversation(value: Any) -> Any:
    return value.get("id", value) if isinstance(value, dict) else value


Items = Annotated[list[Item], Field(min_length=1, max_length=MOST_ITEMS)]


def _text_is_an_item(value: Any) -> Any:
    return [{"type": MESSAGE, "role": "user", "content": value}] if isinstance(value, str) else value


class ResponseRequest(Parameters):
    """POST /v1/responses: the fields that have an effect, or are told again."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    model: Annotated[Text, Field(min_length=1, max_length=200)] = "picoclaw"
    input: Annotated[
        Items,
        BeforeValidator(_text_is_an_item, json_schema_input_type=str | Items),
    ]
    instructions: Text | None = None
    previous_response_id: Annotated[Text | None, Field(max_length=200)] = None
    conversation: Annotated[
        Text | None,
        Field(max_length=200),
        BeforeValidator(_conversation),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}),
    ] = None
    store: bool | None = None
    background: bool | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Annotated[Any, WithJsonSchema({"enum": ["auto", "none", None]})] = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    stream_options: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.background and self.stream:
            raise InvalidInput("stream: can't be true together with background")
        if self.background and self.store is False:
            raise InvalidInput("background: takes a response that is stored")
        if self.previous_response_id and self.conversation:
            raise InvalidInput("conversation: can't be given together with previous_response_id")
        return self

    def chat(self, messages: list[DoorMessage]) -> ChatCompletionRequest:
        """Return what chat completions would be asked for the same."""
        wanted, reasoning = self.text and self.text.format, self.reasoning
        return ChatCompletionRequest.model_construct(
            model=self.model,
            messages=messages,
            stream=self.stream,
            user=self.user,
            parallel_tool_calls=self.parallel_tool_calls,
            metadata=self.metadata,
            reasoning_effort=reasoning and reasoning.effort,
            tools=[DoorTool(type="function", function=tool) for tool in self.tools or ()],
            tool_choice=self.tool_choice,
            max_completion_tokens=self.max_output_tokens,
            response_format=wanted and wanted.chat(),
        )

    def idle(self) -> dict[str, Any]:
        """Return the known fields that ask for something and have no effect."""
        asked = {name: (getattr(self, name), usual) for name, usual in USUAL.items()}
        asked["text.verbosity"] = self.text and self.text.verbosity, ("medium",)
        asked["reasoning.summary"] = self.reasoning and self.reasoning.summary, ()
        return {name: value for name, (value, usual) in asked.items() if value not in usual}

    def echo(self) -> dict[str, Any]:
        """Return the fields that a response tells again, also those without effect."""
        extra, wanted = self.model_extra or {}, (self.text and self.text.format) or Format()
        thinking = self.reasoning
        numbers = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        return {
            "model": self.model,
            "instructions": self.instructions,
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "tool_choice": self.tool_choice or "auto",
            "truncation": self.truncation or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "text": {"format": wanted.echo(), "verbosity": (self.text and self.text.verbosity) or "medium"},
            **{name: _number(extra.get(name), 1.0 if name in numbers[:2] else 0.0) for name in numbers},
            "top_logprobs": 0,
            "reasoning": thinking and {"effort": thinking.effort, "summary": thinking.summary},
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "store": self.store is not False,
            "background": bool(self.background),
            "service_tier": self.service_tier or "default",
            "metadata": self.metadata or {},
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
            **({"warnings": self.warnings} if self.warnings else {}),
        }


USUAL: Final[dict[str, tuple[str, ...]]] = {
    "truncation": ("auto",),
    "service_tier": ("auto", "default"),
    "safety_identifier": (),
    "prompt_cache_key": (),
}
"""Fields without effect, and what is done anyway."""


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, int | float) else otherwise
