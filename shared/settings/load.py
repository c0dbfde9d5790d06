"""From an environment and two files to one immutable tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared import jsons
from shared.settings.config_json import ConfigJson
from shared.settings.environment import environment_layer, shadowed, unknown_names
from shared.settings.faults import did_you_mean, first_fault
from shared.settings.leaves import KeyPath, leaves
from shared.settings.section import SettingsError
from shared.settings.tree import Settings

Tree = dict[str, Any]


def load(environ: Mapping[str, str]) -> Settings:
    """Return the settings: environment over .security.yml over config.json over defaults.

    Reads ``environ`` and the two files, nothing else, and changes nothing. Raises ``SettingsError`` with
    one sentence that names the place and the key, never a value.
    """
    user_home = Path(environ.get("HOME") or "~").expanduser()
    config = ConfigJson(config_path(environ))
    names: dict[KeyPath, str] = {}
    tree = config.tree
    for path, name, value in environment_layer(environ):
        names[path] = name
        put(tree, path, value)
    _place_paths(tree, user_home, home_of(environ), config.path.parent)
    tree["warnings"] = [*config.warnings, *shadowed(environ), *unknown_names(environ)]
    tree["secret_names"] = sorted(name for name in secret_names() if name in environ)
    settings = _validated(tree, names, config)
    return settings.model_copy(update={"warnings": (*settings.warnings, *_loosened(settings))})


def home_of(environ: Mapping[str, str]) -> Path:
    """Return ``$PICOCLAW_HOME``, or ``~/.picoclaw``."""
    user_home = Path(environ.get("HOME") or "~").expanduser()
    return _absolute(environ.get("PICOCLAW_HOME") or "~/.picoclaw", user_home, Path.cwd())


def config_path(environ: Mapping[str, str]) -> Path:
    """Return ``$PICOCLAW_CONFIG``, or ``config.json`` in the home."""
    user_home = Path(environ.get("HOME") or "~").expanduser()
    given = environ.get("PICOCLAW_CONFIG")
    return _absolute(given, user_home, Path.cwd()) if given else home_of(environ) / "config.json"


def secret_names() -> frozenset[str]:
    """Return the environment names whose values are secrets or hold some."""
    return frozenset(
        {"PICOCLAW_KEY_PASSPHRASE", *(n for leaf in leaves() if leaf.is_secret for n in leaf.env)}
    )


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


def _place_paths(tree: Tree, user_home: Path, home: Path, config_dir: Path) -> None:
    """Give directories their defaults below the home, and make every path absolute.

    ``~`` is the user's home; other relative paths start at the config file's directory (the environment's
    were anchored at the working directory when they were read).
    """
    for leaf in leaves():
        value = get(tree, leaf.path)
        if leaf.under_home and value is None:
            put(tree, leaf.path, str(home / leaf.under_home))
        elif leaf.kind is Path and isinstance(value, str):
            put(tree, leaf.path, str(_absolute(value, user_home, config_dir)))
    tree["home"] = str(home)


def _absolute(text: str, user_home: Path, base: Path) -> Path:
    if text == "~" or text.startswith("~/"):
        return user_home / text[2:]
    return base / text


def _validated(tree: Tree, names: Mapping[KeyPath, str], config: ConfigJson) -> Settings:
    try:
        return Settings.model_validate_json(jsons.dump_bytes(tree), strict=True)
    except ValidationError as error:
        keys, said = first_fault(error)
        if said == "doesn't have the right form" and error.errors()[0]["type"] == "extra_forbidden":
            said = f"is not a known key{did_you_mean(str(keys[-1]), _siblings(keys))}"
        raise SettingsError(f"{_place(keys, names, config)} {said}") from None


def _place(keys: tuple[str | int, ...], names: Mapping[KeyPath, str], config: ConfigJson) -> str:
    for end in range(len(keys), 0, -1):
        name = names.get(tuple(str(key) for key in keys[:end]))
        if name:
            rest = ".".join(str(key) for key in keys[end:])
            return f"{name} (environment){': ' + rest if rest else ''}"
    return config.at(keys)


def _siblings(keys: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the node above ``keys`` may have."""
    model: Any = Settings
    for key in keys[:-1]:
        fields = getattr(model, "model_fields", {})
        model = fields[key].annotation if key in fields else _member(model)
    return sorted(getattr(model, "model_fields", ()))


def _member(kind: Any) -> Any:
    """Return the section that a list or an object of sections is made of."""
    members = [item for item in getattr(kind, "__args__", ()) if hasattr(item, "model_fields")]
    return members[0] if members else kind


def _loosened(settings: Settings) -> Iterator[str]:
    """Yield what an operator should see at every start."""
    if not settings.agents.defaults.restrict_to_workspace:
        yield "SECURITY: restrict_to_workspace is off: files outside the workspace are within reach"
    if settings.sandbox_min_level == 0:
        yield "SECURITY: SANDBOX_MIN_LEVEL is 0: commands run even where the kernel confines nothing"
    for name in type(settings.channels).model_fields:
        channel = getattr(settings.channels, name)
        if channel.enabled and not channel.allow_from:
            yield f"SECURITY: channel {name} allows everyone (allow_from is empty)"
