from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.cli.chat import Chat
from host.cli.client import HostClient, Target
from host.cli.terminal import HostFault
from tests.cli.running import TOKEN, ContractServer, contract_server, environment, picoclaw, process

START = ("start", {"conversation_id": "conv-1", "message_id": "msg-1", "run_id": "run-1"})


def done(status: str = "success", **more: Any) -> tuple[str, dict[str, Any]]:
    usage = {"input_tokens": 1200, "output_tokens": 34}
    return "done", {"status": status, "conversation_id": "conv-1", "result": "", "usage": usage, **more}


@pytest.fixture
def host() -> Iterator[ContractServer]:
    with contract_server() as server:
        yield server


def say(
    host: ContractServer, home: Path, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return picoclaw(home, "chat", *arguments, "--url", host.url, stdin=stdin, API_TOKEN=TOKEN)


def test_a_piped_message_gives_the_answer_alone(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, ("chunk", {"text": "Hello \n"}), ("chunk", {"text": " there"}), done()]
    ended = process(tmp_path, "chat", "--url", host.url, stdin="hi\n", API_TOKEN=TOKEN)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Hello \n there\n", "")
    assert host.requests == [("POST", "/chat", {"message": "hi", "stream": True, "show_tool_use": False})]


def test_control_characters_of_an_answer_do_not_reach_the_terminal(
    host: ContractServer, tmp_path: Path
) -> None:
    host.events = [START, ("chunk", {"text": "a\x1b[2Jb\u202ec\td"}), done()]
    assert say(host, tmp_path, "hi").stdout == "a[2Jbc\td\n"


def test_the_marker_of_a_sessions_end_is_not_shown_however_it_is_split(
    host: ContractServer, tmp_path: Path
) -> None:
    begun = ("start", {**START[1], "session_end_marker": "[[END]]"})
    pieces = ["Bye [", "[not it]] ", "[[E", "ND]]", "", " and [[EN"]
    told = [("chunk", {"text": piece}) for piece in pieces]
    host.events = [begun, *told, ("message", {"text": "See you [[END]]", "sender": "Pico"}), done()]
    assert say(host, tmp_path, "hi").stdout == "Bye [[not it]]  and \n[Pico] See you \n[[EN\n"


@pytest.mark.parametrize(
    "arguments", [(b"chat", b"caf\xe9"), (b"chat", b"hi", b"--conversation", b"\xff"), (b"chat",)]
)
def test_what_is_not_utf_8_is_called_that(
    host: ContractServer, tmp_path: Path, arguments: tuple[bytes, ...]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "host.cli", *arguments, "--url", host.url],
        input=b"na\xefve",
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(tmp_path, API_TOKEN=TOKEN),
    )
    assert ended.returncode == 1
    assert b"is not UTF-8: it has the byte 0x" in ended.stderr
    assert host.requests == []


@pytest.mark.parametrize(
    ("encoding", "option", "shown"),
    [
        ("ascii", (), b"caf? ?"),
        ("iso-8859-1", (), b"caf\xe9 ?"),
        ("iso-8859-1", ("--json",), "café \u2713".encode()),
    ],
)
def test_a_terminal_that_lacks_a_character_shows_another_and_json_is_utf_8(
    host: ContractServer, tmp_path: Path, encoding: str, option: tuple[str, ...], shown: bytes
) -> None:
    if option:
        host.answers["POST", "/chat"] = (200, {"status": "success", "result": "café \u2713"})
    else:
        host.events = [START, ("chunk", {"text": "café \u2713"}), done()]
    ended = subprocess.run(
        [sys.executable, "-m", "host.cli", "chat", "hi", "--url", host.url, *option],
        capture_output=True,
        timeout=60,
        check=False,
        env=environment(tmp_path, API_TOKEN=TOKEN, PYTHONIOENCODING=encoding),
    )
    assert (ended.returncode, shown in ended.stdout) == (0, True), ended


def test_messages_of_the_run_are_shown_as_they_come(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, ("chunk", {"text": "one"}), ("message", {"text": "ping", "sender": "Pico"}), done()]
    assert say(host, tmp_path, "hi").stdout == "one\n[Pico] ping\n"


def test_a_run_that_failed_is_an_exit_code(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, done("error", error="The model is down")]
    ended = say(host, tmp_path, "hi")
    assert ended.returncode == 1
    assert ended.stderr.strip() == "The model is down"


def test_a_stream_that_breaks_off_is_not_a_success(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, ("chunk", {"text": "half"})]
    ended = say(host, tmp_path, "hi")
    assert ended.returncode == 1
    assert "ended before the answer did" in ended.stderr


