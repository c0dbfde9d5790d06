"""Permissions: which calls run, which wait for a person, which are refused. The strictest list counts.

A rule on a tool's name is hard. A rule on a command's text is a courtesy, as the guard is: the kernel is the
wall.
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

from host.agent.own_tools import FINAL_ANSWER as FINAL_ANSWER
from host.agent.toolbox import Verdict
from host.mcp_clients.listed_tools import NAME
from host.sandbox.shell import Command, parse
from host.tools.without_sandbox import ASK_PERSON, FETCH, PREFIX, SEARCH
from shared import jsons
from shared.approval_values import call_digest
from shared.errors import InvalidInput
from shared.settings.sections import Permission

STRICTER: Final[Sequence[Verdict]] = ("allow", "ask", "deny")
COMMAND: Final = "exec"
PATHS: Final = frozenset({"read_file", "write_file", "edit_file", "append_file", "list_dir", "send_file"})
SAID: Final = ("url", "text", "question", "task")
"""Arguments that say what a call does, of tools that have no command and no path."""
UNSEEN: Final = frozenset({SEARCH, FETCH})
"""What runs at the model's API: nobody sees a call of it before it is made."""
OTHERS: Final = "mcp__"
OWN: Final = "mcp__picoclaw__"
_WILD: Final = re.compile(r"[*?\[]")


class Rule:
    """One rule, compiled."""

    def __init__(self, said: Permission) -> None:
        self.do: Verdict = said.do
        self.tool = said.tool
        self.has_match = said.match is not None
        self._names = re.compile(translate(said.tool)).match
        self._glob = said.match or ""
        self._fits = re.compile(translate(self._glob)).match
        self.fixed = _WILD.split(self._glob, maxsplit=1)[0]

    def names(self, tool: str) -> bool:
        """Return whether it is about this tool."""
        return self._names(tool) is not None

    def is_about(self, bare: str) -> bool:
        """Return whether a text that begins as ``fixed`` fits; ``bare`` is the text and a space.

        So "git push *" is about a bare "git push" too.
        """
        return bool(not self.has_match or self._fits(bare[:-1]) or self._fits(bare))

    def may_be_about(self, command: Command) -> bool:
        """Return whether it fits a command, some words of which only running tells: they may be anything."""
        if not self.has_match:
            return True
        known = " ".join(word for word in command.words[: command.words.index(None)] if word is not None)
        if self.do == "allow":
            return self._glob == f"{self.fixed}*" and f"{known} ".startswith(self.fixed)
        return known.startswith(self.fixed) or self.fixed.startswith(known)


class Gate:
    """What the permissions say of one run's calls. ``remembered``: digests of calls that need no question."""

    def __init__(
        self, lists: Sequence[tuple[Rule, ...]], root: Path, remembered: Collection[str] = ()
    ) -> None:
        self._lists = [rules for rules in lists if rules]
        self._root = root
        self._remembered = remembered

    def judge(self, tool: str, arguments: Mapping[str, Any]) -> Verdict:
        """Return what becomes of a call."""
        lists = [_naming(rules, tool) for rules in self._lists]
        # A run's own answer is nothing that a person allows, whatever the rules say of all tools.
        if tool == FINAL_ANSWER or not any(lists):
            return "allow"
        verdict = _strictest(self._one(rules, tool, arguments) for rules in lists)
        if verdict == "ask" and call_digest(tool, arguments) in self._remembered:
            return "allow"
        return verdict

    def removes(self, tool: str) -> bool:
        """Return whether no call of the tool can run, so that it need not be offered."""
        lists = () if tool == FINAL_ANSWER else self._lists
        named = ([rule for rule in rules if rule.names(tool)] for rules in lists)
        firsts = (next((r for r in rules if not (r.has_match and tool in UNSEEN)), None) for rules in named)
        return any(rule is not None and rule.do == "deny" and not rule.has_match for rule in firsts)

    def names_questions(self) -> bool:
        """Return whether a rule names the tool that asks people: then isolated tasks have it too."""
        rules = (rule for rules in self._lists for rule in rules if rule.names(ASK_PERSON))
        return any(rule.tool.strip("*") for rule in rules) and not self.removes(ASK_PERSON)

    def _one(self, rules: Sequence[Rule], tool: str, arguments: Mapping[str, Any]) -> Verdict:
        command = arguments.get("command")
        if tool == COMMAND and isinstance(command, str) and any(rule.has_match for rule in rules):
            return self._of_line(rules, command)
        texts = self._texts(tool, arguments)
        return _first(rules, texts) if texts else _unclear(rules)

    def _of_line(self, rules: Sequence[Rule], line: str) -> Verdict:
        """Judge each simple command by itself; a line that can't be parsed meets all that is strict."""
        script = parse(line)
        commands = [command for command in script.commands if command.words]
        if not script.is_whole or script.has_errors or any(command.words[0] is None for command in commands):
            return _unclear(rules)
        if not commands:
            return _first(rules, [line.strip()])
        return _strictest(_of_command(rules, command) for command in commands)

    def _texts(self, tool: str, arguments: Mapping[str, Any]) -> list[str]:
        if tool.startswith(OTHERS) and not tool.startswith(OWN):
            return [jsons.dumps(arguments)]
        if tool in PATHS:
            return self._paths(str(arguments.get("path") or "."))
        said = next((arguments[name] for name in SAID if isinstance(arguments.get(name), str)), None)
        return [jsons.dumps(arguments) if said is None else said]

    def _paths(self, said: str) -> list[str]:
        """Return a path as it is known from the root of all, and from the workspace.

        Nothing is known of one that leads out of ``~``: where that lies, the sandbox alone knows.
        """
        if said == "~" or said.startswith("~/"):
            leads_out = f"{os.path.normpath(said[1:].lstrip('/'))}/".startswith("../")
            return [] if leads_out else [os.path.normpath(said)]
        # Two slashes at the beginning would stay two.
        whole = os.path.normpath(f"//{self._root / said}")
        inside = os.path.relpath(whole, self._root)
        return [whole] if f"{inside}/".startswith("../") else [whole, inside]


