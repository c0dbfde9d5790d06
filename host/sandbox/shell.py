"""A command line as a shell reads it: commands with their literal words, redirections and functions.

Parsed by tree-sitter's grammar for bash, loaded at first use. A word that depends on anything at run time
(variables, substitutions) is None: nobody can know it here.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tree_sitter import Node, Parser, Tree

Word = str | None
_MAX_NESTING: Final = 4
_MAX_WRAPPERS: Final = 8
LONGEST: Final = 32 * 1024
"""Bytes of a line that is looked at."""
TIME_S: Final = 0.05
"""Processor time for one; most take less than a millisecond, made-up ones hours and all memory."""
STEPS: Final = 64
"""Between two looks at the clock, each of which costs as much as a step."""
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash", "ksh"})
_WRAPPERS: Final = re.compile(
    "sudo|doas|env|nohup|time|command|exec|nice|timeout|stdbuf|setsid|xargs|busybox|builtin|ionice"
)
"""Commands that run another command given in their arguments."""
# what follows these is asked about, not run
_ASKS: Final = frozenset({("command", "-v"), ("command", "-V"), ("sudo", "-V"), ("time", "-V")})
_OPTIONS_WITH_VALUES: Final = {
    "env": frozenset({"-u", "-C", "--unset", "--chdir"}),
    "timeout": frozenset({"-s", "-k", "--signal", "--kill-after"}),
    "sudo": frozenset({"-u", "-g"}),
    "exec": frozenset({"-a"}),
    "nice": frozenset({"-n"}),
    "ionice": frozenset({"-c", "-n"}),
    "xargs": frozenset({"-I", "-n", "-P", "-L", "-d", "-a", "-s", "-E"}),
    "stdbuf": frozenset({"-i", "-o", "-e"}),
}
_FIND_RUNS: Final = frozenset({"-exec", "-execdir", "-ok", "-okdir"})
# what makes a function's calls of itself conditional; a bomb has no condition
_CONDITIONS: Final = re.compile("list|test_command|(if|case|for|while)_statement")
_DURATION: Final = re.compile(r"\d+(\.\d+)?[smhd]?")
_KEYWORDS: Final = (
    "if|then|else|elif|fi|for|while|until|do|done|case|esac|select|function|in|coproc|time"
    "|declare|typeset|export|readonly|local|unset|unsetenv"
)
_PLAIN: Final = re.compile(rf"(?!(?:{_KEYWORDS})(?: |\Z))[A-Za-z_./][\w./,:-]*(?: +[\w./,:=-]+)*", re.ASCII)
"""A command of nothing but words, which needs no grammar; most are, and what joins them."""
_BETWEEN: Final = re.compile(r" *(?:&&|\|\||[;|]) *")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=.*", re.S)


@dataclass(frozen=True, slots=True)
class Command:
    """A simple command: its literal words, and the targets it redirects output and input to."""

    words: tuple[Word, ...]
    redirects: tuple[Word, ...] = ()

    @property
    def name(self) -> str:
        """The command's name without its directory, empty if it is not literal."""
        first = self.words[0] if self.words else None
        return first.rpartition("/")[2] if first else ""

    @property
    def arguments(self) -> tuple[Word, ...]:
        """The words after the name."""
        return self.words[1:]

    @property
    def text(self) -> str:
        """The literal words joined, for patterns."""
        return " ".join(word for word in self.words if word is not None)


UNKNOWN: Final = Command((None,))
"""What stands deeper in a line than it is looked at."""


@dataclass(slots=True)
class Script:
    """All commands of a line as they are written, its functions, and those that multiply themselves.

    ``is_whole``: the line was looked at to its end. ``has_errors``: the grammar can't make sense of it all.
    """

    commands: list[Command] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    fork_bombs: list[str] = field(default_factory=list)
    is_whole: bool = True
    has_errors: bool = False


@lru_cache(maxsize=16)  # permissions and guard look at the same line, one after the other
def parse(line: str) -> Script:
    """Parse a command line; what the grammar can't make sense of is left out. Nobody changes the result."""
    script = Script()
    try:
        _parser()  # loaded before the time counts
        _Look(script, line, 0, time.thread_time() + TIME_S).take()
    except _TooMuch:
        script.is_whole = False
    return script


class _TooMuch(Exception):
    pass


