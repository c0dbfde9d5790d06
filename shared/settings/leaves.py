"""The settings tree as a flat list of leaves: path, type, environment names. The rest is drawn from it.

The environment is a layer of settings: names, forms of values, and names that mean nothing.
"""

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, Final, Union, cast, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from shared import jsons
from shared.settings.sections import Env, Section
from shared.settings.tree import Settings

Tree = dict[str, Any]
"""The settings as they are written, before they are validated."""
KeyPath = tuple[str, ...]
Keys = tuple[str | int, ...]
"""The same with the places in lists."""

NEAR = 0.75
"""How much of two names must be alike for a hint (difflib's ratio)."""
NOT_SETTINGS = frozenset({"warnings", "secret_names", "secret_keys", "expanded", "managed_mcp"})


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting.

    ``kind`` is its type without ``None``; ``env`` its environment names, strongest first;
    ``in_config`` whether ``config.json`` may hold it.
    """

    path: KeyPath
    kind: Any
    field: FieldInfo
    env: tuple[str, ...]
    in_config: bool
    under_home: str | None
    empty_counts: bool

    @property
    def key(self) -> str:
        """Its dotted name."""
        return ".".join(self.path)

    @property
    def is_json(self) -> bool:
        """Whether its environment form is JSON: objects, and lists of them."""
        if get_origin(self.kind) is tuple:
            return not all(_is_scalar(kind) for kind in get_args(self.kind) if kind is not ...)
        return get_origin(self.kind) in (dict, Mapping)

    @property
    def is_paths(self) -> bool:
        """Whether it is a list of paths, or of globs."""
        return self.path[-1] in ("allow_read_paths", "allow_write_paths")

    @property
    def is_secret(self) -> bool:
        """Whether its environment value is, or holds, a secret."""
        return holds_secret(self.kind)


@cache
def leaves() -> tuple[Leaf, ...]:
    """Return every setting there is, in the order of the models."""
    return tuple(_walk(Settings, (), in_config=False))


_UNEXPANDED: Final = re.compile(r"\$\{?[A-Za-z_]|[\"']")
"""How a part of a path begins that a shell would have expanded, or taken the quotes away of."""


def unexpanded(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Yield where a path holds a variable or a quotation mark, which nothing here expands; and that part.

    What lies below the home is told once, of the home.
    """
    home = settings.home.parts
    for leaf in leaves():
        if leaf.kind is not Path and not leaf.is_paths:
            continue
        value = reduce(getattr, leaf.path, cast("Any", settings))
        for path in value if isinstance(value, tuple) else [value or ""]:
            parts = Path(path).parts
            own = parts if leaf.path == ("home",) or parts[: len(home)] != home else parts[len(home) :]
            yield from ((leaf.path, part) for part in own if _UNEXPANDED.match(part))


def config_sections() -> frozenset[str]:
    """Return the top-level keys that ``config.json`` may have."""
    return frozenset(leaf.path[0] for leaf in leaves() if leaf.in_config)


def holds_secret(kind: Any) -> bool:
    """Return whether a type is ``SecretStr`` or contains it anywhere."""
    if kind is SecretStr:
        return True
    if isinstance(kind, type) and issubclass(kind, Section):
        return any(holds_secret(field.annotation) for field in kind.model_fields.values())
    return any(holds_secret(argument) for argument in get_args(kind))


def section_of(model: type[Section], name: str) -> Any:
    """Return a field's type if it is a section or an object of things, else None."""
    kind = _without_none(model.model_fields[name].annotation)
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Section)):
        return kind
    return None


def member(kind: Any) -> Any:
    """Return the section that an object is made of, or None."""
    members = [item for item in get_args(kind) if isinstance(item, type) and issubclass(item, Section)]
    return members[0] if members else None


def known_beside(keys: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the section may have which ``keys`` ends in."""
    kind: Any = Settings
    for key in keys[:-1]:
        fields = getattr(kind, "model_fields", {})
        kind = _without_none(fields[key].annotation) if key in fields else member(kind)
    return sorted(getattr(kind, "model_fields", ()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean x?`` for the nearest known name, or nothing."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=NEAR)
    return f"; did you mean {near[0]}?" if near else ""


def put(tree: Tree, path: KeyPath, value: Any) -> None:
    """Set a leaf, making (or, over something that is no object, replacing) the nodes above it."""
    node = tree
    for step in path[:-1]:
        child = node.get(step)
        if not isinstance(child, dict):
            child = node[step] = {}
        node = child
    node[path[-1]] = value


def get(tree: Tree, path: KeyPath) -> Any:
    """Return a leaf's value, or None."""
    node: Any = tree
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _walk(model: type[Section], prefix: KeyPath, *, in_config: bool) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        if not prefix and name in NOT_SETTINGS:
            continue
        path = (*prefix, name)
        kind = _without_none(field.annotation)
        inside = in_config or (not prefix and _belongs_to_config(name, kind))
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _walk(kind, path, in_config=inside)
        else:
            yield _leaf(path, kind, field, in_config=inside)


def _leaf(path: KeyPath, kind: Any, field: FieldInfo, *, in_config: bool) -> Leaf:
    said = next((item for item in field.metadata if isinstance(item, Env)), Env(""))
    names = tuple(filter(None, (said.name, said.or_name)))
    if in_config:
        names = (*names, "PICOCLAW_" + "_".join(path).upper())
    elif len(path) == 1:
        names = names or (path[0].upper(),)
    return Leaf(path, kind, field, names, in_config, said.under_home, said.empty_counts)


def _belongs_to_config(name: str, kind: Any) -> bool:
    is_section = isinstance(kind, type) and issubclass(kind, Section) and name != "model"
    return is_section or name in ("model_list", "permissions")


def _without_none(kind: Any) -> Any:
    """Return a type without ``None`` and without what it is annotated with."""
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not types.NoneType]
        return _without_none(members[0]) if len(members) == 1 else kind
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _is_scalar(kind: Any) -> bool:
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    plain = (get_args(member)[0] if get_origin(member) is Annotated else member for member in members)
    return all(member in (str, int, float, bool, Path) for member in plain)


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


def variable(environ: Mapping[str, str], name: str) -> str:
    """Return a variable without the line end of the file that it came from, "" where it is unset or blank."""
    text = environ.get(name, "").rstrip("\r\n")
    return text if text.strip() else ""


def environment_layer(environ: Mapping[str, str], faults: list[str]) -> Iterator[tuple[KeyPath, str, Any]]:
    """Yield ``(path, environment name, value)`` for each setting the environment gives.

    A value that doesn't have its setting's form becomes a sentence of ``faults``.
    """
    for leaf in leaves():
        for name in leaf.env:
            text = variable(environ, name)
            if not text and not (leaf.empty_counts and name in environ):
                continue
            if leaf.is_secret:  # no header carries what stands around it
                text = text.strip()
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
        return list(map(_from_here, _list(text))) if leaf.is_paths else _list(text)
    if leaf.kind in PLAIN:
        return PLAIN[leaf.kind](text)
    if leaf.kind is Path:
        return _from_here(text)
    if all(isinstance(choice, str) for choice in get_args(leaf.kind)) and get_args(leaf.kind):
        return text.strip().lower()
    return text


def _from_here(path: Any) -> Any:
    """Return a path that starts at the working directory; one that starts at the home stays as it is."""
    stays = not isinstance(path, str) or path in ("", "~") or path.startswith("~/")
    return path if stays else str(Path(path).absolute())


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
