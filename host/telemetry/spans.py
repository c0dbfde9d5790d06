"""Spans of runs, model and tool calls, by the GenAI conventions (opentelemetry.io/docs/specs/semconv/gen-ai).

They hold an error's kind, never its text: a stray exception may say what nobody should read.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.metrics import Meter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from host.ports import Ask, Delta, OnDelta, Reply, ToolResult, Toolset
from shared.clock import monotonic_ms
from shared.jsons import dumps
from shared.redact import Redactor
from shared.values import Block, Lease

TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds of the histograms, those that the conventions advise."""


class ModelCalls:
    """Tells of model calls. ``content``: what is said is told too, redacted."""

    def __init__(self, tracer: Tracer, meter: Meter, redactor: Redactor, *, content: bool) -> None:
        self._tracer = tracer
        self._redactor = redactor
        self._content = content
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", unit="s", explicit_bucket_boundaries_advisory=SECONDS
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", explicit_bucket_boundaries_advisory=TOKENS
        )

    async def ask(self, ask: Ask, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        """Ask, and tell of it."""
        common: dict[str, AttributeValue] = {
            gen_ai.GEN_AI_OPERATION_NAME: "chat",
            gen_ai.GEN_AI_PROVIDER_NAME: "anthropic",
            gen_ai.GEN_AI_REQUEST_MODEL: request["model"],
        }
        started = monotonic_ms()
        first: list[float] = []

        def timed(delta: Delta) -> None:
            if not first:
                first.append(monotonic_ms() - started)
            on_delta(delta)

        with span(self._tracer, f"chat {request['model']}", SpanKind.CLIENT, common) as call:
            call.set_attribute(gen_ai.GEN_AI_REQUEST_MAX_TOKENS, request["max_tokens"])
            call.set_attribute(gen_ai.GEN_AI_REQUEST_STREAM, True)
            try:
                reply = await ask(request, timed)
            except BaseException as error:
                self._took(started, {**common, "error.type": kind_of(error)})
                raise
            self._took(started, {**common, gen_ai.GEN_AI_RESPONSE_MODEL: reply.model})
            self._tell(call, reply, first)
            if self._content:
                _tell_content(call, request, reply, self._redactor)
            self._count(reply, common)
            return reply

    def _took(self, started: float, attributes: Mapping[str, AttributeValue]) -> None:
        self._duration.record((monotonic_ms() - started) / 1000, self._redactor.value(dict(attributes)))

    def _tell(self, call: Span, reply: Reply, first: list[float]) -> None:
        used = reply.usage
        call.set_attribute(gen_ai.GEN_AI_RESPONSE_MODEL, reply.model)
        call.set_attribute(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, [reply.stop_reason])
        call.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, used.tokens - used.output_tokens)
        call.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, used.output_tokens)
        call.set_attribute(gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, used.cache_read_input_tokens)
        call.set_attribute(gen_ai.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, used.cache_creation_input_tokens)
        if first:
            call.set_attribute(gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first[0] / 1000)

    def _count(self, reply: Reply, common: Mapping[str, AttributeValue]) -> None:
        used = reply.usage
        for kind, number in (("input", used.tokens - used.output_tokens), ("output", used.output_tokens)):
            attributes = {
                **common,
                gen_ai.GEN_AI_RESPONSE_MODEL: reply.model,
                gen_ai.GEN_AI_TOKEN_TYPE: kind,
            }
            self._tokens.record(number, self._redactor.value(attributes))


def _tell_content(call: Span, request: Mapping[str, Any], reply: Reply, redactor: Redactor) -> None:
    messages = [_message(message["role"], message["content"]) for message in request["messages"]]
    answer = {**_message("assistant", reply.blocks), "finish_reason": reply.stop_reason}
    told = {
        gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS: list(_parts(request.get("system", ()))),
        gen_ai.GEN_AI_INPUT_MESSAGES: messages,
        gen_ai.GEN_AI_OUTPUT_MESSAGES: [answer],
    }
    for name, value in told.items():
        call.set_attribute(name, dumps(redactor.value(value)))


def _message(role: str, content: str | Iterable[Block]) -> dict[str, Any]:
    return {"role": role, "parts": list(_parts(content))}


def _parts(content: str | Iterable[Block]) -> Iterable[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "content": content}
        return
    for block in content:
        match block["type"]:
            case "text":
                yield {"type": "text", "content": block["text"]}
            case "thinking":
                yield {"type": "reasoning", "content": block["thinking"]}
            case "tool_use":
                part = {"type": "tool_call", "id": block["id"], "name": block["name"]}
                yield {**part, "arguments": block["input"]}
            case "tool_result":
                response = list(_parts(block.get("content") or ()))
                yield {"type": "tool_call_response", "id": block["tool_use_id"], "response": response}
            case kind:
                yield {"type": kind}


async def traced_run(
    tracer: Tracer,
    name: str,
    converse: Callable[..., Awaitable[None]],
    spec: Any,
    lease: Lease,
    recorder: Any,
    **more: Any,
) -> None:
    """Work on a run, and tell of it as one of the agent with this name; see ``Telemetry.run``."""
    attributes: dict[str, AttributeValue] = {
        gen_ai.GEN_AI_OPERATION_NAME: "invoke_agent",
        gen_ai.GEN_AI_AGENT_NAME: name,
        gen_ai.GEN_AI_CONVERSATION_ID: lease.conversation_id,
        "picoclaw.run.id": lease.run_id,
        "picoclaw.run.scheduled": spec.scheduled,
    }
    with span(tracer, f"invoke_agent {name}", SpanKind.INTERNAL, attributes) as run:
        try:
            await converse(spec, lease, recorder, **more)
        finally:
            used = recorder.meter.spent.usage
            run.set_attribute(gen_ai.GEN_AI_RESPONSE_MODEL, recorder.model)
            run.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, used.tokens - used.output_tokens)
            run.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, used.output_tokens)


async def traced_call(
    tracer: Tracer, content: Redactor | None, toolset: Toolset, name: str, arguments: Mapping[str, Any]
) -> ToolResult:
    """Call a tool and tell of it. ``content``: what is said is told too, redacted."""
    attributes = {
        gen_ai.GEN_AI_OPERATION_NAME: "execute_tool",
        gen_ai.GEN_AI_TOOL_NAME: name,
        gen_ai.GEN_AI_TOOL_TYPE: "function",
    }
    with span(tracer, f"execute_tool {name}", SpanKind.INTERNAL, attributes) as called:
        if content is not None:
            asked = dumps(content.value(dict(arguments)))
            called.set_attribute(gen_ai.GEN_AI_TOOL_CALL_ARGUMENTS, asked)
        result = await toolset.call(name, arguments)
        if content is not None:
            called.set_attribute(gen_ai.GEN_AI_TOOL_CALL_RESULT, content.text(result.text))
        if result.is_error:
            fail(called, "tool_error")
        return result


@contextmanager
def span(
    tracer: Tracer, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]
) -> Iterator[Span]:
    """Yield a span that is current until the block ends; what the block raises marks it as failed."""
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield opened
        except BaseException as error:
            fail(opened, kind_of(error))
            raise


def fail(failed: Span, error_type: str) -> None:
    """Mark a span as failed."""
    failed.set_attribute("error.type", error_type)
    failed.set_status(Status(StatusCode.ERROR))


def kind_of(error: BaseException) -> str:
    """Return the error's code where it has one, else the name of its class."""
    status = getattr(error, "status", None)
    code = getattr(error, "code", None)
    return str(code or (status if isinstance(status, int) else None) or type(error).__name__)
