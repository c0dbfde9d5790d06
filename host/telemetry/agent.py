"""One span a run: ``invoke_agent`` of the GenAI conventions (opentelemetry.io/docs/specs/semconv/gen-ai)."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from host.runs.recorder import RunRecorder
from host.runs.run import Agent
from host.runs.spec import RunSpec
from host.telemetry.spans import span
from shared.models import Lease


class TracedAgent:
    """Implements ``host.runs.run.Agent`` around another one."""

    def __init__(self, agent: Agent, tracer: Tracer, name: str) -> None:
        self._agent = agent
        self._tracer = tracer
        self._name = name

    async def converse(self, spec: RunSpec, lease: Lease, recorder: RunRecorder) -> None:
        """See ``Agent.converse``."""
        attributes: dict[str, AttributeValue] = {
            gen_ai.GEN_AI_OPERATION_NAME: "invoke_agent",
            gen_ai.GEN_AI_AGENT_NAME: self._name,
            gen_ai.GEN_AI_CONVERSATION_ID: lease.conversation_id,
            "picoclaw.run.id": lease.run_id,
            "picoclaw.run.scheduled": spec.scheduled,
        }
        with span(self._tracer, f"invoke_agent {self._name}", SpanKind.INTERNAL, attributes) as run:
            try:
                await self._agent.converse(spec, lease, recorder)
            finally:
                used = recorder.meter.usage
                run.set_attribute(gen_ai.GEN_AI_RESPONSE_MODEL, recorder.model)
                run.set_attribute(gen_ai.GEN_AI_USAGE_INPUT_TOKENS, used.tokens - used.output_tokens)
                run.set_attribute(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, used.output_tokens)
