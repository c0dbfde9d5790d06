"""The environment as a layer of settings: names, forms of values, and names that mean nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from shared import jsons
from shared.settings.leaves import NEAR, KeyPath, Leaf, leaves

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
        "PICOCLAW_PRINCIPAL_ID",
        "PICOCLAW_SSH_KEY_PATH",
        "PICOCLAW_URL",
    }
)

PREFIX: Final = "PICOCLAW_"
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")


INSTEAD: Final = {
    "ANTHROPIC_MODEL": "CLAUDE_MODEL",
    "CLAUDE_API_KEY": "ANTHROPIC_API_KEY",
    "CLAUDE_CODE_OAUTH": "CLAUDE_CODE_OAUTH_TOKEN",
    "OPENAI_API_KEY": "ANTHROPIC_API_KEY, or model_list with an api_base that speaks the Messages API",
    "OPENAI_BASE_URL": "ANTHROPIC_BASE_URL",
    "TELEGRAM_BOT_TOKEN": "PICOCLAW_CHANNELS_TELEGRAM_TOKEN",
    "TELEGRAM_TOKEN": "PICOCLAW_CHANNELS_TELEGRAM_TOKEN",
}
"""Names that people set in hope, and what has the effect."""
NEEDS: Final = {
    "DATABASE_POOLER": "DATABASE_URL",
    "DATABASE_CONNECTIONS": "DATABASE_URL",
    "DATABASE_TOOLS_URL": "DATABASE_URL",
}
"""Names that have no effect without another."""


def environment_layer(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[KeyPath, str, Any]]:
    """Yield ``(path, environment name, value)`` for each setting the environment gives.

    A value that doesn't have its setting's form becomes a sentence of ``faults``.
    """
    for leaf in leaves():
        for name in leaf.env:
            text = environ.get(name)
            if text is None or (not text.strip() and not leaf.empty_counts):
                continue
            try:
                yield leaf.path, name, _value(leaf, text)
            except ValueError as error:
                faults.append(f"{name} (environment) {error}")
            break


def shadowed(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each setting that two environment names give differently."""
    for leaf in leaves():
        given = [name for name in leaf.env if environ.get(name, "").strip()]
        if len({environ[name] for name in given}) > 1:
            yield f"{given[1]} is overruled by {given[0]}: both name {leaf.key}"


def without_effect(environ: Mapping[str, str], used: Set[str]) -> Iterator[str]:
    """Yield a sentence for each name that has no effect, with the one that would; ``used`` are all right."""
    given = {name for name, value in environ.items() if value.strip()}
    for name in sorted(given & INSTEAD.keys() - used):
        yield f"{name} in the environment is ignored: set {INSTEAD[name]}"
    for name in sorted(given & NEEDS.keys()):
        if NEEDS[name] not in given:
            yield f"{name} in the environment has no effect without {NEEDS[name]}"


def unknown_names(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each ``PICOCLAW_*`` name that means nothing, with one that is near and does."""
    known = {name for leaf in leaves() for name in leaf.env} | ELSEWHERE
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            yield f"{name} in the environment is not a known setting{_hint(name, known)}"


def _hint(name: str, known: set[str]) -> str:
    # The prefix is in all of them: what is near is judged by the rest.
    by_bare = {each.removeprefix(PREFIX): each for each in sorted(known, reverse=True)}
    bare = name.removeprefix(PREFIX)
    near = [bare] if bare in by_bare else get_close_matches(bare, by_bare, n=1, cutoff=NEAR)
    return f"; did you mean {by_bare[near[0]]}?" if near else " and is ignored"


def _value(leaf: Leaf, text: str) -> Any:
    if leaf.is_json:
        return _json(text)
    if get_origin(leaf.kind) is tuple:
        return _list(text)
    if leaf.kind in PLAIN:
        return PLAIN[leaf.kind](text)
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


PLAIN: Final[Mapping[Any, Callable[[str], Any]]] = {bool: _truth, int: _whole, float: _number}


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
