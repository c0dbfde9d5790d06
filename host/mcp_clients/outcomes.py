"""What comes of a call of a server, as people and the model may read it: results, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from host.mcp_clients.json_rpc import cut
from host.mcp_clients.server_config import ServerConfig
from host.ports import Image, ToolResult
from shared import jsons, untrusted
from shared.untrusted import one_line

if TYPE_CHECKING:
    import mcp_types as types

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
    ``end``: why none is any more; ``last_words``: a program's; ``noise``: its newest line that is no message,
    for the end of a sentence; ``tools``: as they were listed; ``changed``: the list is another one now.
    """

    status: int = 0
    kind: str = ""
    location: str = ""
    fault: str = ""
    end: str = ""
    last_words: str | None = None
    noise: str = ""
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
    if heard.fault or heard.end:
        return heard.fault or heard.end
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


LONGEST_FIELD: Final = 1024
"""Characters of one thing that is said of a resource."""
MOST_LEAVES: Final = 1000
"""Values that are looked for in a text; more say more."""
_A_WORD: Final = re.compile(r"[\w.+-]+")


def tool_result(result: types.CallToolResult) -> ToolResult:
    """Return text up to the limit, images unlooked at, and structured content that says more."""
    texts = [text for block in result.content if (text := _text(block)) is not None]
    text = "\n".join(texts)
    shown, structured = cut(text), result.structured_content
    if structured is not None and shown == text and jsons.fits(structured) and _says_more(structured, text):
        shown = cut("\n".join([*texts, jsons.dumps(structured)]))
    images = tuple(Image(block.data, block.mime_type) for block in result.content if block.type == "image")
    return ToolResult(shown, is_error=result.is_error, images=images)


def resource_result(result: types.ReadResourceResult) -> ToolResult:
    """Return a resource's text up to the limit, and its images."""
    texts, images = [], []
    for part in result.contents:
        text, kind = getattr(part, "text", None), part.mime_type or ""
        if text is None and kind.startswith("image/"):
            images.append(Image(getattr(part, "blob", ""), kind))
        else:
            texts.append(_binary(part) if text is None else text)
    return ToolResult(cut("\n".join(texts)), images=tuple(images))


def _text(block: types.ContentBlock) -> str | None:
    if block.type == "text":
        return block.text
    if block.type == "image":
        return None
    if block.type == "audio":
        return f"[audio of type {block.mime_type[:64]} that can't be played]"
    if block.type == "resource_link":
        return _link(block)
    text: str | None = getattr(block.resource, "text", None)
    return _binary(block.resource) if text is None else text


def _link(block: types.ResourceLink) -> str:
    size = None if block.size is None else f"{block.size} bytes"
    said = [block.uri, block.name, block.title, block.description, block.mime_type, size]
    return f"[resource {'; '.join(str(part)[:LONGEST_FIELD] for part in said if part)}]"


def _binary(resource: Any) -> str:
    kind = resource.mime_type or "unknown type"
    return f"[binary resource {resource.uri[:LONGEST_FIELD]} of {kind[:64]}]"


def _says_more(structured: Any, text: str) -> bool:
    """Return whether there is a value in it that the text does not have as a word, or as words."""
    words = frozenset(_A_WORD.findall(text))
    for number, leaf in enumerate(_leaves(structured)):
        said = leaf in words or (
            _A_WORD.fullmatch(leaf) is None and (leaf in text or jsons.dumps(leaf)[1:-1] in text)
        )
        if number >= MOST_LEAVES or not said:
            return True
    return not text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None:
        yield value if isinstance(value, str) else jsons.dumps(value)
