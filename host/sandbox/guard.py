"""The guard: refuses what is certainly meant to do harm, with a sentence, before the kernel does.

A courtesy to the model, never the wall. It judges parsed commands, not text; what only running can tell
(variables, substitutions, scripts in files) is left to the kernel.
"""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from host.sandbox.policy import SandboxPolicy
from host.sandbox.shell import Command, parse
from host.sandbox.worker.confine.grants import SYSTEM
from shared.errors import Misconfigured

OUTSIDE: Final = "Command blocked by safety guard (path outside working dir)"
DANGEROUS: Final = "Command blocked by safety guard (dangerous pattern detected)"

_ENDINGS: Final = re.compile("shutdown|reboot|poweroff|halt|format|diskpart|wipefs|mkswap|mkfs.*")
_SYSTEMD: Final = {
    "init": ("0", "6"),
    "telinit": ("0", "6"),
    "systemctl": ("poweroff", "reboot", "halt", "kexec"),
}
_BLOCK_DEVICE: Final = re.compile(
    r"/dev/(sd|hd|vd|xvd|nvme|mmcblk|loop|md|dm-|ram|zram|nbd|sr|disk/|mapper/|mem$|kmem$|port$)"
)
_OVERWRITE: Final = frozenset({"tee", "truncate", "shred", "sponge", "blkdiscard"})
_COPY: Final = frozenset({"cp", "mv", "install", "rsync"})
_SAFE_DEVICE: Final = re.compile(
    r"/dev/(null|zero|full|random|urandom|stdin|stdout|stderr|tty|ptmx|(fd|pts|shm)(/.*)?)"
)
_PATH_COMMANDS: Final = re.compile(
    "cat|tac|head|tail|less|more|nl|od|xxd|hexdump|strings|ls|dir|stat|file|wc|cp|mv|rm|rmdir|touch|mkdir|ln"
    r"|tee|source|\.|shred|unlink|truncate|readlink|realpath|md5sum|sha256sum|base64|cmp|diff"
)
"""Commands whose plain arguments are paths, and nothing but paths."""
_MOVES: Final = frozenset({"cd", "pushd", "popd"})
_SYSTEM: Final = (*SYSTEM, "/opt")
_KERNEL: Final = ("/etc", "/proc", "/sys", "/dev", "/run")
_FORCE: Final = re.compile(r"-[A-Za-z]*[fF][A-Za-z]*|--force")
_RECURSIVE: Final = re.compile(r"-[A-Za-z]*[rR][A-Za-z]*|--recursive")
_SYMBOLIC: Final = re.compile(r"-[a-zA-Z]*s[a-zA-Z]*|--symbolic")
_KEYS: Final = re.compile(
    r"~/+\.(ssh|aws|gnupg|kube|docker|netrc|picoclaw|git-credentials|pgpass|azure|password-store)(/.*)?"
)
# HOME is private and new; a script that puts something there itself means that
_MAKERS: Final = frozenset({"mkdir", "touch", "tee", "rm", "rmdir", "ssh-keygen"})
_HOMES: Final = ("~/", "~+", "~-")  # the home, and the present and previous directory
_SEPARATOR: Final = re.compile(r"[;&|()\n]+")
_GLOB: Final = re.compile(r"[*?\[{]")


class Guard:
    """Judges command lines for one workspace.

    Raises ``Misconfigured`` on a pattern that is no regular expression.
    """

    def __init__(self, policy: SandboxPolicy, workspace: Path) -> None:
        self._deny = _compiled(policy.deny_patterns)
        self._allow = _compiled(policy.allow_patterns)
        self._strict = policy.strict_guard
        self._confined = policy.restrict_to_workspace
        self._workspace = workspace
        self._writable = [str(workspace), private(), *map(_fixed_part, policy.write_paths)]
        opened = [*map(_fixed_part, policy.read_paths), *map(str, policy.skill_paths)]
        readable = [*self._writable, *opened, *_SYSTEM, *_KERNEL]
        self._readable = ["/"] if policy.allow_read_outside_workspace else readable

    def refusal(self, line: str, cwd: str | None = None) -> str | None:
        """Return why a command line is refused, or None."""
        script = parse(line)
        if not script.is_whole and self._denies_some_of(line):
            return DANGEROUS
        commands = [command for command in script.commands if not self._is_allowed(command.text)]
        bombs = [name for name in script.fork_bombs if not self._is_allowed(name)]
        # where a script changes directory, nobody can know here what ".." means in it
        moves = any(command.name in _MOVES for command in commands)
        start = None if moves else os.path.join(self._workspace, cwd or ".")  # noqa: PTH118 - lexical on purpose
        if bombs or any(self._is_dangerous(command, script.functions, start) for command in commands):
            return DANGEROUS
        if self._confined and (_reads_a_home(commands) or any(self._strays(c, start) for c in commands)):
            return OUTSIDE
        return None

    def _denies_some_of(self, line: str) -> bool:
        """Try the operator's patterns on a line that is too much to be parsed."""
        parts = [part.strip() for part in _SEPARATOR.split(line)] if self._deny else []
        return any(pattern.search(part) for part in parts for pattern in self._deny)

    def _is_allowed(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self._allow)

    def _is_dangerous(self, command: Command, functions: set[str], start: str | None) -> bool:
        return (
            any(pattern.search(command.text) for pattern in self._deny)
            or (command.name not in functions and _ends_or_formats(command))
            or _writes_device(command)
            or (_removes_trees(command) and any(self._is_foreign(word, start) for word in _plain(command)))
            or (self._strict and _is_listed(command))
        )

    def _is_foreign(self, target: str, start: str | None) -> bool:
        """Return whether removing ``target`` is certainly not meant for the workspace."""
        plain = os.path.normpath(target)
        if plain.split("/")[0] == "..":
            if start is None:
                return plain.rstrip("/*.") == ""
            if _inside(str(self._workspace), [os.path.normpath(f"{start}/{target}")]):
                return True
        return target.rstrip("/*") == "~" or _is_outside(target, start, self._writable)

    def _strays(self, command: Command, start: str | None) -> bool:
        paths = [target for target in command.redirects if target is not None]
        if _PATH_COMMANDS.fullmatch(command.name):
            paths += _paths_of(command)
        return any(_is_outside(path, start, self._readable) for path in paths)


