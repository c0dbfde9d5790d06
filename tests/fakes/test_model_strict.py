"""The strict server refuses what the API's documentation says it refuses, and nothing else."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.agent.test_pictures import DATA, png
from tests.fakes.model_strict import refuse
from tests.fakes.protocol import InvalidRequest

TEXT = {"type": "text", "text": "hi"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "exec", "input": {}}
MARK = {"cache_control": {"type": "ephemeral"}}


def picture(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    text = base64.b64encode(data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": text}}


def result(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(content), **more}


def thinking(signature: str = "signed-by-the-fake") -> dict[str, Any]:
    return {"type": "thinking", "thinking": "hm", "signature": signature}


def request(*contents: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"model": "m", "max_tokens": 2000, "messages": messages, **more}


BUDGET = {"type": "enabled", "budget_tokens": 1024}
FINE = [
    request([TEXT]),
    request([TEXT], [thinking(), TEXT, CALL], [result(TEXT, picture(DATA["png"])), {**TEXT, **MARK}]),
    request([picture(png(8000, 8000))]),
    request([TEXT], thinking=BUDGET),
]
REFUSED = [
    (request([TEXT], odd=1), "odd: Extra inputs"),
    (request([{**TEXT, "text": " "}]), "non-whitespace"),
    (request([{**TEXT, "odd": 1}]), "odd: Extra inputs"),
    (request([CALL]), "Input tag 'tool_use'"),
    (request([TEXT], [picture(DATA["png"])]), "Input tag 'image'"),
    (request([]), "non-empty content"),
    (request([TEXT], [TEXT, thinking()], [TEXT]), "final block"),
    (request([TEXT], [thinking("forged"), TEXT], [TEXT]), "Invalid `signature`"),
    (request([TEXT], [{**CALL, "id": "a b"}], [TEXT]), "tool_use.id"),
    (request([TEXT], [{**CALL, "name": "a.b"}], [TEXT]), "tool_use.name"),
    (request([TEXT], [CALL], [result(TEXT)], [CALL], [result(TEXT)]), "must be unique"),
    (request([TEXT], [CALL], [result(TEXT), result(TEXT)]), "single result"),
    (request([TEXT], [CALL], [TEXT, result(TEXT)]), "must come first"),
    (request([TEXT], [CALL], [result(picture(DATA["png"]), is_error=True)]), "if `is_error`"),
    (request([TEXT], [CALL], [result(TEXT)], thinking=BUDGET), "Expected `thinking`"),
    (request([TEXT], thinking={"type": "enabled", "budget_tokens": 2000}), "must be greater"),
    (request([TEXT], thinking={"type": "enabled", "budget_tokens": 10}), "at least 1024"),
    (request([{**TEXT, **MARK}] * 5), "maximum of 4"),
    (request([picture(DATA["png"][:8])]), "Could not process"),
    (request([picture(DATA["png"][:60])]), "Could not process"),
    (request([picture(png(12000, 9000))]), "dimensions"),
    (request([picture(png(2001, 1))] * 21), "dimensions"),
    (request([picture(DATA["png"])] * 101), "too many images"),
    (request([picture(DATA["gif"])]), "media type"),
    (request([TEXT], tools=[{"name": "a.b", "input_schema": {"type": "object"}}]), "custom.name"),
    (request([TEXT], tools=[{"name": "ab", "input_schema": {}}]), "input_schema"),
]


@pytest.mark.parametrize("body", FINE)
def test_what_is_documented_is_taken(body: dict[str, Any]) -> None:
    refuse(body, 0)


@pytest.mark.parametrize(("body", "sentence"), REFUSED)
def test_what_the_documentation_forbids_is_refused(body: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        refuse(body, 0)