def test_a_conversation_can_be_gone_on_with(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, done()]
    assert say(host, tmp_path, "hi", "--conversation", "conv-9").returncode == 0
    assert host.requests[0][2]["conversation_id"] == "conv-9"


def test_refusals_are_sentences(host: ContractServer, tmp_path: Path) -> None:
    busy = {"error": "Conversation conv-1 is currently processing another request", "code": "x"}
    host.answers["POST", "/chat"] = (409, busy)
    assert "currently processing another request" in say(host, tmp_path, "hi").stderr
    wrong = picoclaw(tmp_path, "chat", "hi", "--url", host.url, API_TOKEN="wrong")
    assert "does not accept this token" in wrong.stderr
    missing = picoclaw(tmp_path, "chat", "hi", "--url", host.url)
    assert "wants a token" in missing.stderr
    assert {wrong.returncode, missing.returncode} == {2}


def test_no_host_is_a_sentence(tmp_path: Path) -> None:
    ended = picoclaw(tmp_path, "chat", "hi", "--url", "http://127.0.0.1:1")
    assert ended.returncode == 1
    assert "No host answers at http://127.0.0.1:1." in ended.stderr
    assert "Traceback" not in ended.stderr


class Terminal:
    """A person at a terminal: types, and reads until something new appears."""

    def __init__(self, host: ContractServer, home: Path) -> None:
        self.screen = ""
        self._seen = 0
        self._ours, theirs = pty.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "host.cli", "chat", "--url", host.url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(home, API_TOKEN=TOKEN, TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1"),
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 60
        while text not in self.screen[self._seen :]:
            ready, _, _ = select.select([self._ours], [], [], max(0, end - time.monotonic()))
            assert ready, self.screen
            try:
                self.screen += os.read(self._ours, 4096).decode(errors="replace")
            except OSError:  # the program has ended
                raise AssertionError(self.screen) from None
        self._seen = self.screen.index(text, self._seen) + len(text)

    def close(self) -> None:
        if self.program.poll() is None:
            self.program.kill()
        self.program.wait(60)
        os.close(self._ours)


@pytest.fixture
def terminal(host: ContractServer, tmp_path: Path) -> Iterator[Terminal]:
    person = Terminal(host, tmp_path)
    yield person
    person.close()


def test_a_person_sees_tools_as_they_run_and_can_leave(
    host: ContractServer, terminal: Terminal, tmp_path: Path
) -> None:
    host.events = [
        START,
        ("tool_use", {"tool": "exec", "input": {"command": "ls -la"}}),
        ("tool_result", {"tool": "exec", "is_error": True, "preview": "exit code 2"}),
        ("chunk", {"text": "It failed."}),
        done(),
    ]
    terminal.wait_for("/help")
    terminal.wait_for("›")
    terminal.type("try\r")
    terminal.wait_for("It failed.")
    terminal.wait_for("›")
    for seen in ("exec", "ls -la", "exit code 2", "✗"):
        assert seen in terminal.screen
    terminal.type("/usage\r")
    terminal.wait_for("1,200")
    terminal.wait_for("›")
    terminal.type("/quit\r")
    assert terminal.program.wait(60) == 0
    history = tmp_path / "chat_history"
    assert "try" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_markdown_is_rendered_and_nothing_of_it_is_lost(host: ContractServer, terminal: Terminal) -> None:
    answer = "# Title\n\nSome **bold** `code` and a Vec<String>.\n\n"
    answer += "| a | b |\n|---|---|\n| `x\\|y` | z |\n\nThe end"
    host.events = [START, *(("chunk", {"text": piece}) for piece in answer), done()]
    terminal.wait_for("›")
    terminal.type("try\r")
    terminal.wait_for("The end")
    terminal.wait_for("›")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.screen)
    for seen in ("Title", "Some bold code and a Vec<String>.", "x|y"):
        assert seen in shown
    for gone in ("**", "# Title", "|---", "`"):
        assert gone not in shown


CONVERSATIONS = [
    {"conversation_id": f"conv-{digits}-1111-4111-8111-111111111111", "title": title, "message_count": count,
     "last_activity": "2026-03-01T09:00:00.000Z"}
    for digits, title, count in (("aaaa1111", None, 0), ("bbbb2222", "Invoices", 2), ("bbcc3333", "Cats", 4))
]  # fmt: skip
INVOICES = CONVERSATIONS[1]["conversation_id"]


