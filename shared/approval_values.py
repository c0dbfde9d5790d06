"""Calls that wait for a person or a program: what is asked, the answer, and what the model is told of it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal

import orjson

from shared import jsons, untrusted
from shared.clock import DAY_MS
from shared.untrusted import one_line

Kind = Literal["approval", "question", "client_tool", "budget"]
Decision = Literal["allow", "deny", "answer", "result"]

ELICITATION: Final = "elicitation"
"""The reason of a question that a server asks in the middle of a call: it is made again with the answer."""
UNKEPT_MS: Final = 10 * 60 * 1000
"""How long calls of a program wait for their results in a conversation that isn't kept."""
MOST_OF_A_STEP: Final = 32
MOST_OPEN: Final = 500
"""Of one principal."""
MOST_REMEMBERED: Final = 256
"""Of one conversation."""
LARGEST_INPUT: Final = 256 * 1024
"""Bytes of a call's input, as JSON."""


class ApprovalStatus(StrEnum):
    """Where a request stands; DONE and INTERRUPTED is what became of a call that was allowed."""

    PENDING = "pending"
    ALLOWED = "allowed"
    DENIED = "denied"
    ANSWERED = "answered"
    RESULTED = "resulted"
    EXPIRED = "expired"
    DROPPED = "dropped"
    DONE = "done"
    INTERRUPTED = "interrupted"


DECIDED: Final[Mapping[Decision, ApprovalStatus]] = {
    "allow": ApprovalStatus.ALLOWED,
    "deny": ApprovalStatus.DENIED,
    "answer": ApprovalStatus.ANSWERED,
    "result": ApprovalStatus.RESULTED,
}

_TOLD: Final = {
    ApprovalStatus.DENIED: "This call was not made: it was denied.",
    ApprovalStatus.EXPIRED: "This call was not made: nobody answered in time.",
    ApprovalStatus.DROPPED: "This call was not made: it was dropped before it ran.",
    ApprovalStatus.INTERRUPTED: "This call may have been made: the run ended before its result was stored.",
}
NOT_ANSWERED: Final = "This call was not answered: its program went on without giving a result."


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A call that is to be asked about; ``life_ms``: so long it waits, None: it doesn't expire.

    ``call_id`` is the run's own call that has no result until it is answered: of a call of the ``subagent``
    (empty: the run's own), the one that began it.
    """

    id: str
    kind: Kind
    tool: str
    input: Mapping[str, Any]
    call_id: str = ""
    reason: str = ""
    life_ms: int | None = DAY_MS
    base_sha256: str | None = None
    """Of the file that the call changes, as the person sees it: "" where there is none."""
    subagent: str = ""

    @property
    def input_sha256(self) -> str:
        """What an answer echoes: proof that the person saw this very call."""
        return call_digest(self.tool, self.input)


@dataclass(frozen=True, slots=True)
class Approval:
    """A request as it is stored. ``run_id`` asked; ``ended_at``: its result is in the history."""

    id: str
    number: int
    kind: Kind
    conversation_id: str
    run_id: str
    call_id: str
    tool: str
    input: Mapping[str, Any]
    input_sha256: str
    reason: str
    status: ApprovalStatus
    created_at: int
    expires_at: int | None
    decided_at: int | None
    decided_by: Mapping[str, Any] | None
    message: str | None
    remembered: bool
    ended_at: int | None
    is_error: bool = False
    base_sha256: str | None = None
    subagent: str = ""
    """The name of the subagent whose call it is; empty: the run's own."""
    shown: Sequence[Sequence[str]] = ()
    """The messages of chats that have buttons for it: channel, chat, message, conversation."""
    next_run_id: str | None = None

    @property
    def asked(self) -> str:
        """What a person has to see of it, whole: the question, or the tool and its input."""
        asks = self.kind == "question"
        text = str(self.input.get("question", "")) if asks else jsons.dumps(self.input, indented=True)
        return "\n".join(map(one_line, [*(() if asks else (self.tool,)), *text.split("\n")]))

    @property
    def call(self) -> dict[str, Any]:
        """What is called once it is allowed, and the answers that are at hand for a server that asks."""
        made: dict[str, Any] = {"id": self.call_id, "name": self.tool, "input": self.input, "answers": []}
        made["base_sha256"] = self.base_sha256
        if self.reason != ELICITATION:
            return made
        said = [self.input["question"], self.message or ""]
        return made | {"input": self.input["call"], "answers": [*self.input["answers"], said]}

    def result(self) -> dict[str, Any]:
        """Return what the model is told of a call that was not made, or was answered by a person."""
        text = _TOLD.get(self.status, "")
        if self.subagent:
            text = f"The subagent did not finish. It waited with its call of {self.tool}. {text}"
        given = self.status in (ApprovalStatus.ANSWERED, ApprovalStatus.RESULTED)
        if self.status is ApprovalStatus.RESULTED:
            text = untrusted.wrapped(self.message or "", self.call_id)
        elif self.kind == "client_tool" and self.status is ApprovalStatus.DENIED and not self.message:
            text = NOT_ANSWERED
        elif self.message:
            text = f"{text}\n<answer>{untrusted.escaped(self.message)}</answer>".strip()
        return {
            "type": "tool_result",
            "tool_use_id": self.call_id,
            "content": [{"type": "text", "text": text}],
            "is_error": self.is_error or not given,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said to a request, and by whom (``by``); ``message`` of a result is the output."""

    decision: Decision
    by: Mapping[str, Any]
    message: str | None = None
    input_sha256: str | None = None
    remember: bool = False
    allow_tokens: int | None = None
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A step whose last request was answered: it can go on."""

    conversation_id: str
    parent_id: str | None
    principal_id: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many requests wait, the oldest for how long; for how long a step that was answered hasn't begun."""

    requests: int
    oldest_ms: int
    ready_ms: int


def call_digest(tool: str, input: Mapping[str, Any]) -> str:
    """Return the SHA-256 over a tool's name and its input."""
    text = orjson.dumps([tool, input], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()
