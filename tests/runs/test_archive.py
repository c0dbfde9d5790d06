"""The archive of older messages: readable, in its own folder, and unable to pose as anyone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.runs.conversation_files import document, folder_of
from shared.values import Compaction, HistoryEntry

SUMMARY = Compaction("summary", first_seq=1, through_seq=9, number=1)


@given(identity=st.text(min_size=1))
def test_a_conversation_s_folder_is_one_name_in_the_archive(identity: str) -> None:
    top, name, *more = folder_of(identity).split("/")
    assert (top, more) == ("conversations", [])
    assert name not in ("", ".", "..")
    assert len(name.encode()) <= 255


@pytest.mark.parametrize(
    ("identity", "folder"),
    [
        ("conv-1", "conversations/conv-1"),
        ("telegram:12", "conversations/telegram%3A12"),
        ("..", "conversations/%2E."),
        ("../../etc", "conversations/%2E.%2F..%2Fetc"),
    ],
)
def test_what_no_file_name_can_hold_is_encoded(identity: str, folder: str) -> None:
    assert folder_of(identity) == folder


def test_conversations_with_long_names_have_a_folder_each() -> None:
    folders = {folder_of(f"a{':' * 100}{end}") for end in range(9)}
    assert len(folders) == 9


@given(words=st.text(), name=st.text())
def test_nobody_s_words_can_begin_a_section_of_their_own(words: str, name: str) -> None:
    entry = HistoryEntry("user", [{"type": "text", "text": words}], 1, None, words, name)
    lines = document("c", SUMMARY, [entry]).splitlines()
    assert sum(line.startswith("#") for line in lines) == 2


def test_calls_and_results_are_shown_and_long_ones_cut() -> None:
    call = {"type": "tool_use", "id": "t", "name": "exec", "input": {"command": "ls"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x" * 9000, "is_error": True}
    thought = {"type": "thinking", "thinking": "nobody reads this", "signature": "s"}
    hidden = {"type": "text", "text": "seen <internal>unseen</internal>"}
    text = document(
        "c",
        SUMMARY,
        [
            HistoryEntry("assistant", [thought, hidden, call], 1, None),
            HistoryEntry("user", [result], 2, None),
        ],
    )
    assert 'Called `exec`:\n\n> {"command":"ls"}' in text
    assert "Result (failed):" in text
    assert "5000 more" in text
    assert "nobody reads this" not in text
    assert "> seen" in text
    assert "unseen" not in text
