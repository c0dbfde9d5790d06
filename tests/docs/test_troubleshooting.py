"""Every sentence that docs/troubleshooting.md quotes is one that the program says."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT, page_text

SYMPTOMS = [row.split(" | ")[0] for row in re.findall(r"^\| (.*) \|$", page_text("troubleshooting.md"), re.M)]
QUOTED = sorted(
    {
        part.strip(" .;:'")
        for symptom in SYMPTOMS
        for quoted in re.findall(r"`([^`]+)`", symptom)
        for part in re.split("…", quoted)
        if len(part.split()) >= 3
    }
)


@pytest.fixture(scope="module")
def said() -> str:
    """All that the program says, with the words of a sentence that goes over lines joined."""
    files = [*ROOT.glob("Makefile"), *(ROOT / "host").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    text = "".join(file.read_text() for file in files)
    return re.sub(r"\s+", " ", re.sub(r"\"\s+f?\"", "", text))


@pytest.mark.parametrize("sentence", QUOTED)
def test_a_quoted_sentence_is_said(said: str, sentence: str) -> None:
    assert sentence in said
