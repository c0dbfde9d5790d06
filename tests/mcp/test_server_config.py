"""Entries of other servers: a fault names the entry, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.mcp_clients.server_config import configured_servers, managed_servers, parse_servers
from shared.errors import InvalidInput
from shared.settings.tools import McpServer

URL = "https://tools.example/mcp"


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ([], "mcp_servers"),
        ({"picoclaw": {"url": URL}}, "mcp_servers.picoclaw"),
        ({"Big": {"url": URL}}, "mcp_servers.Big"),
        ({"": {"url": URL}}, "mcp_servers."),
        ({"x" * 33: {"url": URL}}, "mcp_servers.x"),
        ({"a": "https://tools.example"}, "mcp_servers.a"),
        ({"a": {}}, "mcp_servers.a.url"),
        ({"a": {"url": 7}}, "mcp_servers.a.url"),
        ({"a": {"url": "ftp://tools.example"}}, "mcp_servers.a.url"),
        ({"a": {"url": "file:///etc/passwd"}}, "mcp_servers.a.url"),
        ({"a": {"url": "http://"}}, "mcp_servers.a.url"),
        ({"a": {"url": "http://user:pass@tools.example"}}, "mcp_servers.a.url"),
        ({"a": {"url": "http://tools.example:99999"}}, "mcp_servers.a.url"),
        ({"a": {"url": "http://tools.example/\r\nX: y"}}, "mcp_servers.a.url"),
        ({"a": {"url": URL, "type": "websocket"}}, "mcp_servers.a.type"),
        ({"a": {"url": URL, "type": ["http"]}}, "mcp_servers.a.type"),
        ({"a": {"type": "stdio", "command": "sh"}}, "mcp_servers.a.type"),
        ({"a": {"url": URL, "command": "sh"}}, "mcp_servers.a.command"),
        ({"a": {"url": URL, "colour": "red"}}, "mcp_servers.a.colour"),
        ({"a": {"url": URL, "headers": ["x"]}}, "mcp_servers.a.headers"),
        ({"a": {"url": URL, "headers": {"X": 1}}}, "mcp_servers.a.headers"),
        ({"a": {"url": URL, "headers": {"X Y": "1"}}}, "mcp_servers.a.headers"),
        ({"a": {"url": URL, "headers": {"X": "1\r\nY: 2"}}}, "mcp_servers.a.headers"),
        ({"a": {"url": URL, "timeout_ms": 0}}, "mcp_servers.a.timeout_ms"),
        ({"a": {"url": URL, "timeout_ms": True}}, "mcp_servers.a.timeout_ms"),
        ({"a": {"url": URL, "timeout_ms": "5"}}, "mcp_servers.a.timeout_ms"),
        ({"a": {"url": URL, "allowed_tools": "all"}}, "mcp_servers.a.allowed_tools"),
        ({f"s{number}": {"url": URL} for number in range(33)}, "mcp_servers"),
    ],
)
def test_a_malformed_entry_is_refused_by_name(entries: Any, named: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_servers(entries, stdio_allowed=False)
    assert refused.value.message.startswith(named)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"type": "stdio"}, "command"),
        ({"type": "stdio", "command": ""}, "command"),
        ({"type": "stdio", "command": "sh", "args": "-c"}, "args"),
        ({"type": "stdio", "command": "sh", "args": [1]}, "args"),
        ({"type": "stdio", "command": "sh", "env": {"A": 1}}, "env"),
        ({"type": "stdio", "command": "sh", "env": {"A=B": "1"}}, "env"),
        ({"type": "stdio", "command": "sh\0"}, "command"),
        ({"type": "stdio", "command": "sh", "url": URL}, "url"),
    ],
)
def test_a_malformed_program_is_refused_by_name(entry: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_servers({"a": entry}, stdio_allowed=True)
    assert refused.value.message.startswith(f"mcp_servers.a.{named}: ")


def test_a_sound_entry_is_taken_as_it_is_and_keeps_its_secrets_out_of_sight() -> None:
    entry = {
        "url": URL,
        "headers": {"Authorization": "Bearer s3cret"},
        "allowed_tools": ["x"],
        "timeout_ms": 5,
    }
    (config,) = parse_servers({"a": entry}, stdio_allowed=False).values()
    assert (config.type, config.url, config.timeout_ms, config.trusted) == ("http", URL, 5, False)
    assert config.headers == {"Authorization": "Bearer s3cret"}
    assert config.allowed_tools == frozenset({"x"})
    assert "s3cret" not in repr(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(["type", "url", "headers", "command", "args", "env", "allowed_tools", "timeout_ms"])


@given(
    st.dictionaries(FIELD, JSON | st.sampled_from(["http", "sse", "stdio", URL]), max_size=5), st.booleans()
)
def test_whatever_an_entry_holds_it_is_taken_or_refused_by_name(entry: Any, stdio_allowed: bool) -> None:
    try:
        (config,) = parse_servers({"a": entry}, stdio_allowed=stdio_allowed).values()
    except InvalidInput as error:
        complaint = error.message
    else:
        assert config.type != "stdio" or stdio_allowed
        assert config.place
        return
    assert complaint.startswith("mcp_servers.a")


def test_the_organisations_file_is_read_and_trusted(tmp_path: Path) -> None:
    assert managed_servers(None) == {}
    assert managed_servers(tmp_path) == {}
    file = tmp_path / "managed-mcp.json"
    file.write_text('{"mcpServers": {"wiki": {"url": "http://10.0.0.5/mcp"}}}')
    assert managed_servers(tmp_path)["wiki"].trusted
    for text, named in (
        ("{", "managed-mcp.json: is not JSON"),
        ('{"mcpServers": {"wiki": {}}}', "mcpServers.wiki.url"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidInput, match=named):
            managed_servers(tmp_path)


def test_the_operators_settings_become_trusted_servers() -> None:
    settings = {
        "wiki": McpServer.model_validate({"url": URL, "headers": {"X-Key": "k"}, "allowed_tools": ("read",)}),
        "off": McpServer.model_validate({"enabled": False}),
    }
    servers = configured_servers(settings)
    assert list(servers) == ["wiki"]
    assert servers["wiki"].headers == {"X-Key": "k"}
    assert servers["wiki"].trusted
    with pytest.raises(InvalidInput, match=r"tools\.mcp\.servers\.picoclaw"):
        configured_servers({"picoclaw": settings["wiki"]})
