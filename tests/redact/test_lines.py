"""Text from outside never makes a line of its own."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from host.cli.terminal import safe, set_in, shown
from shared.untrusted import one_line
from tests.redact.test_logging import logged

ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def test_no_line_end_makes_a_line_in_the_console_log_or_the_command_line() -> None:
    forged = [f"a{end}12:00:00 ERROR forged" for end in ENDS]
    for text in forged:
        for made in (one_line(text), shown(text)):
            assert len(made.splitlines()) == 1
            assert "forged" in made
    code = f"for text in {forged!r}: log.warning(text, extra={{'tool': text}})"
    for log_format in ("console", "json"):
        lines = logged(code, log_format).splitlines()
        assert [line.count("forged") for line in lines] == [2] * len(ENDS)


def test_an_exception_s_text_stands_below_its_record_and_set_in() -> None:
    code = """
try:
    raise ValueError('a\\n12:00:00 ERROR forged')
except ValueError:
    log.exception('failed')
"""
    first, *below = logged(code, "console").splitlines()
    assert first.endswith("failed")
    assert below
    assert all(line.startswith("    ") for line in below)


def test_a_text_of_several_lines_is_set_in() -> None:
    assert set_in("a\n[Anna] b\x1b[2J") == "a\n  [Anna] b[2J"
    assert safe("a\tb\nc\u202e\u2028d") == "a\tb\ncd"


@given(st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_on_one_line_stays_the_same_json(value: object) -> None:
    line = one_line(json.dumps(value, ensure_ascii=False))
    assert json.loads(line) == value
    assert len(line.splitlines()) == 1