def _compiled(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise Misconfigured(f"{error.pattern!r} is not a regular expression: {error.msg}") from None


def _is_outside(path: str, start: str | None, roots: Iterable[str]) -> bool:
    """Return whether a path leads out of all ``roots``, as far as that is known here."""
    if path.startswith("~"):
        return not path.startswith(_HOMES) and path != "~"
    if not path.startswith("/"):
        if start is None or ".." not in path.split("/"):
            return False
        path = f"{start}/{path}"
    return not _inside(os.path.normpath(_fixed_part(path)), roots)


def private() -> str:
    """Return how the path of every conversation's TMPDIR begins."""
    return f"{tempfile.gettempdir()}/picoclaw-"


def _fixed_part(path: str) -> str:
    """Return the path up to the directory where wildcards begin; several slashes at its start are one."""
    path = re.sub("^/+", "/", path)
    match = _GLOB.search(path)
    return path if match is None else path[: match.start()].rpartition("/")[0] or "/"


def _inside(path: str, roots: Iterable[str]) -> bool:
    return any(
        root == "/" or path == root or path.startswith(root if root == private() else root.rstrip("/") + "/")
        for root in roots
    )


def _reads_a_home(commands: Iterable[Command]) -> bool:
    """Return whether keys or credentials of a home are read that the script did not make."""
    private = {command.name for command in commands if any(map(_KEYS.fullmatch, _paths_of(command)))}
    return not private & _MAKERS and any(map(_PATH_COMMANDS.fullmatch, private))


def _ends_or_formats(command: Command) -> bool:
    """Return whether a command ends the machine or formats a disk (a script of one's own may be so named)."""
    place = (command.words[0] or "").rpartition("/")[0] if command.words else ""
    asks = command.arguments[:1] in (("--help",), ("--version",))
    if asks or (place and not _inside(place, _SYSTEM)):
        return False
    wanted = next((word for word in command.arguments if word and not word.startswith("-")), "other")
    return bool(_ENDINGS.fullmatch(command.name)) or wanted in _SYSTEMD.get(command.name, ())


def _paths_of(command: Command) -> list[str]:
    """Return the arguments that are paths; what a symbolic link holds is only text, and so is a label."""
    words = [word for word in command.arguments if word is not None]
    while "--label" in words:
        at = words.index("--label")
        del words[at : at + 2]
    plain = [word for word in words if not word.startswith("-")]
    symbolic = command.name == "ln" and any(map(_SYMBOLIC.fullmatch, words))
    return plain[-1:] if symbolic and len(plain) > 1 else plain


def _words(command: Command) -> list[str]:
    return [word for word in command.arguments if word is not None]


def _plain(command: Command) -> list[str]:
    return [word for word in _words(command) if not word.startswith("-")]


def _removes_trees(command: Command) -> bool:
    words = _words(command) if command.name == "rm" else []
    return any(map(_RECURSIVE.fullmatch, words)) and any(map(_FORCE.fullmatch, words))


def _is_listed(command: Command) -> bool:
    """Return whether a command is of the strict list, wherever it works and whoever made it."""
    name = command.name.lower()
    asked = "".join(word.lower() for word in _words(command) if word.startswith("/"))
    return (
        _removes_trees(command)
        or bool(_ENDINGS.fullmatch(name))
        or (name == "dd" and any(word.startswith("if=") for word in _words(command)))
        or (name in ("del", "erase") and "/f" in asked)
        or (name in ("rmdir", "rd") and "/s" in asked)
    )


def _writes_device(command: Command) -> bool:
    written = [target for target in command.redirects if target is not None]
    if command.name in _OVERWRITE:
        written += _words(command)
    elif command.name in _COPY:
        into = any(word.startswith(("-t", "--target-directory")) for word in _words(command))
        written += _words(command) if into else _plain(command)[-1:]
    if any(_BLOCK_DEVICE.match(_device(target)) for target in written):
        return True
    targets = [_device(word[3:]) for word in _words(command) if word.startswith("of=")]
    return command.name == "dd" and any(
        target.startswith("/dev/") and not _SAFE_DEVICE.fullmatch(target) for target in targets
    )


def _device(word: str) -> str:
    """Return the path in a word, an option's value too, as the kernel reads it."""
    return os.path.normpath(re.sub("^(-t|--[a-z-]+=)", "", re.sub("/+", "/", word)))
