from __future__ import annotations

import json
from pathlib import Path

from shared.settings import Settings, load
from shared.settings.secret_values import secret_values


def settings_of(home: Path, servers: object, security: str = "", **environ: str) -> Settings:
    (home / "config.json").write_text(json.dumps({"tools": {"mcp": {"servers": servers}}}))
    (home / ".security.yml").write_text(security)
    (home / ".security.yml").chmod(0o600)
    return load({"PICOCLAW_HOME": str(home), "HOME": str(home), **environ})


def test_a_server_s_ordinary_values_are_no_secrets(tmp_path: Path) -> None:
    server = {
        "url": "https://mcp.example",
        "headers": {"Content-Type": "application/json", "Authorization": "Bearer abc-0123456789"},
        "env": {"PATH": "/usr/local/bin", "GITHUB_TOKEN": "ghp-0123456789"},
    }
    texts = secret_values(settings_of(tmp_path, {"github": server}))
    assert texts == ("Bearer abc-0123456789", "abc-0123456789", "ghp-0123456789")


def test_what_the_security_file_or_a_secret_form_gives_is_secret_by_any_name(tmp_path: Path) -> None:
    server = {"url": "https://mcp.example", "env": {"HARMLESS": "env://MINE", "OPEN": "open-0123456789"}}
    security = "tools: {mcp: {servers: {github: {headers: {X-Ordinary: 'file-0123456789'}}}}}"
    texts = secret_values(settings_of(tmp_path, {"github": server}, security, MINE="mine-0123456789"))
    assert texts == ("file-0123456789", "mine-0123456789")


def test_passwords_in_addresses_are_secret(tmp_path: Path) -> None:
    server = {"url": "https://me:pass-0123456789@mcp.example"}
    settings = settings_of(tmp_path, {"a": server}, ANTHROPIC_BASE_URL="http://u:word-0123456789@127.0.0.1:1")
    assert secret_values(settings) == ("pass-0123456789", "word-0123456789")


def test_secrets_among_the_parameters_of_addresses_are_secret(tmp_path: Path) -> None:
    server = {"url": "https://mcp.example/mcp?exampleApiKey=key-0123456789&toolset=everything"}
    database = "postgresql://u@h/d?password=pass%2B0123456789&sslkey=/etc/ssl/client.key"
    settings = settings_of(tmp_path, {"a": server}, DATABASE_URL=database)
    assert secret_values(settings) == ("key-0123456789", "pass+0123456789", database)


def test_passwords_are_secret_in_whatever_address_they_stand(tmp_path: Path) -> None:
    address = "postgresql://me:{}-0123456789@db/notes"
    server = {
        "command": "notes",
        "args": [
            address.format("bare"),
            f"--db={address.format('option')}",
            "see http://a:example@b.example",
        ],
        "env": {"PLACE": address.format("env")},
    }
    settings = settings_of(
        tmp_path,
        {"a": server},
        OTEL_EXPORTER_OTLP_ENDPOINT="https://me:otel-0123456789@otel.example",
        PICOCLAW_CHANNELS_TELEGRAM_API_BASE="http://me:bot%2D0123456789@bots.example",
        SYSTEM_PROMPT_OVERRIDE="An address has the form http://user:password@host.",
    )
    names = ("bare", "bot%2D", "bot", "env", "option", "otel")
    expected = {f"{name}-0123456789" for name in names if name != "bot%2D"} | {"bot%2D0123456789"}
    assert set(secret_values(settings)) == expected


def test_a_variable_whose_name_says_so_is_secret_in_whatever_text_it_is_put(tmp_path: Path) -> None:
    servers = {
        "a": {"url": "https://mcp.example/${PLACE}?k=${WIKI_TOKEN}"},
        "b": {"command": "notes", "args": ["--key=${NOTES_KEY}", "${OTHER_KEY:-none}"]},
    }
    values = {"WIKI_TOKEN": "wiki-0123456789", "NOTES_KEY": "notes-0123456789", "PLACE": "place-0123456789"}
    assert secret_values(settings_of(tmp_path, servers, **values)) == ("notes-0123456789", "wiki-0123456789")


def test_the_headers_of_telemetry_are_secret_whole_and_the_token_in_them_alone(tmp_path: Path) -> None:
    value = "Bearer otel-0123456789"
    settings = settings_of(tmp_path, {}, OTEL_EXPORTER_OTLP_HEADERS=f"authorization={value}")
    assert secret_values(settings) == (value, f"authorization={value}", "otel-0123456789")


def test_an_address_that_is_none_hides_no_password_behind_it(tmp_path: Path) -> None:
    entry = {"model_name": "a", "model": "openai/x", "api_base": "http://u:word-0123456789@127.0.0.1:1"}
    (tmp_path / "config.json").write_text(json.dumps({"model_list": [entry]}))
    (tmp_path / "managed-mcp.json").write_text(json.dumps({"mcpServers": {"a": {"url": "http://[no"}}}))
    settings = load({"PICOCLAW_HOME": str(tmp_path), "HOME": str(tmp_path), "ORG_DIR": str(tmp_path)})
    assert secret_values(settings) == ("word-0123456789",)
