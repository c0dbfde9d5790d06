from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host.cli.client import find_target
from host.cli.dev import banner, prepare, write_address
from host.cli.start import guessable, take_settings
from shared.settings import load
from tests.cli.running import TOKEN, environment, process

DEV = {"HOST": "127.0.0.1", "PORT": "9123", "API_TOKEN": "t0ken"}


@pytest.mark.parametrize("command", ["serve", "dev"])
def test_settings_that_cannot_be_used_are_one_sentence(tmp_path: Path, command: str) -> None:
    ended = process(tmp_path, command, PORT="nine", API_TOKEN="canary-0123456789")
    assert ended.returncode == 2
    assert ended.stderr == "picoclaw: PORT (environment) must be a whole number\n"


def test_secrets_leave_the_environment_when_they_are_taken(tmp_path: Path) -> None:
    environ = environment(tmp_path, API_TOKEN="canary-0123456789", ANTHROPIC_API_KEY="sk-1", PORT="9000")
    settings = take_settings(environ)
    assert settings is not None
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == "canary-0123456789"
    assert "API_TOKEN" not in environ
    assert "ANTHROPIC_API_KEY" not in environ
    assert environ["PORT"] == "9000"


def sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """What a start that only the operator can mend says: one line, and exit code 2."""
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("picoclaw: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "fifteen-letters",
        "change-me-to-the-output-of-openssl-rand-hex-32",
        "changeme-changeme",
        "CHANGE_ME_PLEASE_NOW",
        "your-api-token-here",
        "<the token of my api>",
        "secret-token-1234",
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "1234123412341234",
    ],
)
def test_a_token_that_can_be_guessed_is_told(tmp_path: Path, token: str) -> None:
    for name in ("API_TOKEN", "API_TOKEN_PREVIOUS"):
        said = guessable(load(environment(tmp_path, **{name: token})))
        assert said is not None
        assert said.startswith(f"{name} ")
        assert token == "x" or token not in said


@pytest.mark.parametrize("command", ["serve", "dev"])
@pytest.mark.parametrize("name", ["API_TOKEN", "API_TOKEN_PREVIOUS"])
def test_a_token_that_can_be_guessed_does_not_start_a_host(tmp_path: Path, command: str, name: str) -> None:
    said = sentence(process(tmp_path, command, PORT="0", **{"API_TOKEN": TOKEN, name: "changeme-changeme"}))
    assert said.startswith(f"picoclaw: {name} is a placeholder; make one with `openssl rand -hex 32`")


@pytest.mark.parametrize(
    "token", ["exampleQ7vR2mK9sX4p", "tokenZr81kQpLw02Vb", "0123456789abcdef", "correct horse battery staple"]
)
def test_a_token_that_only_looks_a_little_like_one_is_taken(tmp_path: Path, token: str) -> None:
    assert guessable(load(environment(tmp_path, API_TOKEN=token))) is None


