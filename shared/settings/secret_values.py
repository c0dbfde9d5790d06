"""Secret values in a raw tree of settings, read in place: one that is bad disables what needs it.

And, once they are read, which texts of the settings must never leave the process.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from shared import jsons
from shared.secrets import SECRET_NAMES, SecretFault, SecretReader, is_secret_form
from shared.settings.files import TWICE, read_text
from shared.settings.leaves import Tree, get, leaves
from shared.settings.sections import SettingsError
from shared.settings.tools import McpServer, server_type
from shared.settings.tree import Settings

MANAGED: Final = "managed_mcp"
STORES: Final = frozenset({"database_url", "database_tools_url"})
"""Without them a host would start all the same, on another store or in another role."""
PARAMETERS: Final = re.compile(r"passw|token|secret|api.?key|^key$", re.IGNORECASE)
"""Names of an address's parameters that are secret; ``sslkey`` of a database is a path."""


def read_secrets(tree: Tree, reader: SecretReader) -> list[str]:
    """Replace each secret of the tree by what it stands for; return a warning for each that is bad.

    Raises ``SettingsError`` for a bad one without which the host would be another one.
    """
    return [
        *_fields(tree, reader),
        *_model_keys(tree, reader),
        *_server_values(tree, reader),
        *_plugin_secrets(tree, reader),
    ]


def type_servers(tree: Tree) -> None:
    """Write the type of each MCP server as the settings have it, in place."""
    for _, server in _servers(tree):
        if (kind := server_type(server)) != server.get("type", "http"):
            server["type"] = kind


def sealed_keys(tree: Tree) -> Iterator[str]:
    """Yield the dotted keys of servers' variables and headers that are written in a secret form."""
    for name, server in _servers(tree):
        for part, values in _parts(server):
            for key, value in values.items():
                if isinstance(value, str) and is_secret_form(value):
                    yield f"{name}.{part}.{key}"


def managed_servers(org_dir: str | None, warnings: list[str]) -> Any:
    """Return the ``mcpServers`` of ``ORG_DIR/managed-mcp.json`` as written; raises ``SettingsError``."""
    path = Path(org_dir) / "managed-mcp.json" if org_dir else None
    text = read_text(path) if path else None
    if text is None:
        return {}
    try:
        content = jsons.loads(text)
    except jsons.JSONDecodeError as error:
        raise SettingsError(f"{path}, line {error.lineno}: is not JSON") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold a JSON object")
    warnings += [f"{path}: {'.'.join(map(str, keys))}{TWICE}" for keys in jsons.repeated(text)]
    return content.get("mcpServers", {})


def _fields(tree: Tree, reader: SecretReader) -> Iterator[str]:
    for leaf in leaves():
        if leaf.kind is not SecretStr or not isinstance(value := get(tree, leaf.path), str):
            continue
        node = get(tree, leaf.path[:-1])
        try:
            node[leaf.path[-1]] = reader.read(value)
        except SecretFault as fault:
            if leaf.key in STORES:
                raise SettingsError(f"{leaf.env[0]} cannot be used: {fault}") from None
            node[leaf.path[-1]] = None
            yield f"{leaf.key} is left out: {fault}"
            if leaf.path[0] == "channels":
                node["enabled"] = False
                yield f"{'.'.join(leaf.path[:2])} is off: its {leaf.path[-1]} cannot be used"


def _model_keys(tree: Tree, reader: SecretReader) -> Iterator[str]:
    entries = tree.get("model_list")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        keys = entry.get("api_keys") if isinstance(entry, dict) else None
        if not isinstance(keys, list):
            continue
        good: list[Any] = []
        for number, key in enumerate(keys):
            try:
                good.append(reader.read(key) if isinstance(key, str) else key)
            except SecretFault as fault:
                yield f"model_list.{index}.api_keys.{number} is left out: {fault}"
        entry["api_keys"] = good


def _server_values(tree: Tree, reader: SecretReader) -> Iterator[str]:
    for name, server in _servers(tree):
        faults = _server_faults(server, reader)
        for key, fault in faults if server.get("enabled") is not False else ():
            if name.startswith(MANAGED):
                raise SettingsError(
                    f"managed-mcp.json: mcpServers{name.removeprefix(MANAGED)}.{key}: {fault}"
                )
            server["enabled"] = False
            yield f"{name} is off: its {key} cannot be used: {fault}"


