"""``config.json`` and ``.security.yml`` of sipeed/picoclaw as settings of this system."""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from host.moving_in.arrivals import Arrivals, Broken, an_object, read_json, read_text
from shared import jsons
from shared.settings.access import Telegram
from shared.settings.files import join_provider
from shared.settings.leaves import KeyPath, Tree, get, leaves, put
from shared.settings.models import ADDRESSES, ELSEWHERE, LOCAL, ModelEntry, split_model, unaddressed
from shared.settings.tools import McpServer

WORKSPACE: Final = ("agents", "defaults", "workspace")
MODEL_NAME: Final = ("agents", "defaults", "model_name")
SERVERS: Final = ("tools", "mcp", "servers")
ALIKE: Final = ("agents", "tools", "heartbeat")
"""The sections whose keys mean the same here, as far as there are any."""
TOLD: Final = {"version", "model_list", "channel_list", "channels", *ALIKE}
SERVER_TYPES: Final = {"streamable-http": "http"}
UNUSED: Final = ("YOUR_", "sk-your", "sk-ant-your", "your-")
"""How the values of its sample file begin that stand for none."""


def take(home: Path, arrivals: Arrivals) -> Tree:
    """Let the settings move in, and return the configuration as it was; raises Broken."""
    path = home / "config.json"
    if not path.is_file():
        return {}
    config, secrets = an_object(read_json(path), str(path)), _secrets(home / ".security.yml")
    arrivals.config["version"] = 3
    for leaf in leaves():
        if leaf.path[0] in ALIKE and leaf.path not in (WORKSPACE, MODEL_NAME, SERVERS):
            kind: Any = Annotated[leaf.field.annotation, leaf.field]
            _keep(arrivals, leaf.path, get(config, leaf.path), kind)
    _models(config, secrets, arrivals)
    for channels in ("channel_list", "channels"):
        _channels(channels, config, secrets, arrivals)
    for name, server in _named(get(config, SERVERS)):
        _server((*SERVERS, name), server, secrets, arrivals)
    if rest := sorted(name for name in config if name not in TOLD and not name.startswith("_")):
        arrivals.lost.append(f"{path}: {', '.join(rest)}: nothing here has these settings")
    if workspace := get(config, WORKSPACE):
        arrivals.changed.append(f"agents.defaults.workspace: the files of {workspace} move to MEMORY_DIR")
    return config


def _keep(arrivals: Arrivals, path: KeyPath, value: Any, kind: Any) -> bool:
    """Let a value move in if a start would take it; return whether it does."""
    if value is None:
        return False
    try:
        TypeAdapter(kind).validate_json(jsons.dump_bytes(value), strict=True)
    except (ValidationError, TypeError):
        arrivals.lost.append(f"{'.'.join(path)}: its value can't be used here")
        return False
    put(arrivals.config, path, value)
    return True


def _secrets(path: Path) -> Tree:
    if not path.is_file():
        return {}
    try:
        found = YAML(typ="safe").load(read_text(path))
    except (YAMLError, ValueError, RecursionError) as error:
        raise Broken(f"{path}: not YAML ({(str(error).splitlines() or [''])[0]})") from None
    return found if isinstance(found, dict) else {}


def _models(config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    kept, seen = list[Tree](), dict[str, int]()
    listed = config.get("model_list")
    for entry in listed if isinstance(listed, list) else ():
        join_provider(entry)
        name, model, base = (get(entry, (key,)) for key in ("model_name", "model", "api_base"))
        if not isinstance(name, str) or not isinstance(model, str) or not name or not model:
            arrivals.lost.append("model_list: an entry without model_name and model")
            continue
        number = seen[name] = seen.get(name, -1) + 1
        hidden = get(secrets, ("model_list", f"{name}:{number}")) or get(secrets, ("model_list", name))
        keys = _keys(entry) or _keys(hidden)
        provider, rest = split_model(model)
        if provider in ADDRESSES and provider not in LOCAL and base:
            arrivals.changed.append(f"model_list: {name} is asked at {ADDRESSES[provider]}")
            base = None
        foreign = provider in ELSEWHERE or (not provider and "/" in rest)
        if foreign or (not base and unaddressed(model, has_keys=bool(keys), general=None)):
            arrivals.lost.append(f"model_list: {name} ({model}) speaks another API than Messages")
            continue
        own = {"model_name": name, "model": model, **({"api_base": base} if base else {})}
        if not _keep(arrivals, ("model_list",), [*kept, own], tuple[ModelEntry, ...]):
            continue
        kept.append(own)
        if keys:
            place = f"{name}:{sum(each['model_name'] == name for each in kept) - 1}"
            put(arrivals.secrets, ("model_list", place, "api_keys"), keys)
    default = get(config, MODEL_NAME)
    if any(entry["model_name"] == default for entry in kept):
        put(arrivals.config, MODEL_NAME, default)
    elif default:
        arrivals.lost.append(f"agents.defaults.model_name: {default} isn't among the models that moved in")


def _channels(channels: str, config: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    for name, channel in _named(config.get(channels)):
        if name == "telegram":
            kept = {key: channel[key] for key in ("enabled", "allow_from") if channel.get(key) is not None}
            _keep(arrivals, ("channels", "telegram"), kept, Telegram)
            sources = (get(secrets, (channels, name)), channel)
            tokens = [get(each, path) for each in sources for path in (("settings", "token"), ("token",))]
            if token := next(filter(_real, tokens), None):
                put(arrivals.secrets, ("channels", "telegram", "token"), token)
        elif channel.get("enabled"):
            arrivals.lost.append(f"{channels}.{name}: there is no such channel here")


def _server(place: KeyPath, server: Tree, secrets: Tree, arrivals: Arrivals) -> None:
    kept = {key: server[key] for key in ("enabled", "url", "command", "args") if server.get(key) is not None}
    kind = server.get("type") or ("stdio" if "command" in server else "sse")
    kept["type"] = SERVER_TYPES.get(str(kind), kind)
    if not _keep(arrivals, place, kept, McpServer):
        return
    for key in ("headers", "env"):
        value = get(secrets, (*place, key)) or server.get(key)
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            put(arrivals.secrets, (*place, key), value)
        elif value:
            arrivals.lost.append(f"{'.'.join(map(str, (*place, key)))}: not an object of texts")


def _keys(entry: Any) -> list[str]:
    keys = get(entry, ("api_keys",)) or [get(entry, ("api_key",))]
    return [key for key in keys if _real(key)] if isinstance(keys, list) else []


def _real(value: Any) -> bool:
    return isinstance(value, str) and value != "" and not value.startswith(UNUSED)


def _named(value: Any) -> list[tuple[str, Tree]]:
    pairs = value.items() if isinstance(value, dict) else ()
    return [(name, each) for name, each in pairs if isinstance(each, dict)]
