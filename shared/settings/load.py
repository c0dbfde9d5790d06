"""From an environment and two files to one immutable tree."""

from __future__ import annotations

import math
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared import jsons
from shared.secrets import SECRET_NAMES, SecretReader
from shared.settings.files import ConfigJson, SettingsFile
from shared.settings.leaves import (
    KeyPath,
    Keys,
    Tree,
    did_you_mean,
    environment_layer,
    get,
    known_beside,
    leaves,
    put,
    shadowed,
    unexpanded,
    unknown_names,
    variable,
    without_effect,
)
from shared.settings.secret_values import managed_servers, read_secrets, sealed_keys, type_servers
from shared.settings.sections import SettingsError
from shared.settings.security_yml import NAME, SecurityYml
from shared.settings.tree import Settings, uncountable

WRITING: Final = ("write_file", "edit_file", "append_file")
ROOTS_HOME: Final = Path("/var/lib/picoclaw")


def load(
    environ: Mapping[str, str],
    ask_passphrase: Callable[[], str | None] | None = None,
    *,
    making: bool = False,
) -> Settings:
    """Return the settings: environment over .security.yml over config.json over defaults.

    Reads ``environ``, the two files and the files that ``file://`` values name; changes nothing.
    ``ask_passphrase`` is called when a sealed value is met and PICOCLAW_KEY_PASSPHRASE is unset. Raises
    ``SettingsError`` with all that is wrong, each a sentence that names the place and the key, never a value.
    ``making``: the file that PICOCLAW_CONFIG names may be missing, since it is about to be made.
    """
    config = ConfigJson(config_path(environ), named=bool(variable(environ, "PICOCLAW_CONFIG")) and not making)
    security = SecurityYml(config.path.parent / NAME)
    given = list(environment_layer(environ, config.faults))
    tree = config.tree
    for path, _, value in given:
        put(tree, path, deepcopy(value))
    security.merge_into(tree)
    for path, _, value in given:
        put(tree, path, _over(get(tree, path), value))
    _place_paths(tree, environ, config.path.parent)
    tree["managed_mcp"] = managed_servers(get(tree, ("org_dir",)), config.warnings)
    type_servers(tree)
    tree["secret_keys"] = sorted(
        {*sealed_keys(tree), *(".".join(map(str, keys)) for keys in security.origins)}
    )
    reader = SecretReader(environ, config.path.parent, ask_passphrase)
    warnings = [
        *config.warnings,
        *security.warnings,
        *shadowed(environ),
        *unknown_names(environ),
        *read_secrets(tree, reader),
        *without_effect(environ, reader.names | reader.expanded),
    ]
    tree["warnings"] = warnings
    expanded = {name for name in reader.expanded if SECRET_NAMES.search(name)}
    tree["expanded"] = [environ[name] for name in sorted(expanded & environ.keys())]
    tree["secret_names"] = sorted(environ.keys() & (secret_names() | reader.names | expanded))
    origins = Origins({path: name for path, name, _ in given}, security, config)
    settings = _validated(tree, origins, config.faults)
    if faults := [*config.faults, *_unusable(settings, origins)]:
        raise SettingsError(*faults)
    warnings += [f"{said}; until then it is not used" for _, said in _unaddressed(settings, origins)]
    return settings.model_copy(update={"warnings": (*warnings, *_loosened(settings))})


def home_of(environ: Mapping[str, str]) -> Path:
    """Return ``$PICOCLAW_HOME``, or ``~/.picoclaw``.

    ``/root`` is closed to the uid that root's commands get: for root ``/var/lib/picoclaw``, unless the other
    is there.
    """
    if given := variable(environ, "PICOCLAW_HOME"):
        return _absolute(given, environ, Path.cwd())
    home = _user_home(environ) / ".picoclaw"
    is_root = os.geteuid() == 0 and home == Path("/root/.picoclaw")
    return ROOTS_HOME if is_root and not os.path.exists(home) else home


def config_path(environ: Mapping[str, str]) -> Path:
    """Return ``$PICOCLAW_CONFIG``, else ``config.json`` in the home, else (if only it has one) ORG_DIR's."""
    if given := variable(environ, "PICOCLAW_CONFIG"):
        return _absolute(given, environ, Path.cwd())
    folders = [home_of(environ)]
    if given := variable(environ, "ORG_DIR"):
        folders.append(_absolute(given, environ, Path.cwd()))
    there = (
        folder for folder in folders if any(os.path.exists(folder / name) for name in ("config.json", NAME))
    )
    return next(there, folders[0]) / "config.json"


@cache
def secret_names() -> frozenset[str]:
    """Return the environment names whose values are secrets or hold some."""
    passphrases = {"PICOCLAW_KEY_PASSPHRASE", "PICOCLAW_NEW_KEY_PASSPHRASE"}
    return frozenset(passphrases.union(*(leaf.env for leaf in leaves() if leaf.is_secret)))


