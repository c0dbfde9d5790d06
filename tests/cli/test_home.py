from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from host.cli.client import find_target
from shared.secrets import Sealer, unseal
from shared.settings import load
from shared.settings.leaves import leaves
from shared.settings.security_yml import ROOT_KEYS
from tests.cli.running import api_of_keys, environment, picoclaw, process
from tests.running import free_port, new_host

SECURITY = """\
# top comment
model_list:
  default:   # the usual one
    api_keys:
      - "sk-1"
      - 'sk-2'
      - sk-3
mystery: {kept: true}   # an unknown key
channels:
  telegram: {token: "123:abc"}
tools: {mcp: {servers: {github: {env: {GITHUB_TOKEN: "ghp"}}}}}
"""


def written(home: Path, text: str = SECURITY) -> Path:
    path = home / ".security.yml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def secrets(
    home: Path, *arguments: str, stdin: str | bytes = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    return picoclaw(home, "secrets", *arguments, stdin=stdin, **extra)


def kept(home: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for row in json.loads(secrets(home, "list", "--json").stdout):
        rows.setdefault(row["name"], []).append(row["kept"])
    return rows


class TestInit:
    def test_a_new_home_is_private_loads_and_has_a_token(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        made = picoclaw(home, "init")
        assert made.returncode == 0
        settings = load(environment(home))
        assert settings.warnings == ()
        assert settings.api_token is not None
        assert settings.api_token.get_secret_value() not in made.stdout + made.stderr
        for name in (".security.yml", "config.json"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
        # Others may pass through root's, as the uid that commands get has to.
        assert stat.S_IMODE(home.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
        target = find_target(None, None, environment(home))
        assert (target.url, target.token) == (
            "http://127.0.0.1:9000",
            settings.api_token.get_secret_value(),
        )

    def test_a_second_time_changes_nothing(self, tmp_path: Path) -> None:
        picoclaw(tmp_path, "init")
        (tmp_path / "workspace/CLAUDE.md").write_text("mine")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        again = picoclaw(tmp_path, "init")
        assert again.returncode == 0
        assert "nothing was changed" in again.stdout
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_a_dangling_link_is_not_written_through(self, tmp_path: Path) -> None:
        (tmp_path / ".security.yml").symlink_to(tmp_path / "elsewhere")
        picoclaw(tmp_path, "init")
        assert not (tmp_path / "elsewhere").exists()

    def test_a_place_that_cannot_be_made_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        refused = picoclaw(tmp_path / "file" / "home", "init")
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr


class TestSecrets:
    def test_values_are_listed_by_how_they_are_kept_and_never_shown(self, tmp_path: Path) -> None:
        written(tmp_path)
        listed = secrets(tmp_path, "list")
        assert "channels.telegram.token" in listed.stdout
        for value in ("sk-1", "123:abc", "ghp"):
            assert value not in listed.stdout
        assert kept(tmp_path)["model_list.default.api_keys"] == ["in the clear"] * 3

    def test_setting_one_keeps_comments_keys_and_unknown_entries(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        done = secrets(tmp_path, "set", "channels.telegram.token", stdin="456:def\n")
        assert done.stdout == "channels.telegram.token is set.\n"
        text = path.read_text()
        assert text == SECURITY.replace("123:abc", "456:def")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_key_can_be_added_to_the_three_that_are_there(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        secrets(tmp_path, "set", "model_list.default.api_keys", "--add", stdin="sk-4\n")
        text = path.read_text()
        assert [key in text for key in ('"sk-1"', "'sk-2'", "sk-3", "sk-4")] == [True] * 4
        assert "# the usual one" in text

    def test_names_of_models_may_have_dots_and_numbers(self, tmp_path: Path) -> None:
        path = written(tmp_path, "# only this\n")
        secrets(tmp_path, "set", "model_list.gpt-5.4:0.api_keys", stdin="sk\n")
        assert "gpt-5.4:0" in path.read_text()
        assert "# only this" in path.read_text()
        assert kept(tmp_path) == {"model_list.gpt-5.4:0.api_keys": ["in the clear"]}

    def test_what_is_no_secret_is_not_set(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        for name in ("agents.defaults.workspace", "model_list", "api_tokn"):
            refused = secrets(tmp_path, "set", name, stdin="x\n")
            assert refused.returncode == 2
            assert f"{name} is not a secret's name" in refused.stderr
        assert secrets(tmp_path, "set", "api_token", stdin="\n").returncode == 1
        assert path.read_text() == SECURITY

    def test_all_are_encrypted_and_encrypted_anew(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        assert secrets(tmp_path, "encrypt", PICOCLAW_KEY_PASSPHRASE="one").stdout == "5 encrypted.\n"
        assert {how for hows in kept(tmp_path).values() for how in hows} == {"encrypted"}
        first = path.read_text()
        assert "# the usual one" in first
        assert "mystery: {kept: true}" in first
        config = {"channels": {"telegram": {}}, "model_list": [{"model_name": "default", "model": "claude"}]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert token_of(tmp_path, "one") == "123:abc"
        both = {"PICOCLAW_KEY_PASSPHRASE": "one", "PICOCLAW_NEW_KEY_PASSPHRASE": "two"}
        assert secrets(tmp_path, "rotate", **both).stdout == "5 encrypted anew.\n"
        assert token_of(tmp_path, "one") is None
        assert token_of(tmp_path, "two") == "123:abc"

    def test_no_encrypted_value_is_left_behind_in_silence(self, tmp_path: Path) -> None:
        sealed = Sealer("one").seal("value")
        path = written(tmp_path, f"tools: {{mcp: {{servers: {{a: {{headers: {{X.Y: '{sealed}'}}}}}}}}}}\n")
        server = {"url": "https://mcp.example", "headers": {"X": sealed}}
        (tmp_path / "config.json").write_text(json.dumps({"tools": {"mcp": {"servers": {"a": server}}}}))
        both = {"PICOCLAW_KEY_PASSPHRASE": "one", "PICOCLAW_NEW_KEY_PASSPHRASE": "two"}
        rotated = secrets(tmp_path, "rotate", **both)
        assert rotated.stdout == "1 encrypted anew.\n"
        assert "config.json has encrypted values too, which stay as they are" in rotated.stderr
        assert unseal(path.read_text().split("'")[1], "two") == "value"

    def test_what_stands_in_a_secret_s_way_is_not_replaced(self, tmp_path: Path) -> None:
        text = "model_list:\n  - {model_name: default, api_keys: [sk-1]}\nchannels:\n"
        path = written(tmp_path, text)
        refused = secrets(tmp_path, "set", "model_list.default.api_keys", stdin="sk-2\n")
        assert (refused.returncode, "model_list must be a mapping" in refused.stderr) == (2, True)
        assert path.read_text() == text
        assert secrets(tmp_path, "set", "channels.telegram.token", stdin="123:abc\n").returncode == 0

    def test_every_secret_that_the_file_may_hold_is_known(self, tmp_path: Path) -> None:
        in_file = [leaf.key for leaf in leaves() if leaf.kind is SecretStr and leaf.in_config]
        names = {*in_file, *ROOT_KEYS, "channels.plugins.irc.secrets.password"}
        for name in names:
            assert secrets(tmp_path, "set", name, stdin="value\n").returncode == 0
        assert secrets(tmp_path, "encrypt", PICOCLAW_KEY_PASSPHRASE="one").returncode == 0
        both = {"PICOCLAW_KEY_PASSPHRASE": "one", "PICOCLAW_NEW_KEY_PASSPHRASE": "two"}
        assert secrets(tmp_path, "rotate", **both).stdout == f"{len(names)} encrypted anew.\n"
        assert kept(tmp_path) == {name: ["encrypted"] for name in names}

    def test_a_wrong_passphrase_changes_nothing(self, tmp_path: Path) -> None:
        path = written(tmp_path)
        secrets(tmp_path, "encrypt", PICOCLAW_KEY_PASSPHRASE="one")
        before = path.read_bytes()
        both = {"PICOCLAW_KEY_PASSPHRASE": "wrong", "PICOCLAW_NEW_KEY_PASSPHRASE": "two"}
        refused = secrets(tmp_path, "rotate", **both)
        assert refused.returncode == 2
        assert "passphrase is not the one" in refused.stderr
        assert secrets(tmp_path, "rotate").returncode == 2
        assert path.read_bytes() == before

    def test_a_value_can_be_set_encrypted(self, tmp_path: Path) -> None:
        path = written(tmp_path, "")
        secrets(tmp_path, "set", "api_token", "--encrypt", stdin="tok\n", PICOCLAW_KEY_PASSPHRASE="one")
        sealed = path.read_text().removeprefix("api_token: ").strip()
        assert unseal(sealed, "one") == "tok"

    def test_a_value_is_taken_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = written(tmp_path, "")
        key = "-----BEGIN KEY-----\nabc\n-----END KEY-----"
        name = "tools.mcp.servers.a.env.KEY"
        secrets(tmp_path, "set", name, "--encrypt", stdin=f"\ufeff{key}\n", PICOCLAW_KEY_PASSPHRASE="one")
        before = path.read_text()
        assert unseal(before.rpartition("KEY: ")[2].strip(), "one") == key
        for value in (b"\xff\xfe", b"a\0b"):
            refused = secrets(tmp_path, "set", name, stdin=value)
            assert (refused.returncode, "is not UTF-8 text" in refused.stderr) == (1, True)
        assert path.read_text() == before

    def test_a_passphrase_may_be_any_bytes_and_a_value_has_to_be_text(self, tmp_path: Path) -> None:
        path = written(tmp_path, "api_token: plain\n")
        passphrase = os.fsdecode(b"\xe4\xff")
        assert secrets(tmp_path, "encrypt", PICOCLAW_KEY_PASSPHRASE=passphrase).stdout == "1 encrypted.\n"
        token = load(environment(tmp_path, PICOCLAW_KEY_PASSPHRASE=passphrase)).api_token
        assert token is not None
        assert token.get_secret_value() == "plain"
        written(tmp_path, 'api_token: "\\uDCFF"\n')
        refused = secrets(tmp_path, "encrypt", PICOCLAW_KEY_PASSPHRASE="one")
        assert (refused.returncode, "a value is not text" in refused.stderr) == (2, True)
        assert path.read_text() == 'api_token: "\\uDCFF"\n'

    def test_broken_yaml_is_not_touched(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a: [canary")
        for arguments in (("list",), ("set", "api_token"), ("encrypt",), ("rotate",)):
            refused = secrets(tmp_path, *arguments, stdin="x\n", PICOCLAW_KEY_PASSPHRASE="one")
            assert refused.returncode == 2
            assert "is not YAML" in refused.stderr
            assert "canary" not in refused.stderr
        assert path.read_text() == "a: [canary"

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        real = tmp_path / "real.yml"
        real.write_text("api_token: x\n")
        (tmp_path / ".security.yml").symlink_to(real)
        secrets(tmp_path, "set", "api_token", stdin="y\n")
        assert (tmp_path / ".security.yml").is_symlink()
        assert real.read_text() == "api_token: y\n"


def token_of(home: Path, passphrase: str) -> str | None:
    token = load(environment(home, PICOCLAW_KEY_PASSPHRASE=passphrase)).channels.telegram.token
    return token.get_secret_value() if token else None


class TestDoctor:
    def verdicts(self, home: Path, **extra: str) -> tuple[int, dict[str, tuple[str, str]]]:
        done = picoclaw(home, "doctor", "--json", **extra)
        assert "canary" not in done.stdout + done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return done.returncode, {row["check"]: (row["verdict"], row["said"]) for row in rows}

    def test_a_fresh_home_is_healthy_but_for_the_model(self, tmp_path: Path) -> None:
        picoclaw(tmp_path, "init")
        code, found = self.verdicts(tmp_path)
        assert code == 0, found
        assert found["sandbox"][0] == "ok"
        assert found["model"][0] == "note"
        assert "offline" in found["model"][1]

    @pytest.mark.parametrize(
        ("spoil", "check", "mends"),
        [
            (lambda home: (home / ".security.yml").chmod(0o640), "secrets", "chmod 600"),
            (lambda home: (home / ".security.yml").write_text("api_token: canary"), "API token", "openssl"),
            (lambda home: (home / ".security.yml").write_text(""), "API token", "picoclaw init"),
            (lambda home: (home / "config.json").write_text("{"), "settings", "line 1"),
        ],
    )
    def test_a_fault_says_what_mends_it(
        self, tmp_path: Path, spoil: Callable[[Path], object], check: str, mends: str
    ) -> None:
        picoclaw(tmp_path, "init")
        spoil(tmp_path)
        code, found = self.verdicts(tmp_path)
        assert code == 1
        assert found[check][0] == "fault"
        assert mends in found[check][1]

    def test_a_store_inside_the_workspace_is_a_fault(self, tmp_path: Path) -> None:
        picoclaw(tmp_path, "init")
        code, found = self.verdicts(tmp_path, STORE_DIR=str(tmp_path / "workspace/store"))
        assert code == 1
        assert "inside the workspace" in found["workspace"][1]

    def test_a_model_that_cannot_be_reached_is_a_fault(self, tmp_path: Path) -> None:
        picoclaw(tmp_path, "init")
        environ = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1", "ANTHROPIC_API_KEY": "canary-0123456789"}
        code, found = self.verdicts(tmp_path, **environ)
        assert code == 1
        assert "could not be reached" in found["model"][1]

    @pytest.mark.parametrize(
        ("listed", "general", "verdicts"),
        [
            (["good"], "", ["ok"]),
            (["good"], "bad", ["ok"]),
            (["bad"], "good", ["fault"]),
            (["bad", "good"], "", ["fault", "ok"]),
            (["busy", "good"], "", ["note", "ok"]),
            (["busy"], "", ["fault"]),
            (["odd"], "", ["fault"]),
            ([], "good", ["ok"]),
            ([], "bad", ["fault"]),
        ],
    )
    def test_the_ways_of_a_run_are_asked_in_their_order(
        self, tmp_path: Path, listed: list[str], general: str, verdicts: list[str]
    ) -> None:
        picoclaw(tmp_path, "init")
        with api_of_keys({"good": 200, "bad": 401, "busy": 529, "odd": 404}) as url:
            entry = {
                "model_name": "default",
                "model": "claude-x",
                "api_base": url,
                "api_keys": listed,
            }
            environ = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": general}
            if listed:
                environ |= {"PICOCLAW_MODEL_LIST": json.dumps([entry])}
            done = picoclaw(tmp_path, "doctor", "--json", **environ)
        found = [row for row in json.loads(done.stdout) if row["check"] == "model"]
        assert [row["verdict"] for row in found] == verdicts
        assert done.returncode == int("fault" in verdicts)
        model = "claude-x" if listed else "claude-sonnet-5-5"
        assert found[-1]["said"].startswith(f"{model} at {url}, key {len(verdicts)}, ")

    def test_a_model_with_a_last_day_is_noted_here_and_at_the_start(self, tmp_path: Path) -> None:
        program = (
            "import json; from anthropic.resources.messages.messages import DEPRECATED_MODELS; "
            "print(json.dumps(DEPRECATED_MODELS))"
        )
        listed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        model, last_day = json.loads(listed.stdout).popitem()
        picoclaw(tmp_path, "init")
        environ = {
            "ANTHROPIC_API_KEY": "canary-0123456789",
            "CLAUDE_MODEL": model,
            "HTTPS_PROXY": "http://127.0.0.1:1",
        }
        config = tmp_path / "config.json"
        config.write_text("{}")
        notes = self.said(tmp_path, "model", **environ)
        assert f"model {model} is deprecated and its last day is {last_day}" in " ".join(notes)
        entry = {"model_name": "default", "model": model, "api_base": "http://127.0.0.1:1"}
        config.write_text(json.dumps({"model_list": [entry]}))
        assert "deprecated" not in " ".join(self.said(tmp_path, "model", **environ))
        with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends by itself
            config.write_text("{}")
            ended = process(tmp_path, "serve", PORT=str(taken.getsockname()[1]), **environ)
        assert f"its last day is {last_day}" in ended.stderr

    def said(self, home: Path, check: str, **extra: str) -> list[str]:
        rows = json.loads(picoclaw(home, "doctor", "--json", **extra).stdout)
        return [row["said"] for row in rows if row["check"] == check]

    def test_a_heartbeat_that_nothing_ticks_is_noted(self, tmp_path: Path) -> None:
        picoclaw(tmp_path, "init")
        environ = {"PICOCLAW_HEARTBEAT_ENABLED": "true", "SCHEDULER": "external", "PORT": str(free_port())}
        _, found = self.verdicts(tmp_path, **environ)
        assert found["tasks"][0] == "note"
        assert "SCHEDULER is external" in found["tasks"][1]

    def test_what_is_overdue_at_the_running_host_is_a_fault(self, tmp_path: Path) -> None:
        picoclaw(tmp_path / "cli", "init")
        host = new_host(tmp_path / "host", None).start()
        try:
            due = {"schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
            with host.client() as client:
                assert client.post("/task", json={"prompt": "x", **due}).status_code == 201
            code, found = self.verdicts(tmp_path / "cli", PORT=str(host.port))
        finally:
            host.stop()
        assert (code, found["tasks"][0]) == (1, "fault")
        assert found["tasks"][1].startswith("1 overdue")

    def test_people_get_lines_and_an_exit_code(self, tmp_path: Path) -> None:
        done = picoclaw(tmp_path, "doctor", TZ="Mars/Olympus")
        assert done.returncode == 1
        assert done.stdout.startswith("✗ settings: TZ (environment)")


def test_no_command_writes_an_override_of_the_environment_down(tmp_path: Path) -> None:
    picoclaw(tmp_path, "init")
    before = (tmp_path / "config.json").read_bytes()
    environ = {"PICOCLAW_AGENTS_DEFAULTS_MAX_TOKENS": "77", "PICOCLAW_KEY_PASSPHRASE": "p"}
    for arguments in (("init",), ("doctor",), ("secrets", "encrypt"), ("secrets", "list")):
        picoclaw(tmp_path, *arguments, **environ)
    assert (tmp_path / "config.json").read_bytes() == before
    assert not any(
        b"77" in path.read_bytes() for path in tmp_path.rglob("*.json") if os.access(path, os.R_OK)
    )


def test_doctor_tells_which_skills_can_be_loaded_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "skills" / "broken"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("no front matter")
    done = picoclaw(tmp_path, "doctor", "--json")
    said = [finding["said"] for finding in json.loads(done.stdout) if finding["check"] == "skills"]
    assert said == [
        "skills/broken: not used: its front matter is missing (within 8192 bytes)",
        "2 can be loaded: make-a-skill, tabular-data",
    ]


def test_doctor_comes_to_an_end_before_anything_was_made(tmp_path: Path) -> None:
    done = picoclaw(tmp_path, "doctor", API_TOKEN="0123456789abcdef-and-more")
    assert "sandbox: level" in done.stdout
