"""What people see of a model's text, however it is cut into pieces."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from host.agent.text import STEP_GAP, InternalFilter, ShownText, strip_internal
from shared.redact import Redactor

PARTS = st.lists(
    st.sampled_from(
        ["<internal>", "</internal>", "<INTERNAL>", "<", ">", "a", " ", "\n", "<int", "ernal>", "</", "b<"]
    ),
    max_size=14,
)


def shown(pieces: list[str]) -> str:
    kept = InternalFilter()
    return "".join([kept.feed(piece) for piece in pieces]) + kept.flush()


@given(parts=PARTS, cuts=st.lists(st.integers(0, 80), max_size=6))
def test_where_the_text_is_cut_makes_no_difference(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert shown(pieces) == strip_internal(text)


@given(
    before=st.text("ab<> \n", max_size=10),
    inside=st.text("xyz </", max_size=10),
    after=st.text("cd ", max_size=5),
)
def test_what_is_inside_never_shows_and_what_is_outside_always_does(
    before: str, inside: str, after: str
) -> None:
    text = f"{before}<internal>{inside}</internal>{after}"
    assert strip_internal(text) == before + after


@given(text=st.text("abc <>/internal", max_size=40))
def test_text_without_tags_is_left_as_it_is(text: str) -> None:
    if not re.search("</?internal>", text):
        assert strip_internal(text) == text


def test_an_unclosed_part_is_dropped_and_nested_ones_are_counted() -> None:
    assert strip_internal("a<internal>b") == "a"
    assert strip_internal("a<internal>b<internal>c</internal>d</internal>e") == "ae"
    assert strip_internal("a</internal>b") == "ab"


def run(*steps: list[str]) -> tuple[str, str]:
    text = ShownText(Redactor(()))
    pieces: list[str] = []
    for step in steps:
        pieces += [text.feed(delta) for delta in step]
        pieces.append(text.end_step())
    return "".join(pieces), text.text


@given(steps=st.lists(st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=4), max_size=4))
def test_the_pieces_joined_are_the_text(steps: list[list[str]]) -> None:
    pieces, text = run(*steps)
    assert pieces == text


def test_steps_are_kept_apart_and_silent_ones_leave_no_gap() -> None:
    assert run(["one"], [], ["two"])[1] == f"one{STEP_GAP}two"
    assert run(["one\n\n"], ["two"])[1] == "one\n\ntwo"
    assert run([], ["two"])[1] == "two"


def test_a_step_that_begins_anew_is_not_shown_twice() -> None:
    text = ShownText(Redactor(()))
    pieces = [text.feed("one "), text.feed("two")]
    text.restart_step()
    pieces += [text.feed("on"), text.feed("e two th"), text.feed("ree"), text.end_step()]
    assert "".join(pieces) == text.text == "one two three"


def test_a_step_that_begins_anew_with_other_words_is_shown_apart() -> None:
    text = ShownText(Redactor(()))
    pieces = [text.feed("one two")]
    text.restart_step()
    pieces += [text.feed("one"), text.feed(" three"), text.end_step()]
    assert "".join(pieces) == text.text == f"one two{STEP_GAP}one three"


def test_a_step_that_breaks_off_twice_is_still_shown_once() -> None:
    text = ShownText(Redactor(()))
    pieces = [text.feed("abcdef")]
    text.restart_step()
    pieces += [text.feed("abc")]
    text.restart_step()
    pieces += [text.feed("abcdefgh"), text.end_step()]
    assert "".join(pieces) == "abcdefgh"


def test_a_secret_split_over_deltas_and_internal_parts_is_never_shown() -> None:
    text = ShownText(Redactor(["sk-canary-123456"]))
    deltas = ["it is sk-can", "<internal>x</internal>", "ary-12", "3456", " and more"]
    pieces = [text.feed(delta) for delta in deltas] + [text.end_step()]
    assert "".join(pieces) == text.text == "it is [redacted] and more"
