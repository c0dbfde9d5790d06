"""Answers by the official JSON Schema test suite: what is given is what the schema says, however it comes.

``suite`` is the part for draft 2020-12 of https://github.com/json-schema-org/JSON-Schema-Test-Suite (its
licence is beside it), without what needs other documents.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from host.agent.endings import OutputInvalid
from host.agent.own_tools import WRAPPED, FinalAnswer
from host.runs.conversation_files import SEND_FILE_SPEC
from host.schemas import SchemaJudge
from shared.errors import InvalidInput

SUITE = sorted(Path(__file__).with_name("suite").glob("*.json"))
GROUPS = [
    pytest.param(group["schema"], group["tests"], id=f"{path.stem}: {group['description']}"[:80])
    for path in SUITE
    for group in json.loads(path.read_text())
]
MARKER = "[[THE END]]"
REMOTE = "localhost:1234"


@pytest.fixture(scope="module")
async def judge() -> AsyncIterator[SchemaJudge]:
    async with SchemaJudge() as judge:
        yield judge


def answer_of(schema: Any, judge: SchemaJudge) -> FinalAnswer:
    return FinalAnswer(schema, partial(judge.fault, schema), lambda value: value, MARKER)


async def call(answer: FinalAnswer, value: Any) -> None:
    wrapped = answer.specs[0].input_schema.get("properties", {}).keys() == {WRAPPED}
    await answer.call("final_answer", {WRAPPED: value} if wrapped else value)


async def test_a_wrapped_answer_and_a_file_that_is_sent_have_nothing_beside_them(judge: SchemaJudge) -> None:
    spec = answer_of({"type": "array"}, judge).specs[0]
    assert spec.input_schema["additionalProperties"] is False
    assert SEND_FILE_SPEC.input_schema["additionalProperties"] is False


def test_the_suite_is_there() -> None:
    assert len(GROUPS) >= 300


@pytest.mark.parametrize(("schema", "cases"), GROUPS)
async def test_an_answer_counts_when_and_only_when_the_suite_says_that_it_is_valid(
    judge: SchemaJudge, schema: Any, cases: list[dict[str, Any]]
) -> None:
    try:
        await judge.require(schema, "output_schema")
    except InvalidInput:
        # It refers to other documents, or to another draft.
        assert any(word in json.dumps(schema) for word in (REMOTE, "http://", "tag:", "$dynamicRef", "(?"))
        return
    for case in cases:
        given = answer_of(schema, judge)
        if isinstance(case["data"], dict) or given.specs[0].input_schema is not schema:
            await call(given, case["data"])
            assert given.given is case["valid"], case
        sloppy = answer_of(schema, judge)
        text = json.dumps(case["data"], indent=1, ensure_ascii=False)
        await sloppy.read(f"<internal>thinking {{}} aloud</internal>```json\n{text}\n``` {MARKER}")
        assert sloppy.given is case["valid"], case
        assert sloppy.marked
        await _hostile(answer_of(schema, judge), text)


async def _hostile(answer: FinalAnswer, text: str) -> None:
    for said in (f"Here you are: {text}", text + "]"):
        await answer.read(said)
        assert not answer.given
    with pytest.raises(OutputInvalid):
        answer.is_over()
