"""What docs/openai.md promises, against the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from host.http.openai.requests import ChatCompletionRequest
from host.http.openai.threads import NAMING_HEADERS
from tests.running import TOKEN, HostProcess

TEXT = (Path(__file__).parent.parent.parent / "docs" / "openai.md").read_text()


def test_every_field_and_header_that_has_an_effect_is_named() -> None:
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.M)
    named = {name for row in rows for name in re.findall(r"`([\w.-]+)`", row)}
    assert {field.partition(".")[0] for field in named} >= set(ChatCompletionRequest.model_fields)
    assert named >= set(NAMING_HEADERS)


def test_the_example_works(host: HostProcess, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.findall(r"```python\n(.*?)```", TEXT, re.S)[0]
    exec(example.replace("http://localhost:9000", host.url), {"TOKEN": TOKEN})
    assert capsys.readouterr().out == "echo: what is in my workspace?\n"
