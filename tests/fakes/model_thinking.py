"""Thinking whose signature is bound to what stood before it, as newer models have it.

Rule (https://platform.claude.com/docs/en/build-with-claude/preserved-thinking): system prompt, tools and the
messages before a thinking block have to be what they were when it was made, or the request is refused. Only
models with ``bound`` in their id do this here.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from shared.jsons import dump_bytes

UNBOUND: Final = "signed-by-the-fake"
REFUSAL: Final = (
    "messages.{at}.content.0: Invalid `signature` in `thinking` block. The block is bound to a different "
    "conversation."
)


def signature(request: dict[str, Any]) -> str:
    """Return the signature of thinking that answers the request."""
    return _signed(request, request["messages"]) if "bound" in request["model"] else UNBOUND


def refusal(request: dict[str, Any]) -> str | None:
    """Return the sentence for a request that sends thinking back in another place than it was made."""
    if "bound" not in request["model"]:
        return None
    messages = request["messages"]
    for at, message in enumerate(messages):
        for block in message["content"] if isinstance(message["content"], list) else ():
            if block["type"] == "thinking" and block["signature"] != _signed(request, messages[:at]):
                return REFUSAL.format(at=at)
    return None


def _signed(request: dict[str, Any], messages: list[Any]) -> str:
    prefix = [request.get("system"), request.get("tools"), messages]
    return blake2b(dump_bytes(_unmarked(prefix)), digest_size=16).hexdigest()


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _unmarked(item) for name, item in value.items() if name != "cache_control"}
    return [_unmarked(item) for item in value] if isinstance(value, list) else value