def with_conversations(host: ContractServer) -> None:
    host.answers["GET", "/chat"] = (200, {"conversations": CONVERSATIONS, "next_cursor": None})
    messages = [
        {"sender_name": "User", "content": "What is *due*?"},
        {"sender_name": "Pico", "content": "Nothing."},
    ]
    host.answers["GET", f"/chat/{INVOICES}/messages"] = (200, {"messages": messages, "next_cursor": None})


def test_conversations_are_listed_and_opened_by_the_beginning_of_their_id(
    host: ContractServer, terminal: Terminal
) -> None:
    with_conversations(host)
    terminal.wait_for("›")
    terminal.type("/list\r")
    terminal.wait_for("bbbb2222")
    terminal.wait_for("Cats")
    terminal.wait_for("›")
    terminal.type("/open bb\r")
    terminal.wait_for("2 ids")
    terminal.wait_for("›")
    terminal.type("/open bbbb\r")
    terminal.wait_for("Nothing.")
    terminal.wait_for("›")
    host.events = [START, done()]
    terminal.type("hi\r")
    terminal.wait_for("›")
    terminal.type("/quit\r")
    assert terminal.program.wait(60) == 0
    assert host.requests[-1][2]["conversation_id"] == INVOICES


def test_the_newest_conversation_with_a_message_goes_on(host: ContractServer, tmp_path: Path) -> None:
    with_conversations(host)
    host.events = [START, done()]
    assert say(host, tmp_path, "hi", "--continue").returncode == 0
    assert host.requests[-1][2]["conversation_id"] == INVOICES
    assert say(host, tmp_path, "hi", "--continue", "--conversation", "x").returncode == 2
    host.answers["GET", "/chat"] = (200, {"conversations": CONVERSATIONS[:1], "next_cursor": None})
    assert "no conversation yet" in say(host, tmp_path, "hi", "--continue").stderr


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("paused", 1)])
def test_programs_get_the_hosts_answer(host: ContractServer, tmp_path: Path, status: str, code: int) -> None:
    answer = {"status": status, "conversation_id": "conv-1", "result": "**Hello**"}
    host.answers["POST", "/chat"] = (200, answer)
    ended = say(host, tmp_path, "hi", "--json")
    assert (ended.returncode, json.loads(ended.stdout), ended.stderr) == (code, answer, "")


def test_http_is_meant_where_an_address_has_no_scheme(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, ("chunk", {"text": "Hello"}), done()]
    place = host.url.removeprefix("http://")
    assert picoclaw(tmp_path, "chat", "hi", "--url", place, API_TOKEN=TOKEN).stdout == "Hello\n"
    assert picoclaw(tmp_path, "chat", "hi", PICOCLAW_URL=place, API_TOKEN=TOKEN).stdout == "Hello\n"


def test_talking_to_a_host_elsewhere_makes_no_home(host: ContractServer, tmp_path: Path) -> None:
    person = Terminal(host, tmp_path / "nobody")
    person.wait_for("›")
    person.type("/quit\r")
    assert person.program.wait(60) == 0
    person.close()
    assert not (tmp_path / "nobody").exists()


def test_ctrl_c_cancels_the_run_and_not_the_program(host: ContractServer, terminal: Terminal) -> None:
    host.events = [
        START,
        ("chunk", {"text": "working hard"}),
        ("wait for cancel", {}),
        done("error", error="Cancelled"),
    ]
    host.answers["POST", "/chat/conv-1/cancel"] = (202, {"status": "cancelling"})
    terminal.wait_for("›")
    terminal.type("try\r")
    terminal.wait_for("working hard")
    terminal.program.send_signal(signal.SIGINT)
    terminal.wait_for("Cancelled")
    terminal.wait_for("›")
    assert ("POST", "/chat/conv-1/cancel", None) in host.requests
    terminal.type("/new\r")
    terminal.wait_for("A new conversation begins.")
    terminal.wait_for("›")
    terminal.type("\x04")
    assert terminal.program.wait(60) == 0