class _Look:
    """One look at a line, or at a script in it; what is found goes into ``script``. Raises ``_TooMuch``."""

    def __init__(self, script: Script, line: str, nesting: int, until: float) -> None:
        self._script = script
        self._line = line
        self._source = line.encode("utf-8", "replace")
        self._nesting = nesting
        self._until = until
        self._steps = 0

    def take(self) -> None:
        """Look at all of it."""
        parts = _BETWEEN.split(self._line) if len(self._source) <= LONGEST else [""]
        if all(map(_PLAIN.fullmatch, parts)):
            for part in parts:
                self._found(Command(tuple(part.split())))
            return
        root = self._tree().root_node
        self._script.has_errors |= root.has_error
        for node in self._walk(root):
            if node.type == "function_definition":
                self._script.functions.add(self._name_of(node))
                if self._multiplies(node):
                    self._script.fork_bombs.append(self._name_of(node))
            elif node.type in ("command", "redirected_statement"):
                self._add(node)

    def _tree(self) -> Tree:
        # The parser takes a NUL for an end that never comes; no command can have one (execve(2)).
        if len(self._source) > LONGEST or b"\0" in self._source:
            raise _TooMuch
        try:
            return _parser().parse(
                lambda offset, _: self._source[offset:],
                progress_callback=lambda *_: time.thread_time() > self._until,
            )
        except ValueError:  # stopped
            _parser().reset()
            raise _TooMuch from None

    def _check_time(self) -> None:
        self._steps += 1
        if self._steps % STEPS == 0 and time.thread_time() > self._until:
            raise _TooMuch

    def _walk(self, node: Node) -> Iterator[Node]:
        pending = [node]
        while pending:
            self._check_time()
            current = pending.pop()
            yield current
            pending.extend(reversed(current.children))

    def _text(self, node: Node | None) -> str:
        self._check_time()
        if node is None:
            return ""
        return self._source[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def _add(self, node: Node) -> None:
        if node.type == "redirected_statement":
            self._script.commands.append(Command((), tuple(self._redirect_targets(node))))
            return
        words = tuple(self._literal(child) for child in node.children if _is_word(child))
        self._found(Command(words, tuple(self._redirect_targets(node))))

    def _found(self, command: Command) -> None:
        run = [command, *_inner(command)]
        self._script.commands += run
        for text in (text for each in run for text in _inner_scripts(each)):
            if self._nesting < _MAX_NESTING:
                _Look(self._script, text, self._nesting + 1, self._until).take()
            else:
                self._script.commands.append(UNKNOWN)

    def _redirect_targets(self, node: Node) -> Iterator[Word]:
        for child in node.children:
            if child.type == "file_redirect":
                target = child.child_by_field_name("destination")
                if target is not None:
                    yield self._literal(target)

    def _literal(self, node: Node) -> Word:
        """Return what a word means, or None if that is known only at run time."""
        text = self._text(node)
        match node.type:
            case "command_name" | "concatenation":
                return self._joined(node.children)
            case "word":
                return re.sub(r"\\(.)", r"\1", text.replace("\\\n", ""), flags=re.S)
            case "number" | "string_content" | "test_operator":
                return text
            case "raw_string":
                return _quoted(text[1:-1])
            case "ansi_c_string":
                return _quoted(_ansi(text[2:-1]))
            case "string":
                return _quoted(self._joined(child for child in node.children if child.type != '"'))
        return None

    def _joined(self, nodes: Iterable[Node]) -> Word:
        parts = [self._literal(node) for node in nodes]
        return None if None in parts else "".join(part for part in parts if part is not None)

    def _name_of(self, node: Node) -> str:
        return self._text(node.child_by_field_name("name"))

    def _multiplies(self, function: Node) -> bool:
        """Return whether a function pipes itself into itself, or starts itself in the background."""
        name, body = self._name_of(function), function.child_by_field_name("body")
        if not name or body is None:
            return False
        nodes = list(self._walk(body))
        calls = sum(1 for node in nodes if node.type == "command" and self._name_of(node) == name)
        concurrent = any(node.type in ("&", "|") for node in nodes)
        return concurrent and calls > 1 and not any(_CONDITIONS.fullmatch(node.type) for node in nodes)


@cache
def _parser() -> Parser:
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


def _is_word(node: Node) -> bool:
    return node.is_named and node.type not in (
        "variable_assignment",
        "file_redirect",
        "herestring_redirect",
        "heredoc_redirect",
    )


def _quoted(text: Word) -> Word:
    """Tell a quoted tilde, which is a name, from one that means a home."""
    return f"./{text}" if text is not None and text.startswith("~") else text


def _ansi(text: str) -> Word:
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError:
        return None


def _inner(command: Command) -> Iterator[Command]:
    """Yield the command that a wrapper (sudo, env, xargs ...) or find runs."""
    words = command.words
    if command.name == "find":
        runs = next((place for place, word in enumerate(words) if word in _FIND_RUNS), len(words))
        yield from [Command(words[runs + 1 :])] if words[runs + 1 :] else ()
        return
    wrapped = 0
    while words and words[0] is not None and _WRAPPERS.fullmatch(name := words[0].rpartition("/")[2]):
        wrapped += 1
        if (name, *words[1:2]) in _ASKS:
            return
        if wrapped > _MAX_WRAPPERS:
            yield UNKNOWN
            return
        words = _without_options(words[1:], _OPTIONS_WITH_VALUES.get(name, frozenset()))
        if words:
            yield Command(words)


def _without_options(words: tuple[Word, ...], with_values: frozenset[str]) -> tuple[Word, ...]:
    while words and words[0] is not None and _is_wrapper_option(words[0]):
        words = words[2 if words[0] in with_values else 1 :]
    return words


def _is_wrapper_option(word: str) -> bool:
    return bool(word.startswith("-") or _ASSIGNMENT.fullmatch(word) or _DURATION.fullmatch(word))


def _inner_scripts(command: Command) -> Iterator[str]:
    """Yield literal scripts handed to a shell or to eval."""
    words = [word for word in command.words if word is not None]
    if len(words) != len(command.words) or not words:
        return
    if command.name in _SHELLS:
        for position, word in enumerate(words[1:-1], 1):
            if re.fullmatch(r"-[a-z]*c", word):
                yield next((each for each in words[position + 1 :] if not each.startswith("-")), "")
                return
    if command.name == "eval":
        yield " ".join(words[1:])
