"""The one logger set-up: JSON lines (or lines for people) on standard error, redacted, with request ids."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, Final, Literal
from weakref import WeakSet

from shared import jsons
from shared.clock import at, iso
from shared.errors import Unavailable
from shared.redact import Redactor
from shared.untrusted import one_line

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_context: list[Callable[[], dict[str, str]]] = []

# Whoever logs at less than a warning in these says what our own access log says, or a URL with a key in it.
QUIET: Final = (
    "uvicorn",
    "httpx",
    "httpcore",
    "telegram",
    "httpx2",
    "httpcore2",
    "anthropic",
    "mcp",
    "asyncio",
    "opentelemetry",
)

_STANDARD: Final = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message")
)


def configure(level: str, log_format: Literal["json", "console"], redactor: Redactor) -> None:
    """Send every record of the process to standard error, at ``level`` or above.

    Replaces what was configured before. Exceptions that nobody caught are logged the same way, so that
    their texts are redacted too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(redactor) if log_format == "json" else ConsoleFormatter(redactor))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(max(logging.WARNING, root.level))
    logging.getLogger("uvicorn.access").disabled = True
    logging.raiseExceptions = False  # the report of a failed write would hold the record as it was
    sys.excepthook = _log_uncaught
    sys.unraisablehook = threading.excepthook = _log_thrown


def add_context(fields: Callable[[], dict[str, str]]) -> None:
    """Have every record hold what ``fields`` returns where the record is made."""
    _context.append(fields)


def remove_context(fields: Callable[[], dict[str, str]]) -> None:
    """Undo ``add_context``."""
    _context.remove(fields)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, request_id, the extra fields, exception."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        entry: dict[str, Any] = {
            "time": iso(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redactor.line(_text(_message(record))),
            **_request(),
        }
        if record.exc_info:
            entry["exception"] = self._redactor.text(_text(self.formatException(record.exc_info)))
        line = jsons.dumps(self._redactor.value(_encodable(extra_of(record))) | entry)
        return line if line.isascii() else one_line(line)


class ConsoleFormatter(logging.Formatter):
    """A line for people: time, level, message, ``field=value``; the exception below."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters and line ends are shown, not sent."""
        fields = "".join(f" {name}={value}" for name, value in (_request() | extra_of(record)).items())
        line = f"{at(int(record.created * 1000)):%H:%M:%S} {record.levelname:<7} {_message(record)}{fields}"
        said = one_line(self._redactor.line(line))
        if record.exc_info:
            below = self._redactor.text(self.formatException(record.exc_info)).split("\n")
            said += "".join(f"\n    {one_line(part)}" for part in below)
        return said


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that the caller gave with ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _message(record: logging.LogRecord) -> str:
    """Return the message; arguments that don't fit it are left out rather than the record."""
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)


def _request() -> dict[str, str]:
    current = request_id.get()
    found = {"request_id": current} if current else {}
    for fields in _context:
        found |= fields()
    return found


def _encodable(value: Any) -> Any:
    """Return a value that JSON knows: what it doesn't becomes text, before it is redacted."""
    if isinstance(value, dict):
        return {_text(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_encodable(item) for item in value]
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 53):
        return value
    return _text(value)


def _text(value: object) -> str:
    """Return the value as text that UTF-8 can hold (file names may have bytes that it can't)."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("picoclaw").critical("Unexpected end", exc_info=(kind, error, traceback))


def _log_thrown(thrown: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
    if thrown.exc_value is not None:
        _log_uncaught(thrown.exc_type, thrown.exc_value, thrown.exc_traceback)


class Rounds:
    """What goes on in the background, round by round: a round that fails is followed by another.

    ``with`` it around each. That rounds begin to fail is told once, and that they work again. Without the
    store all fail: the first says so, and the last that it is over.
    """

    _without_store: ClassVar[WeakSet[Rounds]] = WeakSet()

    def __init__(self, logger: logging.Logger, failing: str) -> None:
        """``failing``: what could not be done, as a sentence without its end."""
        self._logger = logger
        self._failing = failing
        self._is_failing = False

    def __enter__(self) -> None:
        """Begin a round."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """End it; what failed is tried again, what was cancelled is not."""
        if error is not None and not isinstance(error, Exception):
            return False
        waiting, waited = self._without_store, len(self._without_store)
        if isinstance(error, Unavailable):
            waiting.add(self)
            if not waited:
                self._logger.warning("The background waits for the store: %s", error.message)
            return True
        waiting.discard(self)
        if waited and not waiting:
            self._logger.warning("The background goes on")
        if error is not None and not self._is_failing:
            self._logger.error("%s; it is tried again", self._failing, exc_info=error)
        elif error is None and self._is_failing:
            self._logger.warning("It works again: %s", self._failing)
        self._is_failing = error is not None
        return True
