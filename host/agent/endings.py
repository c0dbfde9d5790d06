"""How a run can end before the model is finished. Raised anywhere in the loop, caught in one place.

Ending
├── IterationLimit   error    iteration_limit
├── ModelFailed      error    model_error
├── Refused          error    refused
├── CutOff           error    max_tokens
├── NoProgress       error    no_progress
├── TooLong          error    prompt_too_long
├── OutputInvalid    error    output_invalid
├── TimedOut         timeout  timeout
├── Cancelled        cancelled cancelled
├── Overtaken        error    lease_lost
├── Stopped          error    shutdown
└── Paused           paused   budget
    └── Asked        paused   approval, question, client_tool
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shared.approval_values import NewApproval
from shared.jsons import dumps
from shared.untrusted import one_line
from shared.values import RunState

LONGEST_SHOWN: Final = 1000
"""Characters of a call that its question shows."""


class Ending(Exception):
    """An ending with the sentence and code that the caller gets."""

    state = RunState.ERROR
    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code


class IterationLimit(Ending):
    """The model wanted more steps than a run may have."""

    code = "iteration_limit"


class ModelFailed(Ending):
    """The model could not be reached, or failed for good."""

    code = "model_error"


class Refused(Ending):
    """The model declined to go on. What it declined is not sent again: see ``host.agent.history.REFUSED``."""

    code = "refused"


class CutOff(Ending):
    """The model's calls don't fit into one answer."""

    code = "max_tokens"


class NoProgress(Ending):
    """The model repeats what fails."""

    code = "no_progress"


class TooLong(Ending):
    """What has to be sent doesn't fit into the model's window, and nothing more can be left out."""

    code = "prompt_too_long"


class OutputInvalid(Ending):
    """The answer is not what the request's schema says, also not after it was mended."""

    code = "output_invalid"


class TimedOut(Ending):
    """The run's time is over."""

    state = RunState.TIMEOUT
    code = "timeout"


class Cancelled(Ending):
    """Somebody asked for the run to stop."""

    state = RunState.CANCELLED
    code = "cancelled"


OVERTAKEN = "The run's lease ran out: this host was paused, or away from the store, for longer than LEASE_MS."


class Overtaken(Ending):
    """The run's lease ran out, and others may end it or take it over."""

    code = "lease_lost"

    def __init__(self) -> None:
        super().__init__(OVERTAKEN)


class Stopped(Ending):
    """The host is going down."""

    code = "shutdown"


class Paused(Ending):
    """The run needs a person's word to go on; its message says for what."""

    state = RunState.PAUSED
    code = "budget"

    def __init__(self, message: str, requests: Sequence[NewApproval]) -> None:
        super().__init__(message)
        self.requests = requests
        self.stopped: Mapping[str, Any] = {}


class Halted(Exception):
    """A subagent waits for a person; ``state`` is how far it came, as JSON has it."""

    def __init__(self, requests: Sequence[NewApproval], state: Mapping[str, Any]) -> None:
        super().__init__()
        self.requests = requests
        self.state = state


class Asked(Paused):
    """Calls of an agent wait for a person or for the calling program.

    ``own`` are its own, ``halted`` those of its subagents, by the call that began each.
    """

    code = "approval"

    def __init__(self, own: Sequence[NewApproval], halted: Mapping[str, Halted] | None = None) -> None:
        below = (halted or {}).items()
        requests = [*own, *(replace(each, call_id=call) for call, child in below for each in child.requests)]
        waits = "\n".join(f"{request.id}: {_shown(request)}" for request in requests)
        super().__init__(f"I wait for your answer (POST /approvals/{{id}}):\n{waits}", requests)
        self.stopped = {call: child.state for call, child in below}
        kinds = {request.kind for request in requests}
        self.code = next(kind for kind in ("approval", "question", "client_tool") if kind in kinds)


def _shown(request: NewApproval) -> str:
    text = request.input.get("question") if request.kind == "question" else dumps(request.input)
    whose = f"subagent {request.subagent}: " if request.subagent else ""
    said = one_line(f"{text}" if request.kind == "question" else f"{whose}{request.tool} {text}")
    return (
        said
        if len(said) <= LONGEST_SHOWN
        else f"{said[:LONGEST_SHOWN]}… (all of it: GET /approvals/{request.id})"
    )