def _over(below: Any, above: Any) -> Any:
    """Return ``above`` with what only ``below`` has: keys of objects, in lists place by place."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{key: _over(below.get(key), item) for key, item in above.items()}}
    if isinstance(below, list) and isinstance(above, list) and len(below) == len(above):
        return [_over(low, high) for low, high in zip(below, above, strict=True)]
    return above


def _place_paths(tree: Tree, environ: Mapping[str, str], config_dir: Path) -> None:
    """Give directories their defaults below the home, and make every path absolute.

    ``~`` is the user's home; other relative paths start at the config file's directory (the environment's
    were anchored at the working directory when they were read).
    """
    tree["home"] = str(home := home_of(environ))
    for leaf in leaves():
        _make_nodes(tree, leaf.path[:-1])
        value = get(tree, leaf.path)
        if leaf.under_home and value is None:
            put(tree, leaf.path, str(home / leaf.under_home))
        elif leaf.kind is Path and isinstance(value, str):
            put(tree, leaf.path, str(_absolute(value, environ, config_dir)))
        elif leaf.is_paths and isinstance(value, list):
            put(tree, leaf.path, [_placed(path, environ, config_dir) for path in value])


def _placed(path: Any, environ: Mapping[str, str], base: Path) -> Any:
    """Return a path or glob of a list as the absolute one that file tools compare with."""
    if not isinstance(path, str) or not path:
        return path
    return "/" + os.path.normpath(_absolute(path, environ, base)).lstrip("/")


def _make_nodes(tree: Tree, path: KeyPath) -> None:
    """Put an empty object wherever a section is absent, so that the root's validator makes all of them."""
    node: Any = tree
    for step in path:
        if not isinstance(node, dict):
            return
        node = node.setdefault(step, {})


def _absolute(text: str, environ: Mapping[str, str], base: Path) -> Path:
    if text == "~" or text.startswith("~/"):
        return _user_home(environ) / text[2:]
    return base / text


def _user_home(environ: Mapping[str, str]) -> Path:
    """Return HOME, else what passwd(5) says, which knows nothing of a container's nameless users."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise SettingsError("Neither HOME nor PICOCLAW_HOME is set, and this user has no home") from None


def _validated(tree: Tree, origins: Origins, faults: list[str]) -> Settings:
    if beyond := [f"{origins.place(keys)} is {BEYOND}" for keys in _beyond(tree, ())]:
        raise SettingsError(*faults, *beyond)
    try:
        return Settings.model_validate_json(jsons.dump_bytes(tree), strict=True)
    except ValidationError as error:
        faults += sentences(error, origins)
        wrong = {detail["loc"][0] for detail in error.errors()}
        if not wrong & {"model", "model_list"}:
            rest = {"agents": {"defaults": {"workspace": "/"}}} | {
                name: value for name, value in tree.items() if name not in wrong
            }
            with suppress(ValidationError):
                others = Settings.model_validate_json(jsons.dump_bytes(rest), strict=True)
                faults += _unusable(others, origins)
        raise SettingsError(*faults) from None


def _beyond(node: Any, keys: Keys) -> Iterator[Keys]:
    """Yield where a value stands that JSON has no room for: NaN, infinity, over 64 bits, half characters."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(node, dict | list):
        inside = list(node.items() if isinstance(node, dict) else enumerate(node))
    endless = isinstance(node, float) and not math.isfinite(node)
    if endless or not all(map(jsons.fits, [step for step, _ in inside] if inside else [node])):
        yield keys
        return
    for step, child in inside:
        yield from _beyond(child, (*keys, step))


def _unaddressed(settings: Settings, origins: Origins) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry whose address isn't known, and what mends it."""
    for index, entry in enumerate(settings.model_list):
        if fault := settings.lacks(entry):
            yield entry.model_name, f"{origins.place(('model_list', index, 'model'))} {fault}"


def _unusable(settings: Settings, origins: Origins) -> Iterator[str]:
    """Yield what is wrong with settings that are all right one by one."""
    asked = settings.agents.defaults.model_name
    names = dict.fromkeys(entry.model_name for entry in settings.models)
    wanted = {asked, settings.model.fallback_model} - names.keys()
    needed = [said for name, said in _unaddressed(settings, origins) if not names or name in wanted]
    yield from needed
    if names and asked is not None and asked in wanted and not needed:
        place = origins.place(("agents", "defaults", "model_name"))
        yield f"{place} must be one of the names in model_list: {', '.join(names)}"
    for keys, part in unexpanded(settings):
        yield f"{origins.place(keys)} has {part} in it, which stays as it is here: write the path itself"
    top: Keys = ()
    faults = [(top, fault) for fault in uncountable(settings, settings.budgets, None)]
    if settings.auth.jwt.create:
        terms = settings.auth.jwt.defaults
        made = uncountable(settings, terms.budgets, terms.models)
        faults += [(("auth", "jwt", "defaults"), fault) for fault in made]
    yield from (f"{origins.place((*above, *keys))} {fault}" for above, (keys, fault) in faults)