def _server_faults(server: Tree, reader: SecretReader) -> list[tuple[str, SecretFault]]:
    """Read a server's secrets and expand the rest in place; return what is bad by its key."""
    faults = [
        (f"{part}.{key}", bad) for part, values in _parts(server) for key, bad in _in_place(values, reader)
    ]
    for key in server.keys() & {"url", "command", "args", "client_secret"}:
        read = reader.read if key == "client_secret" else reader.expand
        try:
            server[key] = _expanded(server[key], read)
        except SecretFault as fault:
            faults.append((key, fault))
            del server[key]  # as it is written it may be no address
    return faults


def _plugin_secrets(tree: Tree, reader: SecretReader) -> Iterator[str]:
    plugins = get(tree, ("channels", "plugins"))
    for name, plugin in plugins.items() if isinstance(plugins, dict) else ():
        values = plugin.get("secrets") if isinstance(plugin, dict) else None
        for key, fault in _in_place(values, reader) if isinstance(values, dict) else ():
            plugin["enabled"] = False
            yield f"channels.plugins.{name} is off: its secrets.{key} cannot be used: {fault}"


def _servers(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield ``(dotted key, server)`` of the operator's and the organisation's, those that are objects."""
    configured = get(tree, ("tools", "mcp", "servers"))
    for key, servers in (("tools.mcp.servers", configured), (MANAGED, tree.get("managed_mcp"))):
        for name, server in servers.items() if isinstance(servers, dict) else ():
            if isinstance(server, dict):
                yield f"{key}.{name}", server


def _parts(server: Tree) -> list[tuple[str, Tree]]:
    return [(part, server[part]) for part in ("env", "headers") if isinstance(server.get(part), dict)]


def _expanded(value: Any, read: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_expanded(item, read) for item in value]
    return read(value) if isinstance(value, str) else value


def _in_place(values: Tree, reader: SecretReader) -> list[tuple[str, SecretFault]]:
    """Read each value; those that are bad are taken out and returned."""
    faults: list[tuple[str, SecretFault]] = []
    for key, value in values.items():
        try:
            values[key] = reader.read(value) if isinstance(value, str) else value
        except SecretFault as fault:
            faults.append((key, fault))
    for key, _ in faults:
        del values[key]
    return faults


def secret_values(settings: Settings) -> tuple[str, ...]:
    """Return every secret in the clear, and passwords within addresses, for the redactor.

    A server's variables and headers are secret when their name says so, or when ``.security.yml`` or a secret
    form gave them (``secret_keys``): a PATH or a content type must not be cut out of every text.
    """
    return tuple(sorted(set(_texts(settings))))


def _texts(settings: Settings) -> Iterator[str]:
    for name, server in settings.tools.mcp.servers.items():
        yield from _of_server(dict(server), f"tools.mcp.servers.{name}", settings.secret_keys)
    managed = settings.managed_mcp if isinstance(settings.managed_mcp, dict) else {}
    for name, entry in managed.items():
        if isinstance(entry, dict):
            yield from _of_server(entry, f"managed_mcp.{name}", settings.secret_keys)
    yield from _of(settings)
    for value in settings.telemetry.header_values().values():
        yield value
        yield from value.split()[1:]


def _of(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
        yield from _passwords(value.get_secret_value())
    elif isinstance(value, BaseModel) and not isinstance(value, McpServer):
        for name in type(value).model_fields:
            yield from _of(getattr(value, name))
    elif isinstance(value, str):
        yield from _passwords(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _of(item)


def _of_server(server: Mapping[str, Any], key: str, secret_keys: frozenset[str]) -> Iterator[str]:
    for part in ("env", "headers"):
        values = server.get(part)
        for name, secret in values.items() if isinstance(values, dict) else ():
            text = secret.get_secret_value() if isinstance(secret, SecretStr) else str(secret)
            yield from _passwords(text)
            if SECRET_NAMES.search(name) or f"{key}.{part}.{name}" in secret_keys:
                yield text
                yield from text.split()[1:]  # "Bearer abc": the token is as secret alone
    yield from _of([server.get("url"), server.get("args"), server.get("client_secret")])


def _passwords(text: str) -> Iterator[str]:
    """Yield what is secret in an address, also in one that an option has (``--url=postgresql://…``)."""
    _, scheme, rest = text.partition("://")
    try:
        parts = urlsplit(f"//{rest}" if scheme and len(text.split()) == 1 else "")
    except ValueError:
        return
    if parts.password:
        yield parts.password
        yield unquote(parts.password)
    yield from (value for name, value in parse_qsl(parts.query) if PARAMETERS.search(name))
