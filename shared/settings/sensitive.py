"""Which texts of the settings must never leave the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from shared.secrets import SECRET_NAMES
from shared.settings.tools import McpServer
from shared.settings.tree import Settings


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
    databases = (settings.database_url, settings.database_tools_url)
    yield from _passwords(tuple(None if url is None else url.get_secret_value() for url in databases))
    for value in settings.telemetry.header_values().values():
        yield value
        yield from value.split()[1:]
    addresses = (settings.model.base_url, *(entry.api_base for entry in settings.model_list))
    yield from _passwords(addresses)


def _of(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, BaseModel) and not isinstance(value, McpServer):
        for name in type(value).model_fields:
            yield from _of(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _of(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _of(item)


def _of_server(server: Mapping[str, Any], key: str, secret_keys: frozenset[str]) -> Iterator[str]:
    for part in ("env", "headers"):
        values = server.get(part)
        for name, secret in values.items() if isinstance(values, dict) else ():
            text = secret.get_secret_value() if isinstance(secret, SecretStr) else str(secret)
            if SECRET_NAMES.search(name) or f"{key}.{part}.{name}" in secret_keys:
                yield text
                yield from text.split()[1:]  # "Bearer abc": the token is as secret alone
    if isinstance(secret := server.get("client_secret"), SecretStr):
        yield secret.get_secret_value()
    yield from _passwords((server.get("url"),))


def _passwords(addresses: tuple[str | None, ...]) -> Iterator[str]:
    for address in addresses:
        try:
            password = urlsplit(str(address or "")).password
        except ValueError:
            continue
        if password:
            yield password
            yield unquote(password)