def _is_gated(settings: Settings, tool: str) -> bool:
    """Return whether a call of the tool may wait or be refused."""
    rules = [rule for rule in settings.permissions if fnmatchcase(tool, rule.tool)]
    open_ends = (number for number, rule in enumerate(rules) if rule.do == "allow" and rule.match is None)
    return any(rule.do != "allow" for rule in rules[: next(open_ends, len(rules))])


def _loosened(settings: Settings) -> Iterator[str]:
    """Yield what an operator should see at every start."""
    for name in ("api_token", "api_token_previous"):
        secret = getattr(settings, name)
        if secret is not None and not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
            yield f"{name} holds a blank or a letter beyond ASCII: the console and most clients can't send it"
    if settings.database_url is None and settings.local_db_path.is_relative_to(settings.store_dir):
        yield (
            "LOCAL_DB_PATH lies in STORE_DIR: the database that the host works on belongs on a local disk, "
            "beside the volume; a network file system damages it"
        )
    if settings.agents.defaults.model_name and not settings.model_list:
        yield "agents.defaults.model_name is not used: model_list is empty"
    if not settings.agents.defaults.restrict_to_workspace:
        yield (
            "SECURITY: restrict_to_workspace is off: tools and commands reach whatever the user may use "
            "but settings, secrets and store"
        )
    if settings.agents.defaults.workspace_scope == "shared":
        yield "agents.defaults.workspace_scope: shared is read as principal: each principal has a workspace"
    if settings.sandbox_min_level == 0:
        yield "SECURITY: SANDBOX_MIN_LEVEL is 0: commands run even where the kernel confines nothing"
    if any(_is_gated(settings, tool) for tool in WRITING) and not _is_gated(settings, "exec"):
        yield (
            "permissions gate the tools that write files, but exec can write the same files: "
            'without {"tool": "exec", "do": "ask"} (or "deny") they gate nothing'
        )
    for name, server in settings.tools.mcp.servers.items():
        for said in server.unused if server.enabled else ():
            yield f"tools.mcp.servers.{name}: {said}"
    for name, channel in settings.channels.by_name().items():
        if channel.enabled and not channel.allow_from:
            yield f"SECURITY: channel {name} allows everyone (allow_from is empty)"


BEYOND: Final = "a number beyond all use, or not UTF-8 text"
KINDS: Final = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "is missing",
    "string_too_short": "must not be empty",
    "none_required": "must be null",
}

FORMS: Final = frozenset({"str", "int", "float", "bool"})
"""How pydantic names a form of several behind the key."""

BOUNDS: Final = {
    "greater_than": ("gt", "must be above {}"),
    "greater_than_equal": ("ge", "must be {} or more"),
    "less_than": ("lt", "must be below {}"),
    "less_than_equal": ("le", "must be {} or less"),
}


@dataclass(frozen=True, slots=True)
class Origins:
    """Where the values of a tree came from."""

    environment: Mapping[KeyPath, str]
    security: SettingsFile
    config: SettingsFile

    def place(self, keys: Keys) -> str:
        """Return the place that set ``keys``, or what is above it, for the beginning of a sentence."""
        for end in range(len(keys), 0, -1):
            rest = keys[end:]
            name = self.environment.get(tuple(str(key) for key in keys[:end]))
            if name:
                return f"{name} (environment){': ' + '.'.join(map(str, rest)) if rest else ''}"
            in_file = self.security.origins.get(keys[:end])
            if in_file:
                return self.security.at((*in_file, *rest))
        below = (name for path, name in self.environment.items() if keys and path[: len(keys)] == keys)
        name = next(below, None)
        return self.config.at(keys) if name is None else f"{name} (environment):"


def sentences(error: ValidationError, origins: Origins) -> list[str]:
    """Return what is wrong, each with its place; what may be of several forms is one fault."""
    faults: dict[Keys, list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        keys = detail["loc"]
        of_several = keys[-1:] and keys[-1] in FORMS and detail["type"] in KINDS
        faults.setdefault(keys[:-1] if of_several else keys, []).append(said(detail))
    return [f"{origins.place(keys)} {' or '.join(each)}" for keys, each in faults.items()]


def said(detail: ErrorDetails) -> str:
    """Return what would be right."""
    kind = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind in BOUNDS:
        name, text = BOUNDS[kind]
        return text.format(context[name])
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return f"is not a known key{did_you_mean(str(detail['loc'][-1]), known_beside(detail['loc']))}"
    return KINDS.get(kind, "doesn't have the right form")
