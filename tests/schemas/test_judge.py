"""Schemas of strangers are judged, and can neither hold up nor fill anything but the process that judges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from host.schemas import TOO_MUCH, SchemaJudge, Verdict
from shared.store.contract import asking

CAT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


@pytest.fixture
async def judge() -> AsyncIterator[SchemaJudge]:
    async with SchemaJudge() as judge:
        yield judge


def doubling(times: int) -> dict[str, Any]:
    """A schema of few parts whose check takes 2**times steps."""
    parts: dict[str, Any] = {"a0": {"type": "integer", "maximum": 1}}
    for number in range(1, times):
        before = {"$ref": f"#/$defs/a{number - 1}"}
        parts[f"a{number}"] = {"allOf": [before, {**before, "title": "again"}]}
    return {"$defs": parts, "$ref": f"#/$defs/a{times - 1}"}


async def test_who_asks_for_much_holds_up_nobody_else(judge: SchemaJudge) -> None:
    answered: list[str] = []

    async def ask(who: str) -> None:
        asking.set(who)
        await judge.value(CAT, {"name": "Tom"})
        answered.append(who)

    async with anyio.create_task_group() as tasks:
        for who in ("ann", *["ann"] * 20, "ben"):
            tasks.start_soon(ask, who)
    assert answered.index("ben") <= 2


async def test_a_value_that_fits_has_no_fault(judge: SchemaJudge) -> None:
    assert await judge.value(CAT, {"name": "Tom", "age": 3}) == Verdict()
    assert await judge.schema(CAT) == Verdict()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, '"name" is a required property'),
        ({"name": "Tom", "age": "three"}, 'age: "three" is not of type "integer"'),
        ([], '[] is not of type "object"'),
    ],
)
async def test_the_first_fault_of_a_value_is_told_with_its_place(
    judge: SchemaJudge, value: Any, said: str
) -> None:
    assert await judge.value(CAT, value) == Verdict(value_fault=said)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "type: "),
        ({"pattern": "(?=a)b"}, "pattern: "),
        ({"properties": 3}, "properties: "),
        ({"$ref": "http://127.0.0.1:9/schema"}, "leads out of the document"),
        ({"$ref": "file:///etc/passwd"}, "leads out of the document"),
        ({"enum": [[1]] * 2000}, "more than 1,000 parts"),
        (7, "7 is not of types"),
    ],
)
async def test_a_schema_that_cannot_be_used_says_why(judge: SchemaJudge, schema: Any, said: str) -> None:
    for verdict in (await judge.schema(schema), await judge.value(schema, {})):
        assert verdict.schema_fault is not None
        assert said in verdict.schema_fault


async def test_a_deep_schema_is_refused(judge: SchemaJudge) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"not": deep}
    assert await judge.schema(deep) == Verdict(schema_fault="it is nested deeper than 64 levels")
    for _ in range(400):
        deep = {"not": deep}
    assert (await judge.schema(deep)).schema_fault is not None


async def test_a_pattern_that_would_backtrack_is_matched_at_once(judge: SchemaJudge) -> None:
    schema = {"type": "string", "pattern": "^(a+)+$"}
    assert (await judge.value(schema, "a" * 100_000 + "!")).value_fault is not None
    assert await judge.value(schema, "a" * 100_000) == Verdict()


async def test_a_check_that_takes_too_long_ends_and_the_next_one_is_answered(judge: SchemaJudge) -> None:
    assert await judge.value(doubling(40), 0) == Verdict(schema_fault=TOO_MUCH)
    assert await judge.value(CAT, {"name": "Tom"}) == Verdict()


async def test_a_check_that_takes_too_much_memory_ends(judge: SchemaJudge) -> None:
    assert await judge.value({"type": "array"}, [{}] * 2_000_000) == Verdict(schema_fault=TOO_MUCH)
    assert await judge.value(CAT, {"name": "Tom"}) == Verdict()


async def test_a_pattern_of_pythons_comes_to_an_end_or_the_process_does() -> None:
    async with SchemaJudge() as judge:
        assert await judge.ends(["^curl ", "a(?!b)"], ["curl x", "ab"])
        assert not await judge.ends(["(a+)+$"], ["a" * 5_000 + "!"])
        assert await judge.ends(["^curl "], ["curl x"])
