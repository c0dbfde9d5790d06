"""What a server asks a person in the middle of a call (elicitation), as requests for a person's word have it.

The call is given up, and made again with the answer: nothing waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared import jsons
from shared.lines import one_line
from shared.untrusted import defused

LONGEST_MESSAGE: Final = 4000
LONGEST_FIELD: Final = 300
MOST_OPTIONS: Final = 20
Form = Mapping[str, Any]
"""A JSON Schema of an object whose fields are texts, numbers, truth values or choices."""


def request(server: str, message: str, form: Form, url: str = "") -> dict[str, Any]:
    """Return the question, and the answers to choose from where there are some."""
    fields = _fields(form)
    said = f"The MCP server {server} asks: {_line(message, LONGEST_MESSAGE)}"
    if url:
        said += f"\nOpen {_line(url, LONGEST_MESSAGE)}, and answer when you are done."
    elif len(fields) == 1:
        said += f"\nYour answer is {_about(fields)[0]}."
    elif fields:
        said += "\nAnswer with a JSON object of\n" + "\n".join(_about(fields))
    options = _options(next(iter(fields.values()))) if len(fields) == 1 else []
    return {"question": said, "options": options} if options else {"question": said}


def content(form: Form, answer: str) -> dict[str, Any] | None:
    """Return a person's answer as the form wants it, with its defaults; None if it is no answer."""
    fields = _fields(form)
    given = _parsed(answer)
    if not isinstance(given, dict):
        if len(fields) > 1:
            return None
        given = {name: answer if field.get("type") == "string" else given for name, field in fields.items()}
    if not all(map(_is_value, given.values())):
        return None
    return {name: field["default"] for name, field in fields.items() if "default" in field} | given


def _fields(form: Form) -> dict[str, Mapping[str, Any]]:
    fields = form.get("properties")
    named = fields.items() if isinstance(fields, Mapping) else ()
    return {name: field for name, field in named if isinstance(field, Mapping)}


def _about(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        _line(f"{name}: {jsons.dumps(field) if jsons.fits(field) else 'anything'}", LONGEST_FIELD)
        for name, field in fields.items()
    ]


def _options(field: Mapping[str, Any]) -> list[str]:
    given = ["true", "false"] if field.get("type") == "boolean" else field.get("enum")
    if not isinstance(given, list) or len(given) > MOST_OPTIONS:
        return []
    return [option for option in given if isinstance(option, str)]


def _parsed(answer: str) -> Any:
    try:
        return jsons.loads(answer)
    except jsons.JSONDecodeError:
        return answer


def _is_value(value: Any) -> bool:
    return not isinstance(value, dict | list) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def _line(text: str, longest: int) -> str:
    return defused(one_line(text[:longest]))
