"""Secret values in a raw tree of settings, read in place: one that is bad disables what needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

from shared.secrets import IN_ENVIRONMENT, IN_FILE, SEALED, SecretFault, SecretReader
from shared.settings.leaves import leaves

Tree = dict[str, Any]


def read_secrets(tree: Tree, reader: SecretReader) -> list[str]:
    """Replace each secret of the tree by what it stands for; return a warning for each that is bad."""
    return [
        *_fields(tree, reader),
        *_model_keys(tree, reader),
        *_server_values(tree, reader),
        *_plugin_secrets(tree, reader),
    ]


def sealed_keys(tree: Tree) -> Iterator[str]:
    """Yield the dotted keys of servers' variables and headers that are written in a secret form."""
    for name, part, values in _server_parts(tree):
        for key, value in values.items():
            if isinstance(value, str) and value.startswith((SEALED, IN_FILE, IN_ENVIRONMENT)):
                yield f"tools.mcp.servers.{name}.{part}.{key}"


def _fields(tree: Tree, reader: SecretReader) -> Iterator[str]:
    for leaf in leaves():
        if leaf.kind is not SecretStr:
            continue
        node = _node(tree, leaf.path[:-1])
        value = node.get(leaf.path[-1]) if node else None
        if node is None or not isinstance(value, str):
            continue
        try:
            node[leaf.path[-1]] = reader.read(value)
        except SecretFault as fault:
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
    for name, part, values in _server_parts(tree):
        for key, fault in _in_place(values, reader):
            tree["tools"]["mcp"]["servers"][name]["enabled"] = False
            yield f"tools.mcp.servers.{name} is off: its {part}.{key} cannot be used: {fault}"


def _plugin_secrets(tree: Tree, reader: SecretReader) -> Iterator[str]:
    plugins = (_node(tree, ("channels",)) or {}).get("plugins")
    for name, plugin in plugins.items() if isinstance(plugins, dict) else ():
        values = plugin.get("secrets") if isinstance(plugin, dict) else None
        for key, fault in _in_place(values, reader) if isinstance(values, dict) else ():
            plugin["enabled"] = False
            yield f"channels.plugins.{name} is off: its secrets.{key} cannot be used: {fault}"


def _server_parts(tree: Tree) -> Iterator[tuple[str, str, Tree]]:
    """Yield ``(server, env or headers, values)`` wherever they have the form of objects."""
    servers = (_node(tree, ("tools", "mcp")) or {}).get("servers")
    for name, server in servers.items() if isinstance(servers, dict) else ():
        for part in ("env", "headers"):
            values = server.get(part) if isinstance(server, dict) else None
            if isinstance(values, dict):
                yield name, part, values


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


def _node(tree: Tree, path: tuple[str, ...]) -> Tree | None:
    node: Any = tree
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else None
