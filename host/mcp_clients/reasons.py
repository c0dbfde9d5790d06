"""Why a server, or one of its calls, failed: one sentence for people, in which its own words are marked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from host.mcp_clients.server_config import ServerConfig
from shared import untrusted
from shared.untrusted import one_line

LONGEST: Final = 500
"""Characters of a server's own words within a sentence."""
_PARSE_ERROR: Final = -32700
_CLOSED: Final = -32000
_OF_THE_SDK: Final = (
    "Server returned an error response",
    "Not Found",
    "Session terminated",
    "Unexpected content type",
    "Redirect to",
)
"""How the SDK begins the errors that it makes of an HTTP answer."""

_KINDS: Final = {
    "Forbidden": "is at an address that requests may not reach",
    "PermissionError": "is a program, and there is no sandbox to run it in",
    "SandboxFault": "is a program, and the sandbox does not hold enough to run it in",
    "TooManyTools": "lists more tools than can be offered",
    "TimeoutError": "did not answer in time",
}
_STATUSES: Final = {
    401: "wants a sign-in that it was not given or does not accept (401): check its Authorization header",
    403: "does not allow this access (403): check the rights of its key",
    404: "is not at this address (404): check the path",
    429: "has had too many requests (429): try again later",
}
_OTHER_WAY: Final = {"http": "sse", "sse": "http"}
_WRONG_WAY: Final = frozenset({400, 405, 406, 415})


@dataclass(slots=True)
class Heard:
    """What was seen and heard of a server besides its answers.

    ``status``, ``kind``, ``location``: of the newest HTTP answer; ``fault``: why one was not taken in;
    ``last_words``: a program's; ``tools``: as they were listed; ``changed``: the list is another one now.
    """

    status: int = 0
    kind: str = ""
    location: str = ""
    fault: str = ""
    last_words: str | None = None
    tools: list[Any] = field(default_factory=list)
    changed: bool = False

    async def note(self, response: Any) -> None:
        """Remember an HTTP answer (a response hook of the client)."""
        if response.request.method == "DELETE" or (self.status == 200 and response.request.method == "GET"):
            return
        self.status = response.status_code
        self.kind = response.headers.get("content-type", "").partition(";")[0][:64]
        self.location = response.headers.get("location", "")

    def refuse(self, fault: str) -> None:
        """Remember why an answer was not taken in."""
        self.fault = fault


def quoted(words: str) -> str:
    """Return a server's own words for within a sentence."""
    said = untrusted.defused(one_line(" ".join(words[: 2 * LONGEST].split())[:LONGEST]))
    return f'"{said}"'


def reason(error: BaseException, heard: Heard, config: ServerConfig) -> str:
    """Return what happened, as the end of a sentence that begins with the server's name."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    name = type(error).__name__
    if name in _KINDS:
        return _KINDS[name]
    if heard.fault:
        return heard.fault
    if "Connect" in name:
        return "could not be reached"
    if heard.last_words is not None:
        return f"ended, with the last words {quoted(heard.last_words)}" if heard.last_words else "ended"
    words = _words(error)
    if heard.status >= 300 and (heard.status != 400 or not words):
        return _of_status(heard, config) + (f", and says {quoted(words)}" if words else "")
    if heard.kind == "text/html":
        return "is not at this address: a page for people (text/html) is"
    return _of_error(error, words)


def _words(error: BaseException) -> str:
    """Return what the server itself says in a JSON-RPC error."""
    said = getattr(getattr(error, "error", None), "message", "")
    return "" if not isinstance(said, str) or said.startswith(_OF_THE_SDK) else said


def _of_status(heard: Heard, config: ServerConfig) -> str:
    status = heard.status
    if status in (401, 403) and config.sign_in is not None and config.sign_in.problem:
        return config.sign_in.problem
    if status < 400:
        to = quoted(heard.location.partition("?")[0])
        return f"redirects to {to} ({status}), which is not followed: use that address if it is the right one"
    if status in _WRONG_WAY:
        return (
            f"does not speak this transport at this address ({status}): its type is {config.type}, "
            f"try {_OTHER_WAY.get(config.type, 'http')}"
        )
    if status >= 500:
        return f"has a fault of its own ({status}): ask who runs it"
    return _STATUSES.get(status, f"refuses the request ({status})")


def _of_error(error: BaseException, words: str) -> str:
    name, code = type(error).__name__, getattr(getattr(error, "error", None), "code", 0)
    if name == "RuntimeError" and "protocol version" in str(error):
        version = str(error).rpartition(": ")[2]
        return f"speaks a version of the protocol that is not known here, {quoted(version)}"
    if code == _CLOSED and words.startswith(("SSE stream", "Connection closed")):
        return "broke off before it had answered"
    if code == _PARSE_ERROR or name in ("ValidationError", "JSONDecodeError"):
        return f"answered something that the protocol does not know: {quoted(_fault(error) or _plain(words))}"
    if words:
        return f"answered with an error, and says {quoted(words)}"
    return "does not speak the protocol"


def _plain(words: str) -> str:
    """Return what is wrong with JSON, of what the SDK says about it."""
    return words.partition("Invalid JSON: ")[2].partition(" [type=")[0] or words


def _fault(error: BaseException) -> str:
    """Return the first fault of a message that is none."""
    faults = getattr(error, "errors", None)
    if not callable(faults):
        return ""
    first = faults()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
