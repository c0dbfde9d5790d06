"""What a run waits for, as an MCP client asks its person (elicitation), and what the person says to it.

Source: the Model Context Protocol 2026-07-28, client/elicitation, "Form Mode".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from host.http.approvals import LONGEST_ANSWER
from shared.approval_values import Answer, Approval

Form = dict[str, Any]

MAY_I: Final = "May the agent do this?{}\n\n{}"
DECISION: Final[Form] = {"type": "string", "title": "Decision", "enum": ["allow", "deny"]}
WHY: Final[Form] = {"type": "string", "title": "What the agent is told if you deny it"}


def input_requests(waiting: list[Approval]) -> Form:
    """Return what waits as elicitations, by the requests' ids."""
    return {each.id: {"method": "elicitation/create", "params": _elicitation(each)} for each in waiting}


def _elicitation(request: Approval) -> Form:
    if request.kind == "approval":
        whose = f" (subagent {request.subagent})" if request.subagent else ""
        return _form(MAY_I.format(whose, request.asked), {"decision": DECISION, "message": WHY})
    answer: Form = {"type": "string", "title": "Answer"}
    if options := request.input.get("options"):
        answer["enum"] = list(dict.fromkeys(options))
    return _form(str(request.input.get("question")), {"answer": answer})


def _form(message: str, fields: Form) -> Form:
    """Return a form whose first field has to be filled in."""
    schema = {"type": "object", "properties": fields, "required": [next(iter(fields))]}
    return {"mode": "form", "message": message, "requestedSchema": schema}


def answer_of(request: Approval, response: Mapping[str, Any], by: Mapping[str, Any]) -> Answer | None:
    """Return what a response to an elicitation says to the request, None if nothing."""
    if response.get("action") in ("decline", "cancel"):
        return Answer("deny", by)
    content = response.get("content")
    if response.get("action") != "accept" or not isinstance(content, Mapping):
        return None
    said = content.get("answer" if request.kind == "question" else "decision")
    if request.kind == "question":
        return Answer("answer", by, said, request.input_sha256) if _is_text(said) else None
    if said == "deny":
        why = content.get("message")
        return Answer("deny", by, why if _is_text(why) else None)
    return Answer("allow", by, None, request.input_sha256) if said == "allow" else None


def _is_text(said: Any) -> bool:
    return isinstance(said, str) and bool(said.strip()) and "\x00" not in said and len(said) <= LONGEST_ANSWER
