"""The schema a tool shows and the check it makes say the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidInput
from shared.tool_contract import ScheduleTask, ToolDeclaration, tool_declarations
from tests.json_schema import validator

# It comes without types, so it is imported as what it is.

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


def meant(tool: ToolDeclaration, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments as the schema wants them, where there is one way to read them."""
    required = tool.input_schema.get("required", ())
    known = tool.input_schema["properties"].keys() - set(required)
    told = {name: value for name, value in arguments.items() if value is not None or name not in known}
    value = told.get("schedule_value")
    if isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        told["schedule_value"] = str(int(value))
    return told


@given(calls())
def test_what_the_schema_takes_is_taken_and_the_rest_refused(
    call: tuple[ToolDeclaration, dict[str, Any]],
) -> None:
    tool, arguments = call
    shown = validator(tool.input_schema).is_valid(meant(tool, arguments))
    try:
        tool.parse(arguments)
        taken = True
    except InvalidInput:
        taken = False
    assert taken == shown


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_schemas_are_sound_closed_and_described(tool: ToolDeclaration) -> None:
    schema = tool.input_schema
    validator(schema)
    validator(tool.output_schema)
    assert schema["additionalProperties"] is False
    assert set(schema) <= {"type", "properties", "required", "additionalProperties"}
    assert all(value.get("description") for value in schema["properties"].values())
    assert all("type" in value for value in schema["properties"].values())
    assert set(schema.get("required", ())) <= set(schema["properties"])


def test_an_empty_optional_text_counts_as_not_given() -> None:
    tool = tool_declarations(is_main=False)["list_tasks"]
    assert tool.parse({"status": "", "cursor": ""}) == tool.parse({})


@pytest.mark.parametrize("value", ["3600000", 3600000, 3600000.0])
def test_a_schedule_may_be_a_number_and_what_is_optional_null(value: object) -> None:
    tool = tool_declarations(is_main=False)["schedule_task"]
    asked = {"prompt": "x", "schedule_type": "interval", "schedule_value": value, "timezone": None}
    taken = tool.parse(asked)
    assert isinstance(taken, ScheduleTask)
    assert (taken.schedule_value, taken.timezone) == ("3600000", "")


def test_a_whole_number_may_have_a_decimal_point() -> None:
    tool = tool_declarations(is_main=False)["list_tasks"]
    assert tool.parse({"limit": 5.0, "cursor": None}) == tool.parse({"limit": 5})
    for refused in ({"limit": 5.5}, {"limit": True}, {"limit": "5"}):
        with pytest.raises(InvalidInput, match="limit: must be a whole number"):
            tool.parse(refused)


def test_only_the_main_conversation_may_name_whom_to_write_to() -> None:
    fields = [
        set(tool_declarations(is_main=is_main)["send_message"].input_schema["properties"])
        for is_main in (False, True)
    ]
    assert fields == [{"text", "sender"}, {"text", "sender", "conversation_id"}]
