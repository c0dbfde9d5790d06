"""Entries of other servers: a fault names the entry, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.mcp_clients.server_config import (
    ServerConfig,
    configured_servers,
    managed_servers,
    operators_servers,
    parse_servers,
)
from shared import jsons
from shared.errors import InvalidInput, Misconfigured
from shared.secrets import Sealer
from shared.settings import SettingsError, load
from shared.settings.secret_values import secret_values
from shared.settings.tools import McpServer

URL = "https://tools.example/mcp"


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ([], "mcp_servers"),
        ({"picoclaw": {"url": URL}}, "mcp_servers.picoclaw"),
        ({"PicoClaw": {"url": URL}}, "mcp_servers.PicoClaw"),
        ({"b g": {"url": URL}}, "mcp_servers.b g"),
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


def organisation(home: Path, text: str, **environ: str) -> dict[str, ServerConfig]:
    (home / "managed-mcp.json").write_text(text)
    settings = load({"PICOCLAW_HOME": str(home), "ORG_DIR": str(home), **environ})
    return managed_servers(settings.managed_mcp)


def test_the_organisations_file_is_read_and_trusted(tmp_path: Path) -> None:
    assert managed_servers(load({"PICOCLAW_HOME": str(tmp_path)}).managed_mcp) == {}
    assert managed_servers(load({"PICOCLAW_HOME": str(tmp_path), "ORG_DIR": str(tmp_path)}).managed_mcp) == {}
    assert organisation(tmp_path, '{"mcpServers": {"wiki": {"url": "http://10.0.0.5/mcp"}}}')["wiki"].trusted
    for text, named in (
        ("{", r"managed-mcp\.json, line 1: is not JSON"),
        ("[]", r"managed-mcp\.json must hold a JSON object"),
        ('{"mcpServers": []}', "mcpServers: must be an object"),
        ('{"mcpServers": {"wiki": 1}}', r"mcpServers\.wiki: must be an object"),
        ('{"mcpServers": {"wiki": {}}}', r"mcpServers\.wiki\.url"),
        ('{"mcpServers": {"wiki": {"url": 1, "headers": 2}}}', r"mcpServers\.wiki\.url"),
    ):
        with pytest.raises((InvalidInput, SettingsError), match=named):
            organisation(tmp_path, text)


FORMS = {
    "${WIKI_TOKEN}": "token-in-a-variable",
    "Bearer ${WIKI_TOKEN}": "Bearer token-in-a-variable",
    "${ABSENT:-token-by-default}": "token-by-default",
    "env://WIKI_TOKEN": "token-in-a-variable",
    "file://wiki.key": "token-in-a-file",
    Sealer("sesame").seal("token-that-was-sealed"): "token-that-was-sealed",
}


@pytest.mark.parametrize(("form", "value"), FORMS.items(), ids=range(len(FORMS)))
def test_the_organisations_secrets_may_have_every_form_and_are_known_to_the_redactor(
    tmp_path: Path, form: str, value: str
) -> None:
    (tmp_path / "wiki.key").write_text("token-in-a-file\n")
    environ = {"WIKI_TOKEN": "token-in-a-variable", "PICOCLAW_KEY_PASSPHRASE": "sesame"}
    servers = {
        "http": {"url": "https://wiki.example/${PLACE}", "headers": {"X-Wiki": form}},
        "stdio": {
            "type": "stdio",
            "command": "wiki",
            "args": ["file:///tmp/${PLACE}"],
            "env": {"WIKI": form},
        },
    }
    (tmp_path / "managed-mcp.json").write_text(json.dumps({"mcpServers": servers}))
    home = {"PICOCLAW_HOME": str(tmp_path), "ORG_DIR": str(tmp_path), "PLACE": "here"}
    settings = load(home | environ)
    found = managed_servers(settings.managed_mcp)
    assert (found["http"].url, found["http"].headers) == ("https://wiki.example/here", {"X-Wiki": value})
    assert (found["stdio"].args, found["stdio"].env) == (("file:///tmp/here",), {"WIKI": value})
    if form != "${ABSENT:-token-by-default}":
        assert value in secret_values(settings)
    assert ("WIKI_TOKEN" in settings.secret_names) == ("WIKI_TOKEN" in form)
    assert "PLACE" not in settings.secret_names
    assert value not in repr(settings)


@pytest.mark.parametrize(
    "form", ["${ABSENT}", "Bearer ${ABSENT}", "env://ABSENT", "file://absent", "enc://AAAA"]
)
@pytest.mark.parametrize("part", ["headers", "env"])
def test_an_organisations_secret_that_cannot_be_had_stops_the_start_with_its_name(
    tmp_path: Path, form: str, part: str
) -> None:
    text = json.dumps({"mcpServers": {"wiki": {"url": "https://wiki.example", part: {"TOKEN": form}}}})
    with pytest.raises(SettingsError, match=rf"managed-mcp\.json: mcpServers\.wiki\.{part}\.TOKEN: "):
        organisation(tmp_path, text)


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


FORMS_OF_AN_ENTRY: list[tuple[dict[str, Any], str]] = [
    ({"command": "wiki"}, "stdio"),
    ({"url": URL}, "http"),
    ({"type": "streamable-http", "url": URL}, "http"),
    ({"type": "streamableHttp", "url": URL}, "http"),
    ({"type": "sse", "url": URL}, "sse"),
]


@pytest.mark.parametrize(("entry", "kind"), FORMS_OF_AN_ENTRY)
def test_the_three_places_take_the_same_entries(tmp_path: Path, entry: dict[str, Any], kind: str) -> None:
    servers = {"GitHub": {**entry, "timeout_ms": 60_000}, "off": {"enabled": False, **entry}}
    (tmp_path / "managed-mcp.json").write_text(json.dumps({"mcpServers": servers}))
    (tmp_path / "config.json").write_text(json.dumps({"tools": {"mcp": {"servers": servers}}}))
    settings = load({"PICOCLAW_HOME": str(tmp_path), "ORG_DIR": str(tmp_path)})
    assert settings.warnings == ()
    found = [
        configured_servers(settings.tools.mcp.servers),
        managed_servers(settings.managed_mcp),
        parse_servers(servers, stdio_allowed=True),
        operators_servers(settings),
    ]
    for each in found:
        assert list(each) == ["GitHub"]
        assert (each["GitHub"].type, each["GitHub"].start_ms) == (kind, 60_000)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "managed-mcp.json",
            '{"mcpServers": {\n  "wiki": {"url": "http://wiki"},\n  "a b": {"url": "http://a"}}}',
            "line 3: managed-mcp.json: mcpServers.a b: a name takes",
        ),
        (
            "managed-mcp.json",
            '{"mcpServers": {\n  "wiki": {\n    "url": "http://wiki",\n    "colour": "red"}}}',
            "line 4: managed-mcp.json: mcpServers.wiki.colour: is not a field",
        ),
        (
            "config.json",
            '{"tools": {"mcp": {"servers": {\n  "PicoClaw": {"url": "http://wiki"}}}}}',
            "line 2: tools.mcp.servers.PicoClaw: this name is the built-in server's",
        ),
    ],
)
def test_a_refused_entry_of_a_file_stops_the_start_with_its_line(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    settings = load({"PICOCLAW_HOME": str(tmp_path), "ORG_DIR": str(tmp_path)})
    with pytest.raises(Misconfigured) as refused:
        operators_servers(settings)
    assert refused.value.message.startswith(f"{tmp_path / name}, {said}")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"url": "http://"}, "tools.mcp.servers.wiki.url must be an http or https address"),
        ({"url": "http://a.example/a b"}, "tools.mcp.servers.wiki.url must be an http or https address"),
        ({"url": URL, "headers": {"X Y": "1"}}, "tools.mcp.servers.wiki.headers 'X Y' is not a header"),
        ({"url": URL, "headers": {"Content-Length": "1"}}, "wiki.headers 'Content-Length' is not a header"),
        ({"url": URL, "timeout_ms": 600_001}, "tools.mcp.servers.wiki.timeout_ms must be 600000 or less"),
        ({"command": "wiki", "env": {"A=B": "1"}}, "tools.mcp.servers.wiki.env must be an object of texts"),
        ({"command": "wiki\0"}, "tools.mcp.servers.wiki.command must not contain NUL"),
        ({"command": "wiki", "args": ["\0"]}, "tools.mcp.servers.wiki.args.0 must not contain NUL"),
    ],
)
def test_what_no_request_may_have_config_json_may_not_have_either(
    tmp_path: Path, entry: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput):
        parse_servers({"wiki": entry}, stdio_allowed=True)
    text = json.dumps({"tools": {"mcp": {"servers": {"wiki": entry}}}}, indent=1)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SettingsError, match=r"config\.json, line \d+: ") as refused:
        load({"PICOCLAW_HOME": str(tmp_path)})
    assert said in str(refused.value)


def test_a_header_has_no_blanks_around_its_value() -> None:
    entry = {"url": URL, "headers": {"Authorization": " Bearer x y\r\n"}}
    (server,) = parse_servers({"wiki": entry}, stdio_allowed=False).values()
    assert server.headers == {"Authorization": "Bearer x y"}


def test_two_servers_of_one_name_in_one_file_are_said_with_their_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = '"a": {"url": "http://one"}'
    (tmp_path / "config.json").write_text(
        f'{{"tools": {{"mcp": {{"servers": {{\n{one},\n"a": {{"url": "http://two"}},\n"A": {{"url": "http://b"}}}}}}}}}}'
    )
    (tmp_path / "managed-mcp.json").write_text(
        f'{{"mcpServers": {{{one}, {one}, "b": {{"url": "http://c"}}}}}}'
    )
    settings = load({"PICOCLAW_HOME": str(tmp_path), "ORG_DIR": str(tmp_path)})
    config, managed = tmp_path / "config.json", tmp_path / "managed-mcp.json"
    said = "stands more than once; the last one counts"
    assert f"{config}, line 2: tools.mcp.servers.a {said}" in settings.warnings
    assert f"{managed}: mcpServers.a {said}" in settings.warnings
    assert settings.tools.mcp.servers["a"].url == "http://two"
    with caplog.at_level("WARNING"):
        assert set(operators_servers(settings)) == {"a", "A", "b"}
    assert "The MCP servers A and a differ in capitals only: both are used." in caplog.text


@pytest.mark.parametrize("text", ["", "[", "7", "[" * 60_000, '{"a":' * 1_000 + "1" + "}" * 1_000])
def test_text_without_such_an_object_repeats_nothing(text: str) -> None:
    assert jsons.repeated(text) == []