class Permissions:
    """The operator's permissions, and what there is that rules may name."""

    def __init__(
        self, said: Sequence[Permission], names: Callable[[], Collection[str]], servers: Collection[str]
    ) -> None:
        # Only now wanted, and never where there are no rules: to make all tools takes time.
        self._names = cache(names)
        self._servers = frozenset(servers)
        self.check(said, "permissions")
        self.rules = compiled(tuple(said))

    def check(self, said: Sequence[Permission], field: str, servers: Collection[str] = ()) -> None:
        """Raise InvalidInput for a rule about no call, or about a tool that can't wait for a person."""
        for number, rule in enumerate(said):
            if "*" not in rule.tool and not self._has(rule.tool, servers):
                raise InvalidInput(f"{field}.{number}.tool: there is no tool named {rule.tool}")
            if rule.match is not None and not rule.match.strip():
                raise InvalidInput(f"{field}.{number}.match: must not be blank; left out it is all calls")
            judged = rule.match is not None and rule.tool.strip("*")
            for tool in filter(Rule(rule).names, UNSEEN.intersection(self._names()) if judged else ()):
                what = f"{tool} runs at the model's API, where nobody sees what a call does; leave match out"
                raise InvalidInput(f"{field}.{number}.match: {what}")
        self._check_unseen(said, field)

    def _check_unseen(self, said: Sequence[Permission], field: str) -> None:
        gate = Gate([compiled(tuple(said))], Path("/"))
        for tool in sorted(UNSEEN, reverse=True):
            if said and tool in self._names() and gate.judge(tool, {}) == "ask":
                raise InvalidInput(
                    f"{field}: {tool} runs at the model's API and can't wait for a person; "
                    f'put {{"tool": "{tool}", "do": "deny"}} (or "allow") before the rule that asks'
                )

    def _has(self, tool: str, servers: Collection[str]) -> bool:
        if tool in self._names():
            return True
        there = (PREFIX, *(f"{OTHERS}{server}__" for server in (*self._servers, *servers)))
        # A server's tool that has another name here than at the server goes by the one that it has here.
        return bool(NAME.fullmatch(tool)) and any(tool.startswith(each) and tool != each for each in there)


def rules_of(said: Iterable[Mapping[str, Any]]) -> tuple[Permission, ...]:
    """Return rules that were kept as JSON."""
    return tuple(map(Permission.model_validate, said))


@lru_cache(maxsize=64)
def compiled(said: tuple[Permission, ...]) -> tuple[Rule, ...]:
    """Return rules that judge; requests send the same ones again and again."""
    return tuple(map(Rule, said))


@lru_cache(maxsize=1024)
def _naming(rules: tuple[Rule, ...], tool: str) -> tuple[Rule, ...]:
    """Return those of the rules that are about a tool."""
    return tuple(rule for rule in rules if rule.names(tool))


def _first(rules: Sequence[Rule], texts: Sequence[str]) -> Verdict:
    """Return what the first rule says that is about one of the texts."""
    bares = [f"{text} " for text in texts]
    for rule in rules:
        # Most rules are about something else, which their first characters tell.
        for bare in bares:
            if bare.startswith(rule.fixed) and rule.is_about(bare):
                return rule.do
    return "allow"


def _unclear(rules: Sequence[Rule]) -> Verdict:
    """Return what the first rule says that counts for a call of which it isn't known what it does."""
    return next((rule.do for rule in rules if rule.do != "allow" or not rule.has_match), "allow")


def _of_command(rules: Sequence[Rule], command: Command) -> Verdict:
    if None not in command.words:
        return _first(rules, [command.text])
    return next((rule.do for rule in rules if rule.may_be_about(command)), "allow")


def _strictest(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=STRICTER.index, default="allow")
