"""The whole error tree. What leaves the process is drawn from here, never from a stray exception's text.

PicoError
├── InvalidInput            400 invalid_request      the message names the field
│   └── NotJson             415 unsupported_media_type
├── BodyTimeout             408 timeout
├── TooLarge                413 body_too_large
│   └── FileTooLarge        413 file_too_large
├── Unauthorized            401 unauthorized
├── Forbidden               403 forbidden
│   ├── ReadOnly            403 read_only
│   └── Suspended           403 suspended
├── NotFound                404 not_found
│   └── NoConversation      404 not_found
├── MethodNotAllowed        405 method_not_allowed
├── Conflict                409 conflict
│   ├── ConversationBusy    409 conversation_busy
│   ├── ApprovalPending     409 approval_pending
│   ├── AlreadyDecided      409 already_decided
│   ├── IsDirectory         409 is_directory
│   ├── NotEmpty            409 not_empty
│   ├── NotRunning          409 not_running
│   ├── Exists              409 exists
│   └── Duplicate           409 duplicate_id
├── Expired                 410 expired
├── PreconditionFailed      412 precondition_failed
├── RangeUnsatisfiable      416 range
├── TooManyRequests         429 rate_limited         retry after N seconds
├── Misconfigured           500 misconfigured
├── DiskFull                507 disk_full
│   └── WorkspaceFull       507 workspace_full
└── Unavailable             503 unavailable          retry after N seconds
    ├── Draining            503 draining
    ├── AtCapacity          503 at_capacity
    └── NotDurable          503 store_not_durable
KeyTaken                    an idempotency key stands for something already
LeaseLost                   a run's writer was overtaken: nothing it writes may land
StoreError                  the store cannot be opened or used
├── StoreVersion            made by a newer program
├── StoreRefused            the database answers and doesn't serve: only the operator can mend it
├── StoreLocked             another host holds the STORE_DIR or the runtime database
├── StoreEnvironment        the machine refuses (a full disk, no descriptor left): nothing is taken for damage
│   └── StoreForbidden      a file belongs to somebody else
├── StoreDamaged            a file isn't what it has to be: nothing is dropped, nothing is removed
└── StoreMismatch           STORE_DIR holds another store than STORE_ID names, or none
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from shared.values import KeyedAnswer

T = TypeVar("T")


class PicoError(Exception):
    """An error with a sentence for people, a code for programs and the HTTP status it maps to."""

    status = 500
    code = "internal"

    def __init_subclass__(cls, *, status: int | None = None, code: str | None = None) -> None:
        cls.status = status or cls.status
        cls.code = code or cls.code

    def __init__(self, message: str, *, code: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.retry_after = retry_after


class InvalidInput(PicoError, status=400, code="invalid_request"):
    """Bad input; the sentence names the field and what would be right."""


class NotJson(InvalidInput, status=415, code="unsupported_media_type"):
    """The body is declared as something other than what the route takes, or as compressed."""


class BodyTimeout(PicoError, status=408, code="timeout"):
    """The rest of the body does not come."""


class TooLarge(PicoError, status=413, code="body_too_large"):
    """The body is over the limit."""


class FileTooLarge(TooLarge, code="file_too_large"):
    """A file is larger than ``files.max_mb``."""


class Unauthorized(PicoError, status=401, code="unauthorized"):
    """Missing or wrong credentials."""


class Forbidden(PicoError, status=403, code="forbidden"):
    """The caller is known, and this is not theirs to do."""


class ReadOnly(Forbidden, code="read_only"):
    """The file is not this conversation's to change."""


class Suspended(Forbidden, code="suspended"):
    """The principal may not act: it is suspended, or being deleted."""

    def __init__(self, principal_id: str) -> None:
        super().__init__(f"The principal {principal_id} is suspended")


class NotFound(PicoError, status=404, code="not_found"):
    """Absent, or not the caller's: one answer for both."""

    @classmethod
    def unless(cls, found: T | None, *said: str) -> T:
        """Return what was found; raises this error, made of ``said``, if nothing was."""
        if found is None:
            raise cls(*said)
        return found


