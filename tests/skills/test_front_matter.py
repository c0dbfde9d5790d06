"""The head of a SKILL.md: what counts, what is refused with a sentence, and that nothing else can happen."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.skills.catalogue import LONGEST, BadSkill, Head, body, parsed


def skill(**fields: str) -> str:
    lines = [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---", "", "# Do this", ""])


def test_a_name_and_a_description_are_enough() -> None:
    text = skill(name="pdf-forms", description="Fill forms. Use it for PDF files.")
    assert parsed("pdf-forms", text) == Head("pdf-forms", "Fill forms. Use it for PDF files.")
    assert body(text) == "# Do this\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_keys_long_texts_and_other_line_ends_are_fine(newline: str) -> None:
    text = newline.join(
        [
            "\ufeff---",
            "name: a",
            "license: MIT",
            "allowed-tools: Bash(git:*) Read",
            "metadata: {author: me, version: 1.0}",
            "description: >-",
            "  two",
            "  lines",
            "---",
            "body",
        ]
    )
    assert parsed("a", text).description == "two lines"
    assert body(text) == "body"


def test_a_description_is_one_line_without_characters_that_steer() -> None:
    text = 'name: a\ndescription: "one\\n\\u202Etwo\\u0007  three"'
    assert parsed("a", f"---\n{text}\n---\n").description == "one two three"


@pytest.mark.parametrize(
    ("folder", "text", "said"),
    [
        ("a", "# no front matter", "is missing"),
        ("a", "---\nname: a\n", "isn't closed"),
        ("a", skill(description="x"), "no name"),
        ("a", skill(name="[7]", description="x"), "no name"),
        ("a", skill(name="a"), "no description"),
        ("a", skill(name="a", description="# x"), "no description"),
        ("a", skill(name="a", description="''"), "no description"),
        ("a", skill(name="b", description="x"), "the name of its folder"),
        ("A", skill(name="A", description="x"), "its name must be"),
        ("a--b", skill(name="a--b", description="x"), "its name must be"),
        ("-a", skill(name="-a", description="x"), "its name must be"),
        ("a" * 65, skill(name="a" * 65, description="x"), "its name must be"),
        ("..", skill(name="..", description="x"), "its name must be"),
        ("a", skill(name="a", description="x" * 1025), "longer than 1024"),
        ("a", skill(name="a", description="x", rest="y" * LONGEST), "longer than"),
        ("a", skill(name="a", description='"a: b" c'), "not YAML (line 3)"),
        ("a", skill(name="a", description="x", name2="!!python/object/apply:os.system [id]"), "not YAML"),
        ("a", "---\nname: a\nname: b\n---\n", "not YAML"),
        ("a", "---\n- name\n---\n", "not a list of keys"),
        ("a", "---\na: &x [1]\nb: *x\n---\n", "anchors or aliases"),
        ("a", "---\na: " + "[" * 33 + "]" * 33 + "\n---\n", "more than 32 brackets open"),
        ("a", "---\na: " + "[{" * 2000 + "\n---\n", "more than 32 brackets open"),
        ("a", "---\na: " + "[" * 32 + "\n---\n", "not YAML"),
        ("a", "---\na: [" + "b," * 3000 + "]\n---\n", "more than 1000 parts"),
        ("a", "---\na:\n" + "- " * 3000 + "\n---\n", "more than 1000 parts"),
        ("a", "---\n" + "? " * 3000 + "\n---\n", "more than 1000 parts"),
        ("a", "---\na: [" + "9" * 5000 + "]\n---\n", "can't hold"),
        ("a", "---\na: [2024-99-99]\n---\n", "can't hold"),
    ],
)
def test_what_is_no_skill_is_refused_with_a_sentence(folder: str, text: str, said: str) -> None:
    with pytest.raises(BadSkill, match=re.escape(said)):
        parsed(folder, text)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Use when: a price is asked for", "Use when: a price is asked for"),
        ("a: b: c", "a: b: c"),
        ("Use this: it is\n  short, and: good", "Use this: it is short, and: good"),
        ("[Beta] Makes: tables", "[Beta] Makes: tables"),
        ("`pdftotext` and more", "`pdftotext` and more"),
        ("@mention: answers", "@mention: answers"),
        ('Say "yes": it \\ works', 'Say "yes": it \\ works'),
        ("価格: 必要なとき", "価格: 必要なとき"),
        ("Answers in #sales, or on issue #12", "Answers in #sales, or on issue #12"),
        ("2048", "2048"),
        ("yes", "yes"),
        ("[1]", "[1]"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_text_without_quotes_is_read_as_it_was_meant(written: str, meant: str, newline: str) -> None:
    lines = [
        "---",
        "license: MIT: free",
        "name: a",
        f"description: {written}",
        "metadata:",
        "  by: me",
        "---",
        "do",
    ]
    text = "\n".join(lines).replace("\n", newline)
    assert parsed("a", text) == Head("a", meant)
    assert body(text) == "do"


@pytest.mark.parametrize("name", ["2048", "1e3", "no", "null", "2026-12-01"])
def test_a_name_may_look_like_another_kind_of_value(name: str) -> None:
    text = skill(name=f"{name} # as the folder", version="2024-99-99", description="Answers in #sales")
    assert parsed(name, text) == Head(name, "Answers in #sales")


def test_names_may_have_64_characters_and_descriptions_1024() -> None:
    text = skill(name="a" * 64, description="x" * 1024)
    assert parsed("a" * 64, text) == Head("a" * 64, "x" * 1024)


@given(head=st.text(max_size=300))
def test_whatever_stands_there_is_a_head_or_a_sentence(head: str) -> None:
    try:
        found = parsed("a", f"---\n{head}\n---\n")
    except BadSkill as bad:
        said = str(bad)
    else:
        assert found.name == "a"
        said = found.description
    assert said.isprintable()
