"""Which calls run, wait for a person or are refused, by lists of rules."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from host.runs.permissions import Gate, Permissions, compiled
from shared.approval_values import call_digest
from shared.errors import InvalidInput
from shared.settings.sections import Permission

ROOT = Path("/work")


def gate(*lists: list[dict[str, str]], remembered: tuple[str, ...] = ()) -> Gate:
    rules = [compiled(tuple(Permission.model_validate(rule) for rule in said)) for said in lists]
    return Gate(rules, ROOT, remembered)


def ask(tool: str, match: str | None = None) -> dict[str, str]:
    return {"tool": tool, "do": "ask", **({} if match is None else {"match": match})}


def line(command: str) -> tuple[str, dict[str, Any]]:
    return "exec", {"command": command}


PUSH = gate([ask("exec", "git push *")])


@pytest.mark.parametrize(
    "command",
    [
        "git push origin main",
        "git push",
        "cd x && git push origin",
        "git   push\torigin",
        "true; git push -f || true",
        "(git push origin)",
        "echo $(git push origin)",
        "sh -c 'git push origin'",
        "sudo git push origin",
        "env A=1 git push origin",
        "eval git push origin",
        "'git' \"push\" origin",
        "g\\it push origin",
        'git "$verb" origin',
        "git $(echo push) origin",
        "$cmd push origin",
        "if true; then git push origin; fi",
        "for r in a b; do git push $r; done",
        "git push origin 'unclosed",
        "git push \\\n origin",
        "ls | xargs git push origin",
        "A=1 git push origin",
        "bash -c -- 'git push origin'",
        "sudo " * 9 + "git push origin",
        reduce(lambda inner, _: f"sh -c {quote(inner)}", range(6), "git push origin"),
    ],
)
def test_a_simple_command_is_asked_about_wherever_it_stands(command: str) -> None:
    assert PUSH.judge(*line(command)) == "ask"


@pytest.mark.parametrize(
    "command",
    [
        "git status",
        "git pull && git log",
        "echo git push",
        "echo $HOME",
        "grep 'git push origin' x",
        "gitk push x",
    ],
)
def test_other_commands_run(command: str) -> None:
    assert PUSH.judge(*line(command)) == "allow"


def test_each_command_of_a_line_is_judged_and_the_strictest_counts() -> None:
    rules = gate([{"tool": "exec", "match": "git *", "do": "allow"}, {"tool": "exec", "do": "ask"}])
    assert rules.judge(*line("git log")) == "allow"
    assert rules.judge(*line("git log; rm x")) == "ask"
    assert rules.judge(*line('git "$x"')) == "allow"
    assert rules.judge(*line('"$x" log')) == "ask"
    assert rules.judge(*line("git log 'unclosed")) == "ask"
    assert rules.judge("exec", {"action": "list"}) == "ask"


def test_the_first_rule_of_a_list_and_the_strictest_list_count() -> None:
    first = gate([ask("read_file"), {"tool": "*", "do": "deny"}])
    assert (first.judge("read_file", {}), first.judge("spawn", {})) == ("ask", "deny")
    both = gate([{"tool": "*", "do": "allow"}], [ask("spawn")], [{"tool": "spawn", "do": "allow"}])
    assert (both.judge("spawn", {}), both.judge("read_file", {})) == ("ask", "allow")
    assert gate().judge("exec", {}) == "allow"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../etc/passwd",
        "a/../../etc//passwd",
        "/etc/./x/../passwd",
        "//etc/passwd",
        "~/../x/passwd",
    ],
)
def test_paths_are_resolved_before_they_are_judged(path: str) -> None:
    rules = gate([{"tool": "write_file", "match": "/etc/*", "do": "deny"}])
    assert rules.judge("write_file", {"path": path}) == "deny"
    assert rules.judge("write_file", {"path": "etc/passwd"}) == "allow"


def test_a_path_in_the_workspace_is_known_by_its_short_name_too() -> None:
    rules = gate([ask("write_file", "notes/*")])
    for path in ("notes/a", "/work/notes/a", "./notes/../notes/a/b"):
        assert rules.judge("write_file", {"path": path}) == "ask"
    assert rules.judge("write_file", {"path": "other/notes/a"}) == "allow"
    assert gate([ask("write_file", "/work/*")]).judge("write_file", {"path": "~1/a"}) == "ask"
    assert gate([ask("list_dir", "/work")]).judge("list_dir", {"path": None}) == "ask"
    assert gate([ask("write_file", "~/notes/*")]).judge("write_file", {"path": "~//b/../notes/a"}) == "ask"


def test_a_file_that_is_sent_is_judged_by_its_path() -> None:
    rules = gate([{"tool": "send_file", "match": "secrets/*", "do": "deny"}])
    assert rules.judge("send_file", {"path": "./secrets/key", "caption": "look"}) == "deny"
    assert rules.judge("send_file", {"path": "report", "caption": "secrets/*"}) == "allow"


def test_calls_of_other_servers_are_judged_by_their_whole_input() -> None:
    rules = gate([ask("mcp__github__*", '*"repo":"prod"*'), {"tool": "mcp__mail__send", "do": "deny"}])
    assert rules.judge("mcp__github__merge", {"repo": "prod", "number": 1}) == "ask"
    assert rules.judge("mcp__github__merge", {"repo": "test"}) == "allow"
    assert rules.judge("mcp__mail__send", {}) == "deny"
    said = gate([ask("mcp__picoclaw__send_message", "*money*")])
    assert said.judge("mcp__picoclaw__send_message", {"text": "send\nmoney\nnow"}) == "ask"


def test_a_tool_that_never_runs_is_not_offered() -> None:
    rules = gate([{"tool": "exec", "match": "git *", "do": "allow"}, {"tool": "exec", "do": "deny"}])
    assert not rules.removes("exec")
    assert gate([{"tool": "ex*", "do": "deny"}]).removes("exec")
    assert not gate([{"tool": "exec", "match": "rm *", "do": "deny"}]).removes("exec")
    assert gate([], [{"tool": "*", "do": "deny"}]).removes("spawn")


def test_isolated_tasks_ask_people_only_where_a_rule_names_that() -> None:
    assert not gate([{"tool": "*", "do": "allow"}]).names_questions()
    assert gate([{"tool": "ask_person", "do": "allow"}]).names_questions()


def checked(*said: dict[str, str]) -> None:
    rules = [Permission.model_validate(rule) for rule in said]
    names = {"exec", "web_search", "mcp__picoclaw__send_message"}
    Permissions((), lambda: names, ["github", "my__own"]).check(rules, "p")


@pytest.mark.parametrize(
    "tool",
    [
        *("exce", "mcp__gitlab__x", "mcp__picoclaw__nothing", "web_fetch"),
        *("mcp__github", "mcp__github__", "mcp__github__a.b", "client__"),
    ],
)
def test_a_tool_that_nothing_has_is_named(tool: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^p\.1\.tool: there is no tool named {tool}"):
        checked(ask("exec"), ask(tool))


@pytest.mark.parametrize(
    "tool", ["exec", "mcp__github__x", "ex*", "mcp__picoclaw__send_message", "mcp__my__own__x", "client__x"]
)
def test_tools_that_there_are_and_patterns_pass(tool: str) -> None:
    checked(ask(tool)) if tool != "*" else None


@pytest.mark.parametrize("tool", ["web_search", "web_*"])
def test_what_the_models_api_runs_cannot_wait(tool: str) -> None:
    with pytest.raises(InvalidInput, match=r"^p: web_search runs at the model's API"):
        checked(ask(tool))
    checked({"tool": "web_search", "do": "deny"}, ask("*"))


@pytest.mark.parametrize("tool", ["web_search", "web_*"])
@pytest.mark.parametrize("do", ["allow", "ask", "deny"])
def test_what_the_models_api_runs_is_not_judged_by_what_it_does(tool: str, do: str) -> None:
    with pytest.raises(InvalidInput, match=r"^p\.0\.match: web_search runs at the model's API"):
        checked({"tool": tool, "match": "*weather*", "do": do})
    checked({"tool": "*", "match": "*weather*", "do": "deny"})
    but_some = gate([{"tool": "*", "match": "*weather*", "do": "allow"}, {"tool": "*", "do": "deny"}])
    assert (but_some.removes("web_search"), but_some.removes("exec")) == (True, False)


def test_a_remembered_yes_answers_what_would_be_asked_and_opens_nothing_that_is_denied() -> None:
    call = line("git push origin")
    yes = (call_digest(*call),)
    assert gate([ask("exec")], remembered=yes).judge(*call) == "allow"
    assert gate([ask("exec")], remembered=yes).judge(*line("git push elsewhere")) == "ask"
    denied = gate([{"tool": "exec", "do": "deny", "match": "git push *"}, ask("exec")], remembered=yes)
    assert denied.judge(*call) == "deny"