@pytest.mark.parametrize("command", ["dev", "serve"])
def test_a_port_that_cannot_be_had_is_one_sentence_and_one_code(tmp_path: Path, command: str) -> None:
    """1 where it may become free, so that a supervisor tries again; 2 where only the operator can mend it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = process(tmp_path, command, PORT=str(port), API_TOKEN=TOKEN)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"Cannot listen: port {port} on 127.0.0.1 is in use" in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "dev.json").exists()
    ended = process(tmp_path, command, HOST="192.0.2.1", API_TOKEN=TOKEN)
    assert (ended.returncode, "set HOST to an address" in ended.stderr) == (2, True)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("LOCAL_DB_PATH", "folder", "is a directory; name a file, such as"),
        ("STORE_DIR", "file", "is not a directory"),
        ("PRINCIPALS_DIR", "file", "is not a directory"),
        ("SKILLS_DIR", "file", "is not a directory"),
    ],
)
def test_what_lies_in_the_place_of_something_else_is_named_by_the_start_and_by_doctor(
    tmp_path: Path, name: str, place: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    given = {name: str(tmp_path / place), "API_TOKEN": TOKEN}
    ended = process(tmp_path, "serve", PORT="0", **given)
    sentence = f"{name}: {tmp_path / place} {said}"
    assert (ended.returncode, sentence in ended.stdout + ended.stderr) == (2, True)
    looked = process(tmp_path, "doctor", "--json", **given)
    faults = [each["said"] for each in json.loads(looked.stdout) if each["verdict"] == "fault"]
    assert any(fault.startswith(sentence) for fault in faults)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>/dev/full"])
@pytest.mark.parametrize("command", ["doctor", "--version", "tasks --help", "secrets list"])
def test_a_stream_that_is_closed_or_full_is_no_stack_trace(tmp_path: Path, command: str, closed: str) -> None:
    words = f"exec {sys.executable} -m host.cli {command} {closed}"
    ended = subprocess.run(
        ["sh", "-c", words], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.returncode == int(command == "doctor" or closed == "1>/dev/full")


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home, words in (("file", "cannot be read"), ("/proc/home", "cannot be written")):
        said = sentence(process(tmp_path, "dev", PICOCLAW_HOME=str(tmp_path / home), PORT="0"))
        assert f"{tmp_path / home}" in said
        assert words in said
    assert "cannot be made" in process(tmp_path, "init", PICOCLAW_HOME="/proc/home").stderr


@pytest.mark.parametrize(
    ("ending", "limit", "said"),
    [("\udcff", "unlimited", "its path is not UTF-8"), ("", "0", "no directory for temporary files can be")],
)
def test_without_a_place_for_temporary_files_a_start_and_doctor_say_so(
    tmp_path: Path, ending: str, limit: str, said: str
) -> None:
    (directory := tmp_path / f"tmp{ending}").mkdir()
    environ = environment(tmp_path, TMPDIR=str(directory), API_TOKEN="canary-0123456789")
    for command, code, place in (("serve", 2, "picoclaw: "), ("doctor", 1, "✗ temporary files: ")):
        # No file may be written: what else makes each place for them useless is the machine's.
        ended = subprocess.run(
            ["/bin/sh", "-c", f'ulimit -f {limit}; exec "$0" -m host.cli {command}', sys.executable],
            env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert f"{place}TMPDIR: {said}" in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_folder_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {sys.executable} -m host.cli"
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("dev", "doctor"):
        ended = subprocess.run(
            ["sh", "-c", f"{command} {name}"], cwd=tmp_path / "gone", env=environment(tmp_path) | path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "working directory" in sentence(ended)
        gone.mkdir()


def test_where_there_is_no_sandbox_what_works_and_the_container_are_named(tmp_path: Path) -> None:
    other = "import platform; platform.system = lambda: 'Darwin'"
    (tmp_path / "sitecustomize.py").write_text(other)
    said = sentence(process(tmp_path, "dev", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}", PORT="0"))
    for words in ("Darwin has no sandbox", "conversations", "docker compose up", "SANDBOX_MIN_LEVEL=0"):
        assert words in said


def test_dev_keeps_what_the_environment_says(tmp_path: Path) -> None:
    environ = environment(tmp_path, API_TOKEN="mine-0123456789", LOG_FORMAT="json")
    prepare(environ)
    assert (environ["API_TOKEN"], environ["LOG_FORMAT"]) == ("mine-0123456789", "json")
    made = {"PORT": "0", "API_TOKEN": ""}
    prepare(made)
    assert len(made["API_TOKEN"]) >= 32
    assert int(made["PORT"]) > 0


def test_the_banner_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/of mine/bin/picoclaw"])
    text = banner(load(environment(tmp_path)), "http://127.0.0.1:9000", "t0ken")
    assert "    '/of mine/bin/picoclaw' chat\n" in text
    assert "curl -s http://127.0.0.1:9000/chat -H 'Authorization: Bearer t0ken'" in text
    assert " chat\n" in text
    assert "offline model" in text


def test_the_written_address_is_the_user_s_alone_and_found(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    write_address(path, DEV)
    assert path.stat().st_mode & 0o777 == 0o600
    target = find_target(None, None, {"PICOCLAW_HOME": str(tmp_path)})
    assert (target.url, target.token) == ("http://127.0.0.1:9123", "t0ken")
    assert "t0ken" not in repr(target)


def test_a_host_whose_settings_cannot_be_used_here_is_looked_for_at_its_own_port(tmp_path: Path) -> None:
    """A tick beside a host whose passphrase was typed at its terminal, for one."""
    environ = {"PICOCLAW_HOME": str(tmp_path), "API_TOKEN": "enc://AAAA", "PORT": "9107", "HOST": "::"}
    assert find_target(None, None, environ).url == "http://[::1]:9107"
    assert find_target(None, None, environ | {"HOST": "", "PORT": ""}).url == "http://127.0.0.1:9000"


def test_a_written_token_goes_to_no_other_host(tmp_path: Path) -> None:
    write_address(tmp_path / "dev.json", DEV)
    environ = {"PICOCLAW_HOME": str(tmp_path)}
    assert find_target("http://elsewhere:9123", None, environ).token is None
    assert find_target("http://127.0.0.1:9123/", None, environ).token == "t0ken"
    assert find_target("http://elsewhere:9123", None, environ | {"API_TOKEN": "x"}).token == "x"


def test_a_written_token_goes_where_its_host_listens_whatever_port_the_environment_names(
    tmp_path: Path,
) -> None:
    write_address(tmp_path / "dev.json", DEV)
    environ = {"PICOCLAW_HOME": str(tmp_path), "PORT": "3000", "HOST": "0.0.0.0"}
    target = find_target(None, None, environ)
    assert (target.url, target.token) == ("http://127.0.0.1:9123", "t0ken")
    assert find_target(None, None, environ | {"API_TOKEN": "x"}).token == "x"


@pytest.mark.parametrize("value", ["file://token", "env://MINE", "${MINE}", " of-mine-0123456789\r\n"])
def test_a_token_of_the_environment_is_read_as_the_host_reads_it(tmp_path: Path, value: str) -> None:
    (tmp_path / "token").write_text("of-mine-0123456789\n")
    environ = {"PICOCLAW_HOME": str(tmp_path), "API_TOKEN": value, "MINE": "of-mine-0123456789"}
    for url in ("", "http://elsewhere:9123\r\n", "elsewhere:9123/"):
        target = find_target(None, None, environ | {"PICOCLAW_URL": url})
        assert target.token == "of-mine-0123456789"
        assert target.url == ("http://elsewhere:9123" if url else "http://127.0.0.1:9000")


def test_junk_in_the_address_file_is_no_address(tmp_path: Path) -> None:
    for junk in ("", "[]", "1", '{"url": 1}', "\x00"):
        (tmp_path / "dev.json").write_text(junk)
        assert find_target(None, None, {"PICOCLAW_HOME": str(tmp_path)}).url == "http://127.0.0.1:9000"


def test_serving_does_not_import_the_command_line_s_libraries() -> None:
    program = (
        "import sys, json; sys.argv = ['picoclaw', 'serve']; import host.cli, host.cli.serve; "
        "print(json.dumps([name for name in ('typer', 'rich', 'prompt_toolkit', 'httpx2', 'ruamel') "
        "if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_plugins_of_pydantic_see_nothing_of_a_host(tmp_path: Path) -> None:
    """A plugin would be handed every value that is validated, secrets too."""
    package = tmp_path / "spy-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: spy\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[pydantic]\nspy = spy:plugin\n")
    (tmp_path / "spy.py").write_text("raise SystemExit('a plugin was loaded')")
    environ = environment(tmp_path, PYTHONPATH=str(tmp_path), PICOCLAW_HOME=str(tmp_path / "home"))
    for module in ("host.cli", "mcp_server"):
        environ |= {"PICOCLAW_CONVERSATION_ID": "c", "PICOCLAW_DB_PATH": str(tmp_path / "picoclaw.db")}
        command = [sys.executable, "-m", module, *(["doctor"] if module == "host.cli" else ())]
        done = subprocess.run(command, env=environ, input="", capture_output=True, text=True, check=False)
        assert "a plugin was loaded" not in done.stderr


def test_the_version_can_be_asked_for(tmp_path: Path) -> None:
    for environ, said in (({}, "picoclaw 0.1.0\n"), ({"APP_VERSION": "9.8.7"}, "picoclaw 9.8.7\n")):
        ended = process(tmp_path, "--version", **environ)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")


def test_serving_without_a_token_is_a_sentence_unless_it_is_wanted(tmp_path: Path) -> None:
    assert "API_TOKEN is not set: `picoclaw init`" in sentence(process(tmp_path, "serve"))
    assert "environment variable it names is not set" in sentence(
        process(tmp_path, "serve", API_TOKEN="env://NOT_THERE")
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:  # so that it ends by itself
        port = str(taken.getsockname()[1])
        ended = process(tmp_path, "serve", PORT=port, ALLOW_NO_TOKEN_500="1")
    assert ended.returncode == 1
    assert "Cannot listen" in json.loads(ended.stderr.splitlines()[-1])["message"]


def in_folder(folder: Path, home: Path, **extra: str) -> tuple[str | None, Path | None]:
    """Which host commands are about in a folder, without PICOCLAW_HOME: its token, and its home."""
    with contextlib.chdir(folder):
        target = find_target(None, None, {"HOME": str(home), **extra})
    return target.token, target.home


def test_commands_are_about_the_host_that_runs_here_else_the_homes_else_the_one_that_ran_here(
    tmp_path: Path,
) -> None:
    folder, home = tmp_path / "folder", tmp_path / "me"
    run, own = folder / ".run", home / ".picoclaw"
    folder.mkdir()
    assert in_folder(folder, home) == (None, own)
    run.mkdir()
    assert in_folder(folder, home) == (None, run)
    own.mkdir(parents=True)
    (own / ".security.yml").write_text("api_token: of-the-home-0123456789")
    assert in_folder(folder, home) == ("of-the-home-0123456789", own)
    write_address(run / "dev.json", DEV)
    assert in_folder(folder, home) == ("t0ken", run)
    assert in_folder(folder, home, PICOCLAW_HOME=str(own)) == ("of-the-home-0123456789", own)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_another_users_folder_names_no_host(tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    write_address(tmp_path / ".run/dev.json", DEV)
    for path in (tmp_path / ".run/dev.json", tmp_path / ".run"):
        os.chown(path, 1000, 1000)
    assert in_folder(tmp_path, tmp_path) == (None, tmp_path / ".picoclaw")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl(2)")
def test_a_host_is_not_dumpable() -> None:
    program = (
        "import ctypes, resource; from shared.processes import not_dumpable; not_dumpable(); "
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0 (0, 0)\n"


def as_nobody_known(what: str, *names: dict[str, str]) -> list[str]:
    """What a user that nobody knows hears of it with each; this interpreter may lie where only root gets."""
    program = f"""
