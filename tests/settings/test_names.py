"""Every environment name sets its setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr

from shared.settings import Settings, load
from shared.settings.leaves import Leaf, leaves

SPECIAL: dict[str, tuple[str, Any]] = {
    "timezone": ("Europe/Berlin", "Europe/Berlin"),
    "main_conversation_id": ("home", "home"),
    "model.base_url": ("https://model.example", "https://model.example"),
    "channels.telegram.api_base": ("https://bot.example", "https://bot.example"),
    "channels.telegram.webhook_url": ("https://me.example", "https://me.example"),
    "channels.telegram.max_file_mb": ("3", 3),
    "channels.telegram.principals": ('{"7": "operator"}', {"7": "operator"}),
    "channels.plugins": (
        '{"mailbox": {"options": {"directory": "/x", "often": 2}, "secrets": {"key": "some-text"}}}',
        {"mailbox": {"options": {"directory": "/x", "often": 2}, "secrets": {"key": "some-text"}}},
    ),
    "sandbox_min_level": ("1", 1),
    "sandbox_max_level": ("2", 2),
    "tools.web.allowed_domains": ("one.example, two.example/docs", ["one.example", "two.example/docs"]),
    "tools.web.blocked_domains": ("one.example, two.example/docs", ["one.example", "two.example/docs"]),
    "database_url": ("postgresql://a@db/pico", "postgresql://a@db/pico"),
    "database_tools_url": ("postgresql://b@db/pico", "postgresql://b@db/pico"),
    "database_connections": ("20", 20),
    "gateway.trusted_proxies": ("10.0.0.7, fd00::/8", ["10.0.0.7/32", "fd00::/8"]),
    "model_list": ('[{"model_name": "a", "model": "m"}]', [{"model_name": "a", "model": "m"}]),
    "permissions": ('[{"tool": "exec", "do": "ask"}]', [{"tool": "exec", "do": "ask"}]),
    "tools.plugins": ('{"dice": {"sides": 20}}', {"dice": {"sides": 20}}),
    "tools.mcp.servers": ('{"a": {"url": "http://a"}}', {"a": {"url": "http://a"}}),
    "auth.jwt.jwks_url": ("https://login.example/keys", "https://login.example/keys"),
    "auth.jwt.defaults.scopes": ("usage, chat", ["chat", "usage"]),
    "history.windows": ('{"m": 1000000}', {"m": 1_000_000}),
    "history.compact_at": ("0.5", 0.5),
    "telemetry.sample": ("0.25", 0.25),
    "telemetry.endpoint": ("http://collector:4318", "http://collector:4318"),
    "budgets.prices": ('{"m": {"input": 1.5, "output": 2}}', {"m": {"input": 1.5, "output": 2.0}}),
}

CASES = [(leaf, name) for leaf in leaves() for name in leaf.env]


BESIDE = {
    "DATABASE_POOLER": {"DATABASE_URL": "postgresql://a@db/pico"},
    "DATABASE_CONNECTIONS": {"DATABASE_URL": "postgresql://a@db/pico"},
    "DATABASE_TOOLS_URL": {"DATABASE_URL": "postgresql://a@db/pico"},
    "PICOCLAW_AUTH_JWT_ISSUER": {"PICOCLAW_AUTH_JWT_AUDIENCE": "me", "PICOCLAW_AUTH_JWT_JWKS_FILE": "/keys"},
}
"""What a setting has no effect without, or can't be set without."""
PRICES = {"PICOCLAW_BUDGETS_PRICES": '{"claude-sonnet-5-5": {"input": 3, "output": 15}}'}


def around(home: Path, leaf: Leaf, name: str) -> dict[str, str]:
    """The environment that a setting is tried in."""
    priced = PRICES if leaf.key.endswith(".dollars") else {}
    return {"HOME": str(home), "PICOCLAW_HOME": str(home), **BESIDE.get(name, {}), **priced}


def sample(leaf: Leaf) -> tuple[str, Any]:
    """A value as it is written in the environment, and as it must come out."""
    if leaf.key in SPECIAL:
        return SPECIAL[leaf.key]
    if leaf.kind is bool:
        opposite = not leaf.field.default
        return ("on" if opposite else "off"), opposite
    if leaf.kind in (int, float):
        return "2048", 2048
    if leaf.kind is Path:
        return "/some/where", Path("/some/where")
    if leaf.is_paths:
        return "/one, /two", ["/one", "/two"]
    if get_origin(leaf.kind) is tuple:
        return "one, two", ["one", "two"]
    if get_args(leaf.kind):
        choice = next(item for item in get_args(leaf.kind) if item != leaf.field.default)
        return choice.upper(), choice
    return "some-text-0123456789", "some-text-0123456789"


def plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in value.model_fields_set}
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def value_of(settings: Settings, leaf: Leaf) -> Any:
    node: Any = settings
    for step in leaf.path:
        node = getattr(node, step)
    return plain(node)


@pytest.mark.parametrize(("leaf", "name"), CASES, ids=[name for _, name in CASES])
def test_a_name_sets_its_setting(tmp_path: Path, leaf: Leaf, name: str) -> None:
    written, expected = sample(leaf)
    if leaf.path == ("config_path",):
        (tmp_path / "other.json").touch()
        written, expected = str(tmp_path / "other.json"), tmp_path / "other.json"
    settings = load({**around(tmp_path, leaf, name), name: written})
    assert value_of(settings, leaf) == expected
    assert not any(name in warning for warning in settings.warnings)
    assert (name in settings.secret_names) == leaf.is_secret


@pytest.mark.parametrize("leaf", [leaf for leaf in leaves() if leaf.in_config], ids=lambda leaf: leaf.key)
def test_a_key_of_the_file_sets_its_setting(tmp_path: Path, leaf: Leaf) -> None:
    written, expected = sample(leaf)
    tree: Any = written if leaf.kind is Path else expected
    for step in reversed(leaf.path):
        tree = {step: tree}
    environ = around(tmp_path, leaf, leaf.env[-1])
    default = value_of(load(environ), leaf)
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert value_of(load(environ), leaf) == expected != default