class NoConversation(NotFound):
    """There is no such conversation, or it is not the caller's."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"conversation_id not found: {conversation_id}")


class MethodNotAllowed(PicoError, status=405, code="method_not_allowed"):
    """The path exists, the method does not."""

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class Conflict(PicoError, status=409, code="conflict"):
    """The state of the thing forbids this now."""


class ConversationBusy(Conflict, code="conversation_busy"):
    """Another run holds the conversation's lease."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"Conversation {conversation_id} is currently processing another request")
        self.conversation_id = conversation_id


class ApprovalPending(Conflict, code="approval_pending"):
    """The conversation waits for a person's answer to these requests."""

    def __init__(self, conversation_id: str, ids: Sequence[str]) -> None:
        super().__init__(
            f"Conversation {conversation_id} waits for answers to {', '.join(ids)}: POST /approvals/{{id}}, "
            'or send the message with "deny_pending": true'
        )
        self.conversation_id = conversation_id
        self.approval_ids = list(ids)


class AlreadyDecided(Conflict, code="already_decided"):
    """The request was answered before; ``decision`` is what came of it."""

    def __init__(self, approval_id: str, status: str) -> None:
        super().__init__(f"The request {approval_id} was decided already: {status}")
        self.decision = str(status)


class Expired(PicoError, status=410, code="expired"):
    """Nobody answered in time."""


class NotRunning(Conflict, code="not_running"):
    """There is no run to cancel."""


class IsDirectory(Conflict, code="is_directory"):
    """A file is asked for, and a directory is there."""


class NotEmpty(Conflict, code="not_empty"):
    """The directory has something in it."""


class Exists(Conflict, code="exists"):
    """Something has the name already."""


class Duplicate(Conflict, code="duplicate_id"):
    """The given id is taken."""


class PreconditionFailed(PicoError, status=412, code="precondition_failed"):
    """The thing is not what the caller takes it for."""


class RangeUnsatisfiable(PicoError, status=416, code="range"):
    """The bytes that are asked for lie behind the end of a file of ``size`` bytes."""

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


class DiskFull(PicoError, status=507, code="disk_full"):
    """The disk has no room."""


class WorkspaceFull(DiskFull, code="workspace_full"):
    """A principal's files take what they may."""


class TooManyRequests(PicoError, status=429, code="rate_limited"):
    """A rate limit was reached."""


class Misconfigured(PicoError, status=500, code="misconfigured"):
    """The operator left out something without which the host may not serve."""


class Unavailable(PicoError, status=503, code="unavailable"):
    """Try again later."""


class Draining(Unavailable, code="draining"):
    """The host is stopping."""


class AtCapacity(Unavailable, code="at_capacity"):
    """The cap on concurrent runs is reached."""


class NotDurable(Unavailable, code="store_not_durable"):
    """The volume cannot be written, so nothing may be acknowledged."""


class KeyTaken(Exception):
    """An idempotency key stands for a run or an answer already; the caller joins it."""

    def __init__(self, answer: KeyedAnswer) -> None:
        super().__init__(answer.subject)
        self.answer = answer


class LeaseLost(Exception):
    """The run's fencing number is no longer the conversation's: another owner took over."""


class StoreError(Exception):
    """The store cannot be opened or used; the sentence says why.

    ``hopeless``: another try cannot succeed before an operator did something, so nobody should try again.
    """

    hopeless = False

    def __init_subclass__(cls, *, hopeless: bool | None = None) -> None:
        cls.hopeless = cls.hopeless if hopeless is None else hopeless


class StoreVersion(StoreError, hopeless=True):
    """The database was written by a newer version of the program."""


class StoreRefused(StoreError, hopeless=True):
    """The database answers and doesn't serve; the sentence has its words and the setting that mends it."""


class StoreLocked(StoreError):
    """Another host holds the volume, or the runtime database."""


class StoreEnvironment(StoreError):
    """The machine refuses what the store needs; the files are as they were, and none counts as damaged."""


class StoreForbidden(StoreEnvironment, hopeless=True):
    """A file belongs to somebody else; the sentence names it, its owner and the chown."""


class StoreDamaged(StoreError, hopeless=True):
    """A file is missing or not what it has to be, and something acknowledged can't be shown without it.

    ``what`` names the file and the place.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Nothing was removed. `picoclaw store salvage FILE` takes what can be read into a new "
            "file; `picoclaw store restore FILE` puts that, or a backup, in its place."
        )
        self.what = what


class StoreMismatch(StoreError, hopeless=True):
    """The volume holds another store than STORE_ID names, or none."""
