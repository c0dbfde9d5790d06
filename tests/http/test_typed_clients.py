"""Answers of a shape for programs that no one here wrote, in their default modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import jsons
from tests.mcp.programs import python_with, run
from tests.running import TOKEN, HostProcess, directive

HERE = Path(__file__).parent / "clients"
SAID = {
    "plain": directive(text="hello there"),
    "typed": directive(steps=[{"tools": [{"name": "final_answer", "input": {"lives": 9}}]}]),
    "called": directive(steps=[{"tools": [{"name": "client__Cat", "input": {"lives": 9}}]}]),
}


@pytest.mark.slow  # their packages take half a minute to install
async def test_instructor_and_langchain_get_what_they_asked_for(host: HostProcess) -> None:
    door = jsons.dumps({"url": f"{host.url}/v1", "key": TOKEN, "said": SAID})
    python = python_with(HERE / "typed.lock")
    seen = await run(python, str(HERE / "typed.py"), env={"DOOR": door, "PYTHONPATH": ""}, cwd=HERE)
    assert seen["instructor"] == {"tools": 9, "json_schema": 9}
    assert seen["langchain"] == {"default": 9, "function_calling": 9, "plain": "hello there"}
