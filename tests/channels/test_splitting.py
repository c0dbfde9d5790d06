"""Long texts become messages that are each whole Markdown, and lose nothing on the way."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.channels.splitting import LEAST, split, units
from tests.examples import examples

MARKDOWN = st.lists(
    st.sampled_from(
        [
            "```python",
            "```",
            "~~~~",
            "~~~",
            "",
            "# Title",
            "- an item with **bold words** and `code`",
            "word " * 40,
            "x" * 300,
            "\U0001f469\u200d\U0001f4bb" * 60,
            "e\u0301" * 200,
            "    return 1",
        ]
    )
    | st.text(max_size=60),
    max_size=25,
).map("\n".join)


def test_a_short_text_stays_as_it_is() -> None:
    assert split("hello\n\nthere", 4096) == ["hello\n\nthere"]
    assert split("", 4096) == []
    assert split(" \n \n", 4096) == []


def test_parts_end_between_paragraphs() -> None:
    paragraphs = [f"{number} " + "word " * 30 for number in range(6)]
    parts = split("\n\n".join(paragraphs), 400)
    assert parts == ["\n\n".join(paragraphs[at : at + 2]) for at in (0, 2, 4)]


def test_a_code_block_is_closed_and_opened_again_with_its_language() -> None:
    code = "\n".join(f"line_{number} = {number}" for number in range(60))
    parts = split(f"Look:\n```python\n{code}\n```\nDone.", 300)
    assert len(parts) > 2
    for part in parts:
        assert part.count("```") % 2 == 0, part
    assert all(part.startswith("```python\n") for part in parts[1:])
    found = [line for part in parts for line in part.split("\n") if line.startswith("line_")]
    assert found == code.split("\n")


def test_a_code_block_that_fits_into_the_next_message_moves_there_whole() -> None:
    before = "word " * 40
    code = "```\n" + "\n".join(f"row {number}" for number in range(12)) + "\n```"
    assert split(f"{before.strip()}\n\n{code}", 260) == [before.strip(), code]


@pytest.mark.parametrize("before", ["", "   ", "1. ", "  - ", "> "])
def test_code_in_lists_and_quotes_keeps_its_indentation_when_it_is_opened_again(before: str) -> None:
    room = "".join(char if char in " >" else " " for char in before)
    code = [f"{'    ' * (number % 3)}line {number}" for number in range(40)]
    text = "\n".join([f"{before}```py", *(room + line for line in code), f"{room}```", "", "Done."])
    first, *others = split(text, 200)
    assert first.startswith(f"{before}```py\n{room}line 0\n")
    assert first.endswith(f"\n{room}```")
    shown = [line.removeprefix(room) for line in first.split("\n")[1:-1]]
    for part in others:
        assert part.startswith("```py\n")
        shown += part.split("\n```")[0].split("\n")[1:]
    assert shown == code
    assert others[-1].endswith("\n```\n\nDone.")


def test_emphasis_code_and_links_are_not_torn() -> None:
    sentence = "see [the long page](https://example.org/a/b/c) and **mind the gap** or `run this now` then "
    for longest in range(LEAST, 300, 7):
        for part in split(sentence * 12, longest):
            assert part.count("**") % 2 == 0, part
            assert part.count("`") % 2 == 0, part
            assert part.count("[") == part.count("](") == part.count(")"), part


@pytest.mark.parametrize("text", ["\U0001f600" * 5000, "a" * 5000, "\U0001f469\u200d\U0001f4bb" * 900])
def test_a_text_without_a_place_to_break_is_cut_between_characters(text: str) -> None:
    parts = split(text, 4096)
    assert "".join(parts) == text
    assert all(units(part) <= 4096 for part in parts)
    for part in parts:
        part.encode("utf-16")
        assert not part.startswith("\u200d")
        assert not part.endswith("\u200d")


@settings(max_examples=examples(300))
@given(MARKDOWN, st.integers(LEAST, 700))
def test_whatever_the_text_every_part_fits_and_no_word_is_lost(text: str, longest: int) -> None:
    parts = split(text, longest)
    assert all(units(part) <= longest for part in parts)
    assert all(part.strip() for part in parts)
    if len(parts) > 1 and not re.search(r"^ {0,3}(```|~~~)", text, re.M):
        assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", text)


@settings(max_examples=examples(300))
@given(
    st.lists(st.sampled_from(["", "```", "```python", "~~~", "text", "text", "text " * 30]), max_size=60),
    st.integers(LEAST, 400),
)
def test_no_line_is_lost_wherever_code_begins_and_ends(kinds: list[str], longest: int) -> None:
    text = "\n".join(
        f"{kind} word{number}." if kind.startswith("text") else kind for number, kind in enumerate(kinds)
    )
    parts = split(text, longest)
    assert all(units(part) <= longest for part in parts)
    assert words(parts) == words([text])


def words(texts: list[str]) -> str:
    """Everything but white space and fences; a long line of code may be torn anywhere."""
    lines = [line for text in texts for line in text.split("\n") if not line.startswith(("```", "~~~"))]
    return re.sub(r"\s", "", "".join(lines))


@settings(max_examples=examples(200))
@given(st.lists(st.text(st.characters(exclude_characters="`~\n\r"), max_size=90), max_size=60))
def test_every_line_of_code_arrives_inside_a_fence(lines: list[str]) -> None:
    marked = [f"#{number} {line}" for number, line in enumerate(lines)]
    text = "\n".join(["```sh", *marked, "```"])
    inside = False
    found = []
    for part in split(text, 200):
        for line in part.split("\n"):
            if line.startswith("```"):
                inside = not inside
            else:
                assert inside, part
                found.append(line)
        assert not inside, part
    assert "\n".join(found).split("#")[0] == ""
    assert "".join(found) == "".join(marked)
