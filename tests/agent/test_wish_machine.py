"""Long runs, notes good or bad, refusals, silence, cuts: each request of a run holds the run's message."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from host.models.access import Credential, KeyedModel, ModelAccess, Route
from host.ports import ModelError, OnDelta, Reply, Target, TextDelta, ToolResult, ToolSpec
from host.runs.assembly import Assembly, OpenTools, RunTools
from host.runs.conversation_files import Archive
from host.runs.meter import Ledger, Prices
from host.runs.principals import PrincipalCache
from host.runs.service import RunService
from host.runs.spec import RunLimits, RunSpec
from host.skills.knowledge import Knowledge, Known
from host.telemetry import Metrics
from host.tools.without_sandbox import Approve
from shared.clock import now_ms
from shared.jsons import dump_bytes, loads
from shared.principals import Principal
from shared.redact import Redactor
from shared.settings import load
from shared.settings.sections import Budgets
from shared.store.sqlite.store import SqliteStore
from shared.usage_values import Usage
from shared.values import Block, Lease
from tests.examples import examples
from tests.fakes.protocol import checked

WINDOW = 6_000
MOST_TOKENS = 400
SPEC = ToolSpec(
    "look", "Looks.", {"type": "object", "properties": {"size": {"type": "integer"}}}, read_only=True
)
LONG = 3_000
ASKED = "<host_request>"
MARK = re.compile(r"WISH-\d+-BEGINS")

Answer = tuple[list[Block], str] | ModelError


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def calls(number: int, size: int) -> list[Block]:
    return [
        text("s" * 200),
        {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": {"size": size}},
    ]


NOTES: dict[str, Callable[[], Answer]] = {
    "good": lambda: ([text("Notes: they looked at many things.")], "end_turn"),
    "overloaded": lambda: ModelError("overloaded", retryable=True, status=529),
    "refused": lambda: ModelError("no", retryable=False, status=400),
    "empty": lambda: ([], "end_turn"),
    "going on": lambda: (calls(99_999, 5), "tool_use"),
    "cut": lambda: ([text("They looked at many things and then")], "max_tokens"),
    "short": lambda: ([text("OK.")], "end_turn"),
    "declined": lambda: ([text("I would rather not write that.")], "refusal"),
}
ENDINGS: dict[str, list[Answer]] = {
    "answer": [([text("That is all of it.")], "end_turn")],
    "refusal": [([text("I can't")], "refusal")],
    "silence": [([], "end_turn"), ([{"type": "thinking", "thinking": "hm", "signature": "s"}], "end_turn")],
    "late words": [([], "end_turn"), ([text("I looked.")], "end_turn")],
    "cut": [([text("That is all of")], "max_tokens")],
    "window": [([text("That is")], "model_context_window_exceeded")] * 2,
    "unknown": [([text("That is all.")], "a_reason_of_tomorrow")],
    "pause": [([text("wait")], "pause_turn"), ([text("That is all.")], "end_turn")],
    "failure": [ModelError("gone", retryable=False, status=403)],
}


class Model:
    """Answers from two queues, and keeps what it was asked."""

    def __init__(self) -> None:
        self.steps: deque[Answer] = deque()
        self.notes: deque[str] = deque()
        self.requests: list[dict[str, Any]] = []
        self.replies = 0

    async def reply(self, request: Mapping[str, Any], on_delta: OnDelta) -> Reply:
        asked = checked(loads(dump_bytes(request)))
        self.requests.append(asked)
        if ASKED in json.dumps(asked["messages"][-1]):
            answer = NOTES[self.notes.popleft() if self.notes else "good"]()
            if not isinstance(answer, ModelError) and answer[0] and answer[0][0]["type"] == "text":
                told = sorted(set(MARK.findall(json.dumps(asked["messages"]))))
                answer[0][0]["text"] += f" {' '.join(told)}" if len(answer[0][0]["text"]) > 10 else ""
        else:
            answer = self.steps.popleft()
        if isinstance(answer, ModelError):
            raise answer
        for block in answer[0]:
            if block["type"] == "text":
                on_delta(TextDelta(block["text"]))
        self.replies += 1
        return Reply(answer[0], answer[1], Usage(1, 1), "model-1")


class Tools:
    """One tool whose results are as long as asked."""

    specs = (SPEC,)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult("r" * int(arguments["size"]))


class Models:
    def __init__(self, model: Model) -> None:
        self._credential = Credential(model.reply)

    def models(self, asked: str | None, warn: Callable[[str], None], _: object) -> tuple[KeyedModel, ...]:
        return (KeyedModel([Route(Target("model-1"), self._credential)], warn=warn),)


class NothingKnown:
    async def look(self) -> Known:
        return Known()


class ToolsOfRuns:
    @asynccontextmanager
    async def open(
        self, spec: RunSpec, lease: Lease, principal: Principal, approve: Approve
    ) -> AsyncIterator[OpenTools]:
        yield OpenTools([Tools()], cast(Knowledge, NothingKnown()))


class Conversation(RuleBasedStateMachine):
    """One conversation: a run after the other, and restarts of the host between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="wish-")
        self.store = SqliteStore(Path(self.folder.name) / "store.db")
        self.loop.run(self.store.conversations.create("c", now_ms()))
        self.model = Model()
        self.restart()
        self.said = 0
        self.number = 0
        self.refused: list[str] = []

    def restart(self) -> None:
        self.ledger = Ledger(self.store, Redactor(()), Prices(Budgets()), Metrics())
        environ = {
            "HOME": self.folder.name,
            "SYSTEM_PROMPT_OVERRIDE": "You look.",
            "PICOCLAW_HISTORY_ARCHIVE": "false",
            "PICOCLAW_HISTORY_WINDOW": str(WINDOW),
            "PICOCLAW_AGENTS_DEFAULTS_MAX_TOKENS": str(MOST_TOKENS),
            "PICOCLAW_AGENTS_DEFAULTS_MAX_TOOL_ITERATIONS": "60",
        }
        self.agent = Assembly(
            load(environ),
            self.ledger,
            cast(ModelAccess, Models(self.model)),
            cast(RunTools, ToolsOfRuns()),
            cast(Archive, None),
        )

    @rule()
    def begin_anew(self) -> None:
        self.restart()

    @rule(
        size=st.sampled_from([0, 400, LONG]),
        sizes=st.lists(st.sampled_from([5, 900, 4_000]), max_size=16),
        ending=st.sampled_from(sorted(ENDINGS)),
        notes=st.lists(st.sampled_from(sorted(NOTES)), max_size=6),
    )
    def run(self, size: int, sizes: list[int], ending: str, notes: list[str]) -> None:
        self.said += 1
        words = f"WISH-{self.said}-BEGINS <&> {'w ' * size}{self.said}-ENDS"
        for number in sizes:
            self.number += 1
            self.model.steps.append((calls(self.number, number), "tool_use"))
        self.model.steps.extend(ENDINGS[ending])
        self.model.notes.extend(notes)
        self.model.requests.clear()
        self.model.replies = 0
        answer = self.loop.run(self._answer(words))
        self.model.steps.clear()
        self.model.notes.clear()
        self.check(words, answer)
        if answer.get("code") == "refused":
            self.refused.append(f"WISH-{self.said}-BEGINS")

    async def _answer(self, words: str) -> dict[str, Any]:
        limits = RunLimits(
            max_execution_ms=60_000, max_concurrent_runs=1, stop_grace_ms=0, end_marker="", owner="host-1"
        )
        async with RunService(self.ledger, self.agent, limits, PrincipalCache(self.store)) as service:
            run = await service.start(RunSpec(words, conversation_id="c"))
            return dict(await run.wait())

    def check(self, words: str, answer: dict[str, Any]) -> None:
        head, tail = words[:14], words[-6:]
        for request in self.model.requests:
            texts = [
                block["text"]
                for message in request["messages"]
                for block in message["content"]
                if block["type"] == "text" and "<message " in block["text"]
            ]
            (found,) = [each for each in texts if escape(head, quote=False) in each]
            assert f"{tail}</message>" in found
            if len(words) < LONG:
                assert escape(words, quote=False) in found
            assert not any(mark in json.dumps(request["messages"]) for mark in self.refused)
        assert answer["code" if answer["status"] == "error" else "status"] in (
            "success",
            "refused",
            "model_error",
            "prompt_too_long",
        ), answer
        if answer["status"] == "success":
            assert answer["result"]
        # What the provider charges for: also what was summaries, sent back, cut off, or declined.
        assert answer["usage"]["input_tokens"] == answer["usage"]["output_tokens"] == self.model.replies

    @precondition(lambda self: self.said)
    @invariant()
    def everything_said_is_stored(self) -> None:
        found = self.loop.run(self.store.conversations.messages("c", limit=1000, cursor=None))
        assert sum(message.role == "user" for message in found.items) == self.said
        marked = {message.text[:16].split("-BEGINS")[0] for message in found.items if message.refused}
        assert {mark.removesuffix("-BEGINS") for mark in self.refused} <= marked

    def teardown(self) -> None:
        self.loop.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=examples(25), stateful_step_count=6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_ending_is_answered_and_counted(ending: str) -> None:
    conversation = Conversation()
    try:
        conversation.run(size=400, sizes=[5, 4_000, 4_000], ending=ending, notes=[])
        conversation.everything_said_is_stored()
    finally:
        conversation.teardown()


def setup_module() -> None:
    """Let the second try of a summary come at once."""
    patcher.start()


def teardown_module() -> None:
    patcher.stop()


patcher = patch("host.agent.compactor.PAUSE_S", 0)
