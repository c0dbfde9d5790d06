"""The environment as a layer of settings: names, forms of values, and names that mean nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from shared import jsons
from shared.settings.leaves import KeyPath, Leaf, did_you_mean, leaves
from shared.settings.section import SettingsError

WORDS: Final = {
    "true": True, "1": True, "yes": True, "on": True,
    "false": False, "0": False, "no": False, "off": False,
}  # fmt: skip

# Read by other processes of ours or by the command line, so not unknown.
ELSEWHERE: Final = frozenset(
    {
        "PICOCLAW_CONVERSATION_ID",
        "PICOCLAW_DB_PATH",
        "PICOCLAW_IS_MAIN",
        "PICOCLAW_KEY_PASSPHRASE",
        "PICOCLAW_NEW_KEY_PASSPHRASE",
        "PICOCLAW_SSH_KEY_PATH",
        "PICOCLAW_URL",
    }
)

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")


def environment_layer(environ: Mapping[str, str]) -> Iterator[tuple[KeyPath, str, Any]]:
    """Yield ``(path, environment name, value)`` for each setting the environment gives.

    Raises ``SettingsError`` for a value that doesn't have its setting's form.
    """
    for leaf in leaves():
        for name in leaf.env:
            text = environ.get(name)
            if text is None or (not text.strip() and not leaf.empty_counts):
                continue
            yield leaf.path, name, _parse(leaf, name, text)
            break


def shadowed(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting that two environment names give differently."""
    for leaf in leaves():
        given = [name for name in leaf.env if environ.get(name, "").strip()]
        if len({environ[name] for name in given}) > 1:
            yield f"{given[1]} is overruled by {given[0]}: both name {leaf.key}"


def unknown_names(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each ``PICOCLAW_*`` name that means nothing, with the nearest one that does."""
    known = {name for leaf in leaves() for name in leaf.env} | ELSEWHERE
    for name in sorted(environ):
        if name.startswith("PICOCLAW_") and name not in known:
            yield f"{name} in the environment is not a known setting{_hint(name, known)}"


def _hint(name: str, known: set[str]) -> str:
    bare = name.removeprefix("PICOCLAW_")
    return f"; did you mean {bare}?" if bare in known else did_you_mean(name, known)


def _parse(leaf: Leaf, name: str, text: str) -> Any:
    try:
        return _value(leaf, text)
    except ValueError as error:
        raise SettingsError(f"{name} (environment) {error}") from None


def _value(leaf: Leaf, text: str) -> Any:
    if leaf.is_json:
        return _json(text)
    if get_origin(leaf.kind) is tuple:
        return _list(text)
    if leaf.kind is bool:
        return _truth(text)
    if leaf.kind is int:
        return _whole(text)
    if leaf.kind is float:
        return _number(text)
    if leaf.kind is Path:
        return str(Path(text).absolute()) if not text.startswith("~") else text
    if all(isinstance(choice, str) for choice in get_args(leaf.kind)) and get_args(leaf.kind):
        return text.strip().lower()
    return text


def _truth(text: str) -> bool:
    try:
        return WORDS[text.strip().lower()]
    except KeyError:
        raise ValueError("must be true or false (or 1, 0, yes, no, on, off)") from None


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError("must be a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _list(text: str) -> Any:
    """A JSON list, or plain items between commas."""
    if text.lstrip().startswith("["):
        return _json(text)
    return [item.strip() for item in text.split(",") if item.strip()]


def _json(text: str) -> Any:
    try:
        return jsons.loads(text)
    except jsons.JSONDecodeError:
        raise ValueError("must be JSON") from None