import os, sys, json, importlib.metadata, shared.schedules, shared.settings, host.volumes
each = [shared.settings.load({{**os.environ, **names}}) for names in json.loads(sys.argv[1])]
os.setgid(54321)
os.setuid(54321)
for settings in each:
    try:
        {what}
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""
    command = [sys.executable, "-c", program, json.dumps(names)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user that nobody knows")
def test_a_user_without_a_home_is_a_sentence() -> None:
    (said,) = as_nobody_known("shared.settings.load({})", {})
    assert "SettingsError: Neither HOME nor PICOCLAW_HOME is set" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user that nobody knows")
def test_what_mends_a_volume_touches_the_volume_alone(tmp_path: Path) -> None:
    """Not the folders above it, which are other people's, and may be all of the machine."""
    for path in reversed((tmp_path, *tmp_path.parents)):
        if path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755)
    own, theirs, closed = (tmp_path / name for name in ("own", "the irs", "closed"))
    for path, uid, mode in ((own, 54321, 0o500), (theirs, 4711, 0o755), (closed, 4711, 0o700)):
        path.mkdir(mode=mode)
        os.chown(path, uid, uid)
    (tmp_path / "file").write_text("")
    stores = (own, own / "store", theirs, theirs / "store", closed / "store", tmp_path / "file" / "x")
    home = {"PICOCLAW_HOME": str(tmp_path / "home")}
    heard = as_nobody_known(
        "host.volumes.make_volumes(settings)", *({**home, "STORE_DIR": str(store)} for store in stores)
    )
    made = "make it for the host, as root: `install -d -o 54321 -g 54321 "
    for store, said, cure in zip(
        stores,
        heard,
        (
            f"run `chmod u+rwx {own}`",
            f"run `chmod u+rwx {own}`",
            f"run `chown -R 54321:54321 '{theirs}'` once",
            f"{made}'{theirs / 'store'}'`",
            f"{made}{closed / 'store'}`",
            "cannot be made (Not a directory).",
        ),
        strict=True,
    ):
        assert f"Misconfigured: STORE_DIR: {store} " in said
        assert cure in said
        assert said.count("`") == 2 * ("`" in cure)
