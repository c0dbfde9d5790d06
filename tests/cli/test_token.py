"""``picoclaw token`` against a real host: a token is seen once, listed without its text, and ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import picoclaw
from tests.running import TOKEN, HostProcess, running_host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host:
        yield host


def token(host: HostProcess, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return picoclaw(home, "token", *arguments, API_TOKEN=TOKEN, PICOCLAW_URL=host.url)


def listed(host: HostProcess, home: Path) -> list[dict[str, object]]:
    tokens: list[dict[str, object]] = json.loads(token(host, home, "list", "--json").stdout)
    return tokens


def test_a_token_is_made_listed_and_revoked(host: HostProcess, tmp_path: Path) -> None:
    made = token(host, tmp_path, "create", "--conversation", "laptop", "--expires", "12h")
    text = made.stdout.strip()
    assert text.startswith("pico_")
    assert len(text) > 40
    (shown,) = listed(host, tmp_path)
    assert (shown["conversation_id"], shown["main"]) == ("laptop", False)
    for output in (json.dumps(shown), token(host, tmp_path, "list").stdout, host.log_text):
        assert text not in output
    assert "laptop" in token(host, tmp_path, "list").stdout
    ended = token(host, tmp_path, "revoke", str(shown["id"]))
    assert ended.returncode == 0
    gone = token(host, tmp_path, "revoke", str(shown["id"]))
    assert gone.returncode == 1
    assert "token not found" in gone.stderr
    assert listed(host, tmp_path) == []


def test_only_a_digest_is_on_the_volume(host: HostProcess, tmp_path: Path) -> None:
    text = token(host, tmp_path, "create", "--conversation", "digest").stdout.strip()
    files = [path for path in host.root.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if text.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("span", ["90", "d", "-1d", "1w", "٣d", "9999999d", ""])
def test_a_span_that_is_none_is_refused(host: HostProcess, tmp_path: Path, span: str) -> None:
    refused = token(host, tmp_path, "create", "--conversation", "x", "--expires", span)
    assert refused.returncode == 2
    assert "90d" in refused.stderr


def test_a_wrong_conversation_id_is_told_in_a_sentence(host: HostProcess, tmp_path: Path) -> None:
    refused = token(host, tmp_path, "create", "--conversation", "-x y")
    assert refused.returncode == 1
    assert "conversation_id" in refused.stderr
