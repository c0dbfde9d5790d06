from __future__ import annotations

import base64
import json
import re
import textwrap
from time import perf_counter
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redact import MARK, Redactor, StreamRedactor
from tests.settings.patience import patient

CANARY = "sk-canary/0123+45=67 89"

SECRETS = st.lists(st.text(alphabet="ab", min_size=8, max_size=12), min_size=1, max_size=3)


def encoded_forms() -> dict[str, str]:
    raw = CANARY.encode()
    return {
        "raw": CANARY,
        "base64": base64.b64encode(raw).decode(),
        "base64 in a longer text": base64.b64encode(b"user:" + raw + b"@host").decode(),
        "base64 in a longer text, other alignment": base64.b64encode(b"user1:" + raw + b"!").decode(),
        "URL-safe base64": base64.urlsafe_b64encode(b"??>>" + raw).decode(),
        "hex": raw.hex(),
        "upper hex": raw.hex().upper(),
        "URL": quote(CANARY, safe=""),
        "lower URL": quote(CANARY, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"),
        "JSON": json.dumps(CANARY),
        "wrapped base64": "\n".join(textwrap.wrap(base64.b64encode(b"x" * 50 + raw).decode(), 76)),
        "base64 in short lines": "\r\n  ".join(textwrap.wrap(base64.b64encode(raw).decode(), 5)),
        "spaced hex": raw.hex(" "),
        "upper hex with colons": raw.hex(":").upper(),
        "hex in words and lines": "\n".join(textwrap.wrap(raw.hex(" ", 2), 15)),
        "hex with dashes": raw.hex("-", 4),
    }


@pytest.mark.parametrize("form", encoded_forms())
def test_a_secret_is_taken_out_in_every_form(form: str) -> None:
    text = f"before {encoded_forms()[form]} after"
    clean = Redactor([CANARY]).text(text)
    assert MARK in clean
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    kept = clean.replace("before ", "").replace(" after", "").replace(MARK, "")
    kept = re.sub(r"[\s:-]", "", kept).lower()
    assert not any(part in kept for part in ("canary", "0123", CANARY.encode().hex()[:8]))


def test_gaps_are_only_looked_through_for_digits() -> None:
    text = f"{CANARY[:9]} {CANARY[9:]} and, much: later - something else that is long enough to be looked at"
    assert Redactor([CANARY]).text(text) is text


def test_a_secret_with_quotes_and_newlines_is_taken_out_of_json() -> None:
    secret = 'line "one"\nline two é'
    for text in (json.dumps({"k": secret}), json.dumps({"k": secret}, ensure_ascii=False)):
        assert json.loads(Redactor([secret]).text(text)) == {"k": MARK}


def test_text_without_secrets_is_returned_as_it_is() -> None:
    text = "nothing to see"
    assert Redactor([CANARY]).text(text) is text
    assert Redactor([]).text(text) is text


def test_short_values_are_left_alone() -> None:
    assert Redactor(["main", "1234567"]).text("main 1234567") == "main 1234567"


def test_overlapping_secrets_leave_no_rest() -> None:
    redactor = Redactor(["abcdefgh", "abcdefghijkl", "ghijklmnop"])
    assert redactor.text("<abcdefghijklmnop>") == f"<{MARK}>"


def test_values_are_redacted_to_their_depth() -> None:
    value = {"a": [CANARY, 1, None, {CANARY: True}]}
    assert Redactor([CANARY]).value(value) == {"a": [MARK, 1, None, {MARK: True}]}


def test_pieces_at_the_ends_of_a_record_are_taken_out() -> None:
    redactor = Redactor([CANARY])
    first, second = f"token {CANARY[:11]}", f"{CANARY[11:]} end"
    assert redactor.line(first) == f"token {MARK}"
    assert redactor.line(second) == f"{MARK} end"
    assert redactor.line(CANARY) == MARK


@patient
@given(SECRETS, st.lists(st.text(alphabet="abc", max_size=7), max_size=12))
def test_a_stream_is_redacted_as_its_whole_text_is(secrets: list[str], pieces: list[str]) -> None:
    redactor = Redactor(secrets)
    stream = StreamRedactor(redactor)
    out = "".join([*(stream.feed(piece) for piece in pieces), stream.flush()])
    assert out == redactor.text("".join(pieces))


@patient
@given(SECRETS, st.text(alphabet="abc", max_size=60))
def test_no_secret_is_left(secrets: list[str], text: str) -> None:
    clean = Redactor(secrets).text(text)
    assert not any(secret in clean for secret in secrets)


@patient
@given(st.text(alphabet="ab", min_size=8, max_size=12), st.lists(st.text(alphabet="abc", max_size=7)))
def test_a_stream_holds_back_less_than_a_secret(secret: str, pieces: list[str]) -> None:
    redactor = Redactor([secret])
    stream = StreamRedactor(redactor)
    for sofar in range(len(pieces)):
        stream.feed(pieces[sofar])
        assert len(stream.held) < redactor.longest


def test_a_stream_gives_at_once_what_cannot_be_a_secret() -> None:
    stream = StreamRedactor(Redactor([CANARY]))
    assert stream.feed("Hello ") == "Hello "
    assert stream.feed("wor") == "wor"
    assert stream.feed("ld " + CANARY[:5]) == "ld "
    assert stream.feed(CANARY[5:]) == MARK
    assert stream.flush() == ""


def test_redaction_costs_less_than_20_microseconds_a_kib() -> None:
    redactor = Redactor(f"sk-ant-api03-{number:040d}" for number in range(10))
    text = "The quick brown fox, 12345 and so on.\n" * 1700
    best = min(_seconds(redactor, text) for _ in range(20))
    assert best / (len(text) / 1024) < 20e-6


def _seconds(redactor: Redactor, text: str) -> float:
    begin = perf_counter()
    redactor.text(text)
    return perf_counter() - begin
