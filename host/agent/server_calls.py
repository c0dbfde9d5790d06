"""Calls that the model's API answers itself: each needs its result in the history before people speak again.

A run that is cut off while the API had only paused (``pause_turn``) leaves a call without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from shared.models import Block

_USE: Final = "server_tool_use"
_RESULT: Final = "_tool_result"
_UNAVAILABLE: Final = "unavailable"
"""An error code of each of these tools; the API takes it back like a result it gave."""


def open_server_calls(blocks: Sequence[Block], before: Mapping[str, str]) -> dict[str, str]:
    """Return the calls (id to name) that have no result after these blocks, and had none ``before``."""
    found = dict(before)
    for block in blocks:
        if block["type"] == _USE:
            found[block["id"]] = block["name"]
        elif block["type"].endswith(_RESULT):
            found.pop(block["tool_use_id"], None)
    return found


def lost_server_results(calls: Mapping[str, str]) -> list[Block]:
    """Return an error result for each call."""
    return [
        {
            "type": f"{name}{_RESULT}",
            "tool_use_id": call,
            "content": {"type": f"{name}{_RESULT}_error", "error_code": _UNAVAILABLE},
        }
        for call, name in calls.items()
    ]
