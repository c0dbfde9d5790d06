"""What the store is given to begin a run, of what was asked."""

from __future__ import annotations

from dataclasses import replace

from host.agent import untrusted
from host.agent.prompt import enclosed_text, person_message
from host.runs.spec import RunSpec
from shared.clock import now_ms
from shared.ids import CONVERSATION, MESSAGE, RUN, new_id
from shared.models import NewMessage, NewRun
from shared.redact import Redactor
from shared.schedules import local


def new_run(
    spec: RunSpec, *, owner: str, lease_ms: int, redactor: Redactor, timezone: str, assistant_name: str = ""
) -> NewRun:
    """Return the run with its ids; its message is stored without the secrets that the host knows.

    The time stands with the message, so that what comes before it is the same from turn to turn.
    """
    now = now_ms()
    return NewRun(
        run_id=spec.run_id or new_id(RUN),
        conversation_id=spec.conversation_id or spec.new_conversation_id or new_id(CONVERSATION),
        message=_message(spec, local(now, timezone), redactor, assistant_name),
        owner=owner,
        now=now,
        lease_ms=lease_ms,
        create=spec.conversation_id is None,
        parent_id=spec.parent_id,
        temporary=spec.temporary,
        model=spec.model or "",
        idempotency=spec.idempotency,
    )


def _message(spec: RunSpec, time: str, redactor: Redactor, assistant: str) -> NewMessage | None:
    if spec.message is None:
        return None
    text = redactor.text(spec.message)
    identity, name = spec.sender, spec.sender_name
    if not spec.scheduled:
        identity, name = untrusted.sender(identity, assistant), untrusted.sender(name, assistant)
    enclosed = [
        replace(each, text=redactor.text(each.text), who=each.who and untrusted.sender(each.who, assistant))
        for each in spec.enclosed
    ]
    blocks = person_message(
        text,
        sender=name,
        time=time,
        identity=identity,
        by_owner=spec.by_owner,
        enclosed=enclosed,
    )
    if spec.preface:
        blocks.insert(0, {"type": "text", "text": redactor.text(spec.preface)})
    if spec.notice:
        blocks.append({"type": "text", "text": f"<notice>{spec.notice}</notice>"})
    shown = "\n\n".join(filter(None, (*map(enclosed_text, enclosed), text)))
    return NewMessage(new_id(MESSAGE), "user", blocks, shown, identity, name)
