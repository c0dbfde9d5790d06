"""Reading the settings files: regular, small, UTF-8, well-formed; else a sentence with file and line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from shared import jsons
from shared.regular_files import NotRegular, TooLong, read_regular
from shared.settings.foreign import join_provider, take_foreign
from shared.settings.leaves import KeyPath, Keys, Tree, config_sections, did_you_mean, get, leaves
from shared.settings.section import Section, SettingsError
from shared.settings.sections import ModelEntry, Permission
from shared.settings.tools import McpServer

VERSIONS: Final = (2, 3)
TWICE: Final = " stands more than once; the last one counts"
ENTRIES: Final[dict[type[Section], KeyPath]] = {
    ModelEntry: ("model_list",),
    Permission: ("permissions",),
    McpServer: ("tools", "mcp", "servers"),
}


class SettingsFile:
    """A settings file: its text for line numbers, what deserves a warning, and which keys it set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.origins: dict[Keys, Keys] = {}
        """By path of the tree, for a file that is laid over another: the keys in it that set it."""
        self.text = read_text(path) or ""

    def at(self, keys: Keys) -> str:
        """Return ``file, line N: key`` for a sentence; ``keys`` as in the file."""
        line = line_of(self.text, keys)
        place = f"{self.path}, line {line}" if line else f"{self.path}"
        return f"{place}: {'.'.join(str(key) for key in keys)}"


class ConfigJson(SettingsFile):
    """``config.json``, parsed to a tree; ``named``: PICOCLAW_CONFIG says that it is there."""

    def __init__(self, path: Path, *, named: bool = False) -> None:
        super().__init__(path)
        if named and not path.exists():
            raise SettingsError(f"PICOCLAW_CONFIG (environment) names {path}, which isn't there")
        self.tree = self._parsed() if self.text else {}
        servers = ("tools", "mcp", "servers")
        self.warnings += [
            f"{self.at((*servers, name))}{TWICE}" for name in jsons.repeated(self.text, *servers)
        ]
        self._check_version()
        self._drop_foreign()
        self._check_sections()
        self._take_models()
        self._drop_nulls()

    def _parsed(self) -> Tree:
        try:
            tree = jsons.loads(self.text)
        except jsons.JSONDecodeError as error:
            raise SettingsError(f"{self.path}, line {error.lineno}: is not JSON ({_reason(error)})") from None
        if not isinstance(tree, dict):
            raise SettingsError(f"{self.path} must hold a JSON object")
        return tree

    def _check_version(self) -> None:
        version = self.tree.pop("version", 3)
        if version not in VERSIONS or isinstance(version, bool):
            self.faults.append(f"{self.at(('version',))} must be 3 (or 2)")

    def _drop_foreign(self) -> None:
        if foreign := [".".join(map(str, keys)) for keys in take_foreign(self.tree)]:
            self.warnings.append(
                f"{self.path}: these keys of sipeed/picoclaw mean nothing here and are ignored "
                f"(`picoclaw import sipeed` moves a home in): {', '.join(foreign)}"
            )

    def _check_sections(self) -> None:
        for name in sorted(self.tree.keys() - config_sections()):
            del self.tree[name]
            hint = did_you_mean(name, config_sections())
            self.faults.append(f"{self.at((name,))} is not a known key{hint}")

    def _drop_nulls(self) -> None:
        """Take a null for a key that isn't there, as programs write lists that are empty."""
        for leaf in leaves():
            _drop_null(get(self.tree, leaf.path[:-1]), leaf.path[-1])
        for section, path in ENTRIES.items():
            for entry in _members(get(self.tree, path)):
                for name in section.model_fields:
                    _drop_null(entry, name)

    def _take_models(self) -> None:
        for index, entry in enumerate(_members(self.tree.get("model_list"))):
            join_provider(entry)
            if isinstance(entry, dict) and entry.pop("api_key", None) is not None:
                self.warnings.append(
                    f"{self.at(('model_list', index, 'api_key'))} is ignored: "
                    "keys belong in .security.yml (or a secret value in api_keys)"
                )


def _members(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _drop_null(node: Any, name: str) -> None:
    if isinstance(node, dict) and node.get(name, "") is None:
        del node[name]


def _reason(error: jsons.JSONDecodeError) -> str:
    """The parser's reason without its position, which the sentence gives already."""
    return re.sub(r":? ?line \d+.*|at line.*", "", error.msg).strip() or "syntax error"


MAX_BYTES: Final = 1 << 20


def read_text(path: Path) -> str | None:
    """Return a settings file's text, or None when there is none.

    Raises ``SettingsError`` when it isn't a regular file, can't be read, is over 1 MiB or isn't UTF-8.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except NotRegular:
        raise SettingsError(f"{path} is not a regular file") from None
    except TooLong:
        raise SettingsError(f"{path} is larger than 1 MiB") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    return _decoded(path, content)


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line (from 1) of the deepest part of ``path`` that a JSON or YAML text has.

    Costs a parse; meant for the sentence of an error. None when the text has no such structure.
    """
    from ruamel.yaml import nodes

    node, line = _composed(text), None
    for step in path:
        found = _child(node, step, nodes)
        if found is None:
            break
        line, node = found
    return line


@lru_cache(2)
def _composed(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="rt", pure=True).compose(text)
    except (YAMLError, ValueError, RecursionError):
        return None


def _child(node: Any, step: str | int, nodes: Any) -> tuple[int, Any] | None:
    if isinstance(node, nodes.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, nodes.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}, line {line}: is not UTF-8 text") from None
