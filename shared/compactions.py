"""What stands between a conversation's stored messages and what the model is sent of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shared.values import Usage

CompactionKind = Literal["cut", "summary", "dropped"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """How a conversation's beginning is sent from now on; the messages themselves stay as they are.

    Messages up to ``through_seq`` (0: none) are replaced by ``text``; ``first_seq`` is the first of those
    that this compaction replaced. Of the rest, tool results and images up to ``cut_through_seq`` are cut to
    ``cut_chars`` characters, and thinking up to ``thinking_through_seq`` is left out: its signature no longer
    fits what stands before it. ``left_out`` are kinds of blocks that the model's API refused
    (``host.models.mending``), and up to which message a line of text stands for them.

    ``kind``: ``cut`` replaced no message, ``summary`` has a summary that
    ``model`` made for ``usage``, ``dropped`` only a note, because no summary could be made. ``number`` counts
    the conversation's compactions from 1; ``archived``: what was replaced is in the workspace's archive.
    Of the replaced messages the one at ``message_seq`` (0: none) still stands, with at most ``message_chars``
    characters of its text: the rest of its turn is sent.
    """

    kind: CompactionKind
    through_seq: int = 0
    first_seq: int = 0
    text: str = ""
    cut_through_seq: int = 0
    cut_chars: int = 0
    thinking_through_seq: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    number: int = 0
    created_at: int = 0
    archived: bool = False
    message_seq: int = 0
    message_chars: int = 0
