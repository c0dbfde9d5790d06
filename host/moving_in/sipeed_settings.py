"""``config.json`` and ``.security.yml`` of sipeed/picoclaw as settings of this system."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from host.moving_in.arrivals import Arrivals, Broken, read_json, read_text
from shared.settings.leaves import get, put
from shared.settings.providers import ADDRESSES, ELSEWHERE, split_model

Tree = dict[str, Any]

KEPT: Final = (
    ("agents", "defaults", "restrict_to_workspace"),
    ("agents", "defaults", "allow_read_outside_workspace"),
    ("agents", "defaults", "max_tokens"),
    ("agents", "defaults", "max_tool_iterations"),
    ("tools", "allow_read_paths"),
    ("tools", "allow_write_paths"),
    ("tools", "exec", "enabled"),
    ("tools", "exec", "custom_deny_patterns"),
    ("tools", "exec", "custom_allow_patterns"),
    ("heartbeat", "enabled"),
    ("heartbeat", "interval"),
)
"""Keys that mean the same here."""
SERVER_KEYS: Final = ("enabled", "type", "url", "command", "args")
SERVER_SECRETS: Final = ("headers", "env")
UNUSED: Final = ("YOUR_", "sk-your", "sk-ant-your", "your-")
"""How the values of its sample file begin that stand for none."""


def take(home: Path, arrivals: Arrivals) -> Tree:
    """Let the settings move in, and return the configuration as it was; raises Broken."""
    path = home / "config.json"
    if not path.is_file():
        return {}
    config, secrets = read_json(path), _secrets(home / ".security.yml")
    if not isinstance(config, dict):
        raise Broken(f"{path}: an object was expected")
    arrivals.config["version"] = 3
    for place in KEPT:
        value = get(config, place)
        if value is not None:
            put(arrivals.config, place, value)
    _models(config, secrets, arrivals)
    _telegram(config, secrets, arrivals)
    _servers(config, secrets, arrivals)
    _tell_rest(config, path, arrivals)
    return config


def _secrets(path: Path) -> Tree:
    if not path.is_file():
        return {}
    try:
        found = YAML(typ="safe").load(read_text(path))
    except YAMLError as error:
        raise Broken(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    return found if isinstance(found, dict) else {}


def _models(config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    kept, seen = [], dict[str, int]()
    for entry in _objects(config.get("model_list")):
        name, model, base = (entry.get(key) for key in ("model_name", "model", "api_base"))
        if not name or not model:
            arrivals.lost.append("model_list: an entry without model_name and model")
            continue
        number = seen[name] = seen.get(name, -1) + 1
        keys = _keys(entry) or _keys(_secret_of(secrets, name, number))
        provider = split_model(model)[0]
        if provider in ELSEWHERE:
            arrivals.lost.append(f"model_list: {name} ({model}) speaks another API than Messages")
            continue
        if base and provider in ADDRESSES:
            arrivals.changed.append(f"model_list: {name} is asked at {ADDRESSES[provider]}")
            base = None
        kept.append({"model_name": name, "model": model, **({"api_base": base} if base else {})})
        if keys:
            place = f"{name}:{sum(each['model_name'] == name for each in kept) - 1}"
            arrivals.secrets.setdefault("model_list", {})[place] = {"api_keys": keys}
    if kept:
        arrivals.config["model_list"] = kept
    default = get(config, ("agents", "defaults", "model_name"))
    if default and any(entry["model_name"] == default for entry in kept):
        put(arrivals.config, ("agents", "defaults", "model_name"), default)
    elif default:
        arrivals.lost.append(f"agents.defaults.model_name: {default} isn't among the models that moved in")


def _telegram(config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    for channels in ("channel_list", "channels"):
        for name, channel in _named(config.get(channels)):
            if name != "telegram":
                if channel.get("enabled"):
                    arrivals.lost.append(f"{channels}.{name}: there is no such channel here")
                continue
            kept = {key: channel[key] for key in ("enabled", "allow_from") if channel.get(key) is not None}
            put(arrivals.config, ("channels", "telegram"), kept)
            hidden = get(secrets, (channels, "telegram")) or {}
            token = get(channel, ("settings", "token")) or channel.get("token")
            token = get(hidden, ("settings", "token")) or hidden.get("token") or token
            if _real(token):
                put(arrivals.secrets, ("channels", "telegram", "token"), token)


def _servers(config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    for name, server in _named(get(config, ("tools", "mcp", "servers"))):
        place = ("tools", "mcp", "servers", name)
        kept = {key: server[key] for key in SERVER_KEYS if key in server}
        kept.setdefault("type", "stdio" if "command" in server else "http")
        put(arrivals.config, place, kept)
        hidden = get(secrets, place) or {}
        for key in SERVER_SECRETS:
            value = hidden.get(key) or server.get(key)
            if value:
                put(arrivals.secrets, (*place, key), value)


def _tell_rest(config: Tree, path: Path, arrivals: Arrivals) -> None:
    known = {place[0] for place in KEPT} | {"version", "model_list", "channel_list", "channels"}
    rest = sorted(name for name in config if name not in known and not name.startswith("_"))
    if rest:
        arrivals.lost.append(f"{path}: {', '.join(rest)}: nothing here has these settings")
    workspace = get(config, ("agents", "defaults", "workspace"))
    if workspace:
        arrivals.changed.append(f"agents.defaults.workspace: the files of {workspace} move to MEMORY_DIR")


def _secret_of(secrets: Tree, name: str, number: int) -> Tree:
    models = secrets.get("model_list")
    found = models.get(f"{name}:{number}") or models.get(name) if isinstance(models, dict) else None
    return found if isinstance(found, dict) else {}


def _keys(entry: Tree) -> list[str]:
    keys = entry.get("api_keys") or [entry.get("api_key")]
    return [key for key in keys if _real(key)] if isinstance(keys, list) else []


def _real(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not value.startswith(UNUSED)


def _objects(value: Any) -> list[Tree]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _named(value: Any) -> list[tuple[str, Tree]]:
    pairs = value.items() if isinstance(value, dict) else ()
    return [(name, each) for name, each in pairs if isinstance(each, dict)]