def test_no_call_is_allowed_that_was_not_shown_whole_here(
    host: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 2000
    calls = {"appr-1": "git push", "appr-2": long}
    waits = [
        {"id": each, "kind": "approval", "tool": "exec", "input": {"command": said}, "input_sha256": each}
        for each, said in calls.items()
    ]
    host.answers["GET", "/approvals?status=pending&kind=approval&conversation_id=conv-1"] = (
        200,
        {"approvals": waits, "next_cursor": None},
    )
    for each in waits:
        host.answers["GET", f"/approvals/{each['id']}"] = (200, each)
        told = {"id": each["id"], "status": "allowed", "decided_by": {}, "run_id": None}
        host.answers["POST", f"/approvals/{each['id']}"] = (200, told)
    host.events = [START, *(("approval_request", each) for each in waits), done("paused", error="I wait")]
    with HostClient(Target(host.url, TOKEN)) as client:
        session = Chat(client, None, lively=False)
        session.say("hi")
        with pytest.raises(HostFault, match="once more allows it"):
            session.command("/allow")
        seen = capsys.readouterr().out
        assert (long in seen, "git push" in seen) == (True, False)
        assert not [path for method, path, _ in host.requests if method == "POST" and "approvals" in path]
        assert session.command("/allow")
    assert [path for method, path, _ in host.requests if method == "POST" and "approvals" in path] == [
        f"/approvals/{each}" for each in calls
    ]


def test_words_behind_a_command_are_not_lost(
    host: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"id": "appr-1", "kind": "approval", "input_sha256": "12ab"}
    waits = "/approvals?status=pending&kind=approval&conversation_id=conv-1"
    host.answers["GET", waits] = (200, {"approvals": [asked], "next_cursor": None})
    host.answers["GET", "/approvals/appr-1"] = (200, asked)
    told = {"id": "appr-1", "status": "denied", "decided_by": {}, "run_id": ""}
    host.answers["POST", "/approvals/appr-1"] = (200, told)
    host.events = [START, done()]
    with HostClient(Target(host.url, TOKEN)) as client:
        session = Chat(client, "conv-1", lively=False)
        with pytest.raises(HostFault, match="/allow takes no words, and did nothing"):
            session.command("/allow only this one")
        assert session.command("/deny use the copy")
        assert session.command("/new\nwhat is due\ntoday?")
    said = [body for method, _, body in host.requests if method == "POST"]
    assert said == [
        {"decision": "deny", "message": "use the copy", "input_sha256": "12ab"},
        {"message": "what is due\ntoday?", "stream": True, "show_tool_use": False},
    ]
    assert "A new conversation begins." in capsys.readouterr().out


def test_a_paused_run_goes_on_with_the_tokens_that_are_given(host: ContractServer) -> None:
    host.events = [START, done("paused", error="Needs more.")]
    with HostClient(Target(host.url, TOKEN)) as client:
        session = Chat(client, None, lively=False)
        session.say("hi")
        with pytest.raises(HostFault, match="as a number"):
            session.resume("many")
        host.events = [START, ("chunk", {"text": "Here I am"}), done()]
        assert session.command("/resume 20000")
        assert session.command("/resume")
    resumed = {"allow_tokens": 20000, "stream": True, "show_tool_use": False}
    plainly = {"stream": True, "show_tool_use": False}
    path = "/chat/conv-1/resume"
    assert host.requests[1:] == [("POST", path, resumed), ("POST", path, plainly)]


def test_resume_goes_on_with_a_conversation_and_leaves(host: ContractServer, tmp_path: Path) -> None:
    host.events = [START, ("chunk", {"text": "Here I am"}), done()]
    ended = say(host, tmp_path, "--conversation", "conv-1", "--resume")
    assert (ended.returncode, ended.stdout) == (0, "Here I am\n")
    assert host.requests == [("POST", "/chat/conv-1/resume", {"stream": True, "show_tool_use": False})]


def test_a_call_that_waits_is_allowed_and_its_run_followed(host: ContractServer) -> None:
    asked = {"id": "appr-1", "kind": "approval", "input_sha256": "12ab"}
    told = {"id": "appr-1", "status": "allowed", "decided_by": {}, "run_id": "run-2"}
    host.events = [START, done("paused", error="I wait for your answer")]
    with HostClient(Target(host.url, TOKEN)) as client:
        session = Chat(client, None, lively=False)
        with pytest.raises(HostFault, match="No call waits here"):
            session.command("/allow")
        session.say("hi")
        waits = "/approvals?status=pending&kind=approval&conversation_id=conv-1"
        host.answers["GET", waits] = (200, {"approvals": [asked], "next_cursor": None})
        host.answers["GET", "/approvals/appr-1"] = (200, asked)
        host.answers["POST", "/approvals/appr-1"] = (200, told)
        host.events = [START, ("chunk", {"text": "Here I am"}), done()]
        assert session.command("/deny")
    answer = {"decision": "deny", "input_sha256": "12ab"}
    assert ("POST", "/approvals/appr-1", answer) in host.requests
    assert host.requests[-1][:2] == ("GET", "/chat/conv-1/runs/run-2/events")
