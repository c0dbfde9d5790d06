"""Counting what JSON holds before it becomes objects."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared import jsons

TEXTS = st.text(alphabet='a,:[]{}"\\\\é')
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-5, 5) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=40,
)


def parts(value: Any) -> int:
    """Return how many brackets, names and values a JSON text has, less the last value of each bracket."""
    if isinstance(value, dict):
        return 1 + len(value) + max(len(value) - 1, 0) + sum(parts(item) for item in value.values())
    if isinstance(value, list):
        return 1 + max(len(value) - 1, 0) + sum(parts(item) for item in value)
    return 0


@given(VALUES)
def test_only_what_stands_outside_of_texts_counts(value: Any) -> None:
    raw = jsons.dump_bytes(value)
    assert jsons.few(raw, parts(value))
    assert parts(value) == 0 or not jsons.few(raw, parts(value) - 1)


@given(st.integers(0, 40), st.integers(0, 6))
def test_a_text_that_is_cut_anywhere_between_two_looks_is_one(before: int, backslashes: int) -> None:
    size = 128 * 1024 - before
    text = "a" * size + "\\" * backslashes + '"[[[,,,' * 3
    assert jsons.few(jsons.dump_bytes([text, text]), 2)
    assert not jsons.few(jsons.dump_bytes([text, [], text]), 3)
