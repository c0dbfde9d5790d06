"""``picoclaw mcp``: servers are added, signed in at, listed and removed in the words that people know."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest

from tests.cli.running import environment, picoclaw, process
from tests.mcp.authorization import Grants, guarded_server
from tests.running import TOKEN, new_host


def servers_of(home: Path) -> dict[str, object]:
    servers: dict[str, object] = json.loads((home / "config.json").read_text())["tools"]["mcp"]["servers"]
    return servers


def test_servers_are_added_and_removed_and_their_secrets_lie_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"version": 3, "heartbeat": {"enabled": false}}')
    web = ("mcp", "add", "--transport", "http", "wiki", "https://wiki.example/mcp")
    added = picoclaw(tmp_path, *web, "--json", "--header", "X-Key: canary-1")
    told = {"name": "wiki", "config": str(tmp_path / "config.json"), "restart": True}
    assert (added.returncode, json.loads(added.stdout)) == (0, told)
    program = ("mcp", "add", "files", "--env", "KEY=canary=2", "--", "npx", "-y", "files", "--env", "x")
    assert picoclaw(tmp_path, *program).returncode == 0
    assert servers_of(tmp_path) == {
        "wiki": {"type": "http", "url": "https://wiki.example/mcp"},
        "files": {"type": "stdio", "command": "npx", "args": ["-y", "files", "--env", "x"]},
    }
    assert json.loads((tmp_path / "config.json").read_text())["heartbeat"] == {"enabled": False}
    secret = tmp_path / ".security.yml"
    assert "canary-1" in secret.read_text()
    assert "canary=2" in secret.read_text()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "already" in picoclaw(tmp_path, *web).stderr
    assert json.loads(picoclaw(tmp_path, "mcp", "remove", "wiki", "--json").stdout) == told
    assert "canary-1" not in secret.read_text()
    assert "canary=2" in secret.read_text()
    assert list(servers_of(tmp_path)) == ["files"]
    assert "There is no server wiki" in picoclaw(tmp_path, "mcp", "remove", "wiki").stderr


def test_a_config_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text('{"version": 3}')
    (tmp_path / "config.json").symlink_to("kept.json")
    web = ("mcp", "add", "--transport", "http", "wiki", "https://${WIKI}:${PORT}/mcp")
    assert picoclaw(tmp_path, *web).returncode == 0
    assert (tmp_path / "config.json").readlink() == Path("kept.json")
    assert list(servers_of(tmp_path)) == ["wiki"]


def test_a_config_with_a_byte_order_mark_is_changed_as_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"version": 3}')
    assert picoclaw(tmp_path, "mcp", "add", "files", "--", "npx").returncode == 0
    assert list(servers_of(tmp_path)) == ["files"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_host_of_another_user_can_read_what_root_changed(tmp_path: Path) -> None:
    config, secret = tmp_path / "config.json", tmp_path / ".security.yml"
    config.write_text('{"version": 3}')
    config.chmod(0o640)
    os.chown(config, 0, 4711)
    os.chown(tmp_path, 4711, 4711)
    assert picoclaw(tmp_path, "mcp", "add", "files", "-e", "KEY=x", "--", "npx").returncode == 0
    assert [(each.st_uid, each.st_gid, each.st_mode & 0o777) for each in (config.stat(), secret.stat())] == [
        (0, 4711, 0o640),
        (4711, 4711, 0o600),
    ]


def test_a_port_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = picoclaw(tmp_path, "mcp", "login", "wiki", "--callback-port", "65536")
    assert (refused.returncode, "--callback-port" in refused.stderr) == (2, True)


def test_a_sign_in_that_no_host_can_forget_is_told(tmp_path: Path) -> None:
    nowhere = {"PICOCLAW_URL": "http://127.0.0.1:1"}
    picoclaw(tmp_path, "mcp", "add", "--transport", "http", "wiki", "https://wiki.example/mcp")
    picoclaw(tmp_path, "mcp", "add", "files", "--", "npx")
    removed = picoclaw(tmp_path, "mcp", "remove", "wiki", "--json", **nowhere)
    assert (removed.returncode, json.loads(removed.stdout)["name"]) == (0, "wiki")
    assert "A sign-in at wiki, if there is one, stays in the store" in removed.stderr
    assert picoclaw(tmp_path, "mcp", "remove", "files", **nowhere).stderr == ""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("wiki", "https://wiki.example/mcp"), "--transport http"),
        (("--client-id", "me", "files", "--", "x"), "--client-id needs --transport http"),
        (("-t", "http", "wiki", "wiki.example"), "begins with http"),
        (("picoclaw", "x"), "this name is the built-in server's"),
        (("Ä", "x"), "a name takes"),
        (("-t", "http", "wiki", "https://wiki.example/a b"), "must be an http or https address"),
        (("-t", "http", "wiki", "https://me:secret@wiki.example"), "must not contain credentials"),
        (("-t", "http", "-H", "Bad Name: x", "wiki", "https://wiki.example"), "is not a header"),
        (("-t", "http", "-e", "A=b", "wiki", "https://wiki.example"), "env: is not a field of a server"),
        (("-H", "A: b", "files", "--", "x"), "headers: is not a field of a server"),
        (("files", "--", ""), "command:"),
        (("-t", "http", "-H", "no", "wiki", "https://wiki.example/mcp"), "--header takes"),
        (("-e", "no", "files", "--", "x"), "--env takes"),
    ],
)
def test_what_cannot_be_added_is_a_sentence_and_changes_nothing(
    tmp_path: Path, wrong: tuple[str, ...], said: str
) -> None:
    ended = picoclaw(tmp_path, "mcp", "add", *wrong)
    assert ended.returncode == 2
    assert said in " ".join(ended.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_alone_it_is_the_tool_server(tmp_path: Path) -> None:
    ended = process(tmp_path, "mcp")
    assert ended.returncode == 2
    assert ended.stderr.startswith("picoclaw tool server: PICOCLAW_CONVERSATION_ID is not set")


@pytest.mark.parametrize("way", ["loopback", "pasted", "json"])
async def test_a_person_signs_in_and_the_server_becomes_ready(tmp_path: Path, way: str) -> None:
    grants = Grants()
    async with guarded_server(grants) as url:
        host = new_host(tmp_path / "host", None, {"SEAL_KEY": "k" * 43})
        config = {"version": 3, "tools": {"mcp": {"servers": {"notes": {"url": url}}}}}
        (tmp_path / "host" / "home").mkdir(parents=True)
        (tmp_path / "host" / "home" / "config.json").write_text(json.dumps(config))
        with_token = {"PICOCLAW_URL": "", "API_TOKEN": TOKEN}

        def act() -> None:
            host.start()
            with_token["PICOCLAW_URL"] = host.url
            listed = process(tmp_path, "mcp", "list", **with_token)
            assert "needs sign-in" in listed.stdout, listed.stderr
            assert "picoclaw mcp login notes" in listed.stdout
            _login(tmp_path, way, with_token)
            tested = process(tmp_path, "mcp", "test", "notes", **with_token)
            assert tested.returncode == 0, tested.stderr
            assert "mcp__notes__note" in tested.stdout
            assert re.search("1 tools, about [1-9][0-9]+ tokens", tested.stdout)
            looked = process(
                tmp_path / "host" / "home",
                "doctor",
                "--json",
                PORT=host.url.rpartition(":")[2],
                API_TOKEN=TOKEN,
            )
            assert "ready, 1 tools, about" in looked.stdout
            signed_out = process(tmp_path, "mcp", "logout", "notes", "--json", **with_token)
            assert json.loads(signed_out.stdout) == {"name": "notes", "signed_in": False}
            assert process(tmp_path, "mcp", "test", "notes", **with_token).returncode == 1
            with host.client() as client:
                run = client.post("/chat", json={"message": "hello"}).json()
            assert "needs sign-in: picoclaw mcp login notes" in json.dumps(run)
            assert "canary-" not in host.log_text

        try:
            await anyio.to_thread.run_sync(act)
        finally:
            host.stop()
    assert len(grants.clients) == 1


def _login(home: Path, way: str, env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "host.cli", "mcp", "login", "notes", "--callback-port", "0"]
    command += ["--json"] if way == "json" else []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(home, PYTHONUNBUFFERED="1", **env),
    ) as login:
        assert login.stdout is not None
        address = next(line for line in login.stdout if "http" in line).strip()
        address = json.loads(address)["address"] if way == "json" else address
        with httpx2.Client(trust_env=False) as http:
            callback = http.get(address).headers["location"]
            if way != "pasted":
                assert "may be closed" in http.get(callback).text
                told = login.stdout.read()
            else:
                told, _ = login.communicate(f"{callback}\n", timeout=60)
        assert login.wait(60) == 0
    assert json.loads(told)["state"] == "ready" if way == "json" else "Signed in." in told
