"""OpenAI's clients in their default mode at /v1/responses, and every answer held against the document.

Run by an interpreter that has their packages. DOOR in the environment is ``{"url", "key", "said"}``: what is
said in each case is the test's; it prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

DOOR: dict[str, Any] = json.loads(os.environ.get("DOOR", "{}"))
OWN = "picoclaw:"
TOOL = {
    "type": "function",
    "name": "lookup",
    "description": "Look something up.",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}


def post(body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{DOOR['url']}/responses",
        json.dumps({"model": "picoclaw", **body}).encode(),
        {"Authorization": f"Bearer {DOOR['key']}", "Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request)


class Document:
    """The published document, as its generated types."""

    def __init__(self) -> None:
        self.types = importlib.import_module("openresponses_types")
        self.events = dict(self._events())

    def _events(self) -> Iterator[tuple[str, Any]]:
        for name in vars(self.types):
            made = getattr(self.types, name)
            if name.endswith("StreamingEvent"):
                (kind,) = made.model_fields["type"].annotation
                yield kind.value, made

    def check(self, response: dict[str, Any]) -> dict[str, Any]:
        for item in response["output"]:
            assert {"id", "type", "status"} <= item.keys(), item
        of_it = [item for item in response["output"] if not item["type"].startswith(OWN)]
        self.types.ResponseResource.model_validate({**response, "output": of_it})
        return response

    def plain(self, **body: Any) -> dict[str, Any]:
        with post(body) as answer:
            return self.check(json.load(answer))

    def stream(self, **body: Any) -> dict[str, Any]:
        """Check each event, and that they make the items that the last one tells."""
        kinds: list[str] = []
        response: dict[str, Any] = {}
        items: dict[int, Any] = {}
        with post({**body, "stream": True}) as answer:
            told = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        for number, event in enumerate(told):
            assert event["sequence_number"] == number
            kinds.append(event["type"])
            response = event.get("response", response)
            item = event.get("item", {})
            if event["type"] == "response.output_item.done":
                items[event["output_index"]] = item
            if item.get("type", "").startswith(OWN):
                continue
            made = self.events[event["type"]]
            if "response" in event:
                self.check(event["response"])
                event = {**event, "response": {**event["response"], "output": []}}
            made.model_validate(event)
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert [items[index] for index in sorted(items)] == response["output"]
        return {**response, "events": kinds}

    def see(self) -> dict[str, Any]:
        said = DOOR["said"]
        call = self.plain(input=said["call"], tools=[TOOL])
        (made,) = [item for item in call["output"] if item["type"] == "function_call"]
        output = {"type": "function_call_output", "call_id": made["call_id"], "output": "42"}
        return {
            "plain": self.plain(input=said["plain"]),
            "streamed": self.stream(input=said["steps"]),
            "system": self.plain(instructions="Speak as a pirate.", input=said["plain"]),
            "call": call,
            "called": self.plain(previous_response_id=call["id"], input=[output], tools=[TOOL]),
            "call_streamed": self.stream(input=said["call"], tools=[TOOL]),
            "turns": self.plain(
                input=[
                    {"type": "message", "role": "user", "content": "My name is Alice."},
                    {"type": "message", "role": "assistant", "content": "Hello Alice."},
                    {"type": "message", "role": "user", "content": "What is my name?"},
                ]
            ),
            "typed": self.plain(input=said["typed"], text={"format": {**DOOR["format"]}}),
            "reasoned": self.stream(input=said["thinking"], reasoning={"effort": "high"}),
            "failed": self.plain(input=said["failing"]),
            "background": self.plain(input=said["plain"], background=True),
            "apart": self.plain(input=said["plain"], store=False, temperature=0.2, metadata={"a": "b"}),
        }


def lookup(q: str) -> str:
    """Look something up."""
    return f"found {q}"


async def agents() -> dict[str, Any]:
    """openai-agents: a tool of its own, whole and streamed."""
    package, openai = importlib.import_module("agents"), importlib.import_module("openai")
    package.set_tracing_disabled(True)

    client = openai.AsyncOpenAI(base_url=DOOR["url"], api_key=DOOR["key"], max_retries=0)
    model = package.OpenAIResponsesModel(model="picoclaw", openai_client=client)
    agent = package.Agent(
        name="A", instructions="Be brief.", model=model, tools=[package.function_tool(lookup)]
    )
    whole = await package.Runner.run(agent, DOOR["said"]["call"])
    streamed = package.Runner.run_streamed(agent, DOOR["said"]["call"])
    kinds = [event.type async for event in streamed.stream_events()]
    return {"whole": whole.final_output, "streamed": streamed.final_output, "events": sorted(set(kinds))}


async def pydantic_ai() -> dict[str, Any]:
    """pydantic-ai: a tool of its own, and an answer with a type."""
    package = importlib.import_module("pydantic_ai")
    models = importlib.import_module("pydantic_ai.models.openai")
    providers = importlib.import_module("pydantic_ai.providers.openai")
    pydantic = importlib.import_module("pydantic")
    provider = providers.OpenAIProvider(base_url=DOOR["url"], api_key=DOOR["key"])
    model = models.OpenAIResponsesModel("picoclaw", provider=provider)
    agent = package.Agent(model, instructions="Be brief.")

    agent.tool_plain(lookup)
    shape = pydantic.create_model("Cat", lives=(int, ...))
    typed = package.Agent(model, output_type=shape)
    async with agent.run_stream(DOOR["said"]["plain"]) as streamed:
        text = await streamed.get_output()
    return {
        "called": (await agent.run(DOOR["said"]["call"])).output,
        "typed": (await typed.run(DOOR["said"]["final"])).output.lives,
        "streamed": text,
    }


def main() -> None:
    seen = {"document": Document().see(), "agents": asyncio.run(agents())}
    print(json.dumps({**seen, "pydantic_ai": asyncio.run(pydantic_ai())}))


if __name__ == "__main__":
    main()
