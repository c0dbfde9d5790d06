"""Reading the settings files: regular, small, UTF-8, well-formed; else a sentence with file and line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from shared.regular_files import NotRegular, TooLong, read_regular
from shared.settings.section import SettingsError

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
    from ruamel.yaml import YAML, nodes
    from ruamel.yaml.error import YAMLError

    try:
        node = YAML(typ="rt", pure=True).compose(text)
    except (YAMLError, ValueError, RecursionError):
        return None
    line: int | None = None
    for step in path:
        found = _child(node, step, nodes)
        if found is None:
            break
        line, node = found
    return line


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
