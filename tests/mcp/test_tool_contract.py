"""The schema a tool shows and the check it makes say the same."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput
from shared.tool_contract import ToolDeclaration, tool_declarations

# It comes without types, so it is imported as what it is.
jsonschema: Any = importlib.import_module("jsonschema")

TOOLS = list(tool_declarations(is_main=True).values())
NAMES = sorted({name for tool in TOOLS for name in tool.input_schema["properties"]})
CHOICES = ["cron", "interval", "once", "group", "isolated", "skip", "all", "active", "paused", "x"]
VALUES: st.SearchStrategy[Any] = (
    st.sampled_from(CHOICES)
    | st.text(min_size=1, max_size=5)
    | st.sampled_from(["x" * 100, "x" * 101, "x" * 200, "x" * 201, "x" * 501, "x" * 32_000, "x" * 32_001])
    | st.integers(-2, 1002)
    | st.booleans()
    | st.none()
    | st.floats(0, 3)
    | st.just([])
    | st.just({})
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[ToolDeclaration, dict[str, Any]]:
    tool = draw(st.sampled_from(TOOLS))
    own = st.sampled_from(sorted(tool.input_schema["properties"]))
    arguments = draw(st.dictionaries(own, VALUES, max_size=4))
    required = {name: "cron" for name in tool.input_schema.get("required", ()) if draw(st.booleans())}
    strange = draw(st.dictionaries(st.sampled_from([*NAMES, "owner"]), VALUES, max_size=1))
    return tool, {**required, **arguments, **strange}


@given(calls())
def test_what_the_schema_takes_is_taken_and_the_rest_refused(
    call: tuple[ToolDeclaration, dict[str, Any]],
) -> None:
    tool, arguments = call
    # JSON Schema counts 1.0 as an integer; the check doesn't, like JSON itself as it is sent.
    if any(isinstance(value, float) and value.is_integer() for value in arguments.values()):
        return
    shown = jsonschema.Draft202012Validator(tool.input_schema).is_valid(arguments)
    try:
        tool.parse(arguments)
        taken = True
    except InvalidInput:
        taken = False
    assert taken == shown


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_schemas_are_sound_closed_and_described(tool: ToolDeclaration) -> None:
    schema = tool.input_schema
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator.check_schema(tool.output_schema)
    assert schema["additionalProperties"] is False
    assert set(schema) <= {"type", "properties", "required", "additionalProperties"}
    assert all(value.get("description") for value in schema["properties"].values())
    assert all("type" in value for value in schema["properties"].values())
    assert set(schema.get("required", ())) <= set(schema["properties"])


def test_an_empty_optional_text_counts_as_not_given() -> None:
    tool = tool_declarations(is_main=False)["list_tasks"]
    assert tool.parse({"status": "", "cursor": ""}) == tool.parse({})


def test_only_the_main_conversation_may_name_whom_to_write_to() -> None:
    fields = [
        set(tool_declarations(is_main=is_main)["send_message"].input_schema["properties"])
        for is_main in (False, True)
    ]
    assert fields == [{"text", "sender"}, {"text", "sender", "conversation_id"}]
