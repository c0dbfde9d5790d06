"""Whatever a file is called by who sends it, its name in the inbox is one harmless word."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.runs.attachments import safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        (".bashrc", "bashrc"),
        ("...", "file"),
        ("", "file"),
        ("a b\n$(rm -rf).txt", "a_b_rm_-rf.txt"),
        ("Übersicht 2027.tar.gz", "Übersicht_2027.tar.gz"),
        ("U\u0308bersicht.txt", "Übersicht.txt"),
        ("हिन्दी रिपोर्ट.pdf", "हिन्दी_रिपोर्ट.pdf"),
        ("รายงานที่.docx", "รายงานที่.docx"),
        ("報告書（最終）.xlsx", "報告書_最終.xlsx"),
        ("تقرير.csv", "تقرير.csv"),
        ("\U00020bb7" * 80 + ".pdf", "\U00020bb7" * 37 + ".pdf"),
        ("x" * 300 + ".pdf", "x" * 60 + ".pdf"),
        ("name." + "y" * 300, "name." + "y" * 12),
    ],
)
def test_names_become_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=300))
def test_a_safe_name_is_one_short_component(name: str) -> None:
    safe = safe_name(name)
    assert all(char in "._-" or unicodedata.category(char)[0] in "LMN" for char in safe)
    assert 1 <= len(safe) <= 75
    assert len(safe.encode()) < 200
    assert not safe.startswith((".", "-"))
    assert ".." not in safe
