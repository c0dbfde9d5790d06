from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.secrets import Sealer
from shared.settings import Settings, SettingsError, load
from shared.settings.secret_values import secret_values

CONFIG: dict[str, Any] = {
    "model_list": [
        {"model_name": "default", "model": "claude-a"},
        {"model_name": "default", "model": "claude-b"},
        {"model_name": "small:8b", "model": "claude-c"},
    ],
    "channels": {"telegram": {"enabled": True, "allow_from": ["*"]}},
    "tools": {"mcp": {"servers": {"github": {"url": "https://mcp.example/x"}}}},
}


def settings_of(home: Path, security: str, config: object = CONFIG, **environ: str) -> Settings:
    (home / "config.json").write_text(json.dumps(config))
    write_private(home / ".security.yml", security)
    return load({"PICOCLAW_HOME": str(home), "HOME": str(home), **environ})


def write_private(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def fault_of(home: Path, security: str, config: object = CONFIG) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_of(home, security, config)
    return str(caught.value)


def keys_of(settings: Settings) -> list[list[str]]:
    return [[key.get_secret_value() for key in entry.api_keys] for entry in settings.model_list]


def test_the_file_gives_what_the_config_leaves_out(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        """
        model_list:
          default: {api_keys: ["sk-1", "sk-2", "sk-3"]}
        channels:
          telegram: {token: "123:abc"}
        api_token: "a-token-0123456789"
        tools: {mcp: {servers: {github: {headers: {Authorization: "Bearer x"}}}}}
        """,
    )
    assert settings.warnings == ()
    assert keys_of(settings) == [["sk-1", "sk-2", "sk-3"], ["sk-1", "sk-2", "sk-3"], []]
    assert settings.channels.telegram.token is not None
    assert settings.channels.telegram.token.get_secret_value() == "123:abc"
    assert settings.channels.telegram.allow_from == ("*",)
    github = settings.tools.mcp.servers["github"]
    assert github.headers["Authorization"].get_secret_value() == "Bearer x"
    assert github.url == "https://mcp.example/x"
    assert set(secret_values(settings)) >= {"sk-1", "sk-3", "123:abc", "a-token-0123456789", "Bearer x"}


def test_entries_of_one_name_are_told_apart_by_their_number(tmp_path: Path) -> None:
    security = (
        "model_list: {'default:0': {api_keys: [a]}, 'default:1': {api_key: b}, 'small:8b': {api_keys: [c]}}"
    )
    assert keys_of(settings_of(tmp_path, security)) == [["a"], ["b"], ["c"]]


def test_the_file_wins_over_the_config_and_the_environment_over_both(tmp_path: Path) -> None:
    config = CONFIG | {"channels": {"telegram": {"token": "config"}}}
    security = "channels: {telegram: {token: file}}"
    token = settings_of(tmp_path, security, config).channels.telegram.token
    assert token is not None
    assert token.get_secret_value() == "file"
    environ = {"PICOCLAW_CHANNELS_TELEGRAM_TOKEN": "environment"}
    token = settings_of(tmp_path, security, config, **environ).channels.telegram.token
    assert token is not None
    assert token.get_secret_value() == "environment"


def test_models_of_the_environment_take_their_keys_from_the_file(tmp_path: Path) -> None:
    x = {"model_name": "x", "model": "claude"}
    listed = json.dumps([x, {**x, "model_name": "y", "api_keys": ["own"]}])
    security = "model_list: {x: {api_keys: [file]}, y: {api_keys: [file]}}"
    settings = settings_of(tmp_path, security, PICOCLAW_MODEL_LIST=listed)
    assert keys_of(settings) == [["file"], ["own"]]
    assert "PICOCLAW_MODEL_LIST" in settings.secret_names


def test_the_seed_s_nested_channel_settings_map_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "channels: {telegram: {settings: {token: '123:abc'}}}")
    assert settings.channels.telegram.token is not None
    assert settings.warnings == ()


@pytest.mark.parametrize("before", ["group_trigger:", "tokn: typo"])
def test_what_says_nothing_hides_nothing_that_comes_after_it(tmp_path: Path, before: str) -> None:
    settings = settings_of(tmp_path, f"channels:\n  telegram:\n    {before}\n    token: '123:abc'\n")
    assert settings.channels.telegram.token is not None
    assert settings.channels.telegram.token.get_secret_value() == "123:abc"


@pytest.mark.parametrize(
    "empty", ["", "# only a comment\n", "channels:\n", "channels: {telegram: {token: ''}}"]
)
def test_an_empty_entry_wipes_nothing(tmp_path: Path, empty: str) -> None:
    config = CONFIG | {"channels": {"telegram": {"token": "kept"}}}
    token = settings_of(tmp_path, empty, config).channels.telegram.token
    assert token is not None
    assert token.get_secret_value() == "kept"


@pytest.mark.parametrize(
    ("security", "said"),
    [
        ("modle_list: {}", "modle_list names nothing; did you mean model_list?"),
        (
            "model_list: {defualt: {api_keys: [canary]}}",
            "model_list.defualt names nothing; did you mean default?",
        ),
        ("model_list: {'default:7': {api_keys: [canary]}}", "model_list.default:7 names nothing"),
        ("channels: {telegrm: {token: canary}}", "channels.telegrm names nothing; did you mean telegram?"),
        ("channels: {telegram: {tokn: canary}}", "channels.telegram.tokn names nothing; did you mean token?"),
        ("tools: {mcp: {servers: {gitub: {env: {A: canary}}}}}", "gitub names nothing; did you mean github?"),
    ],
)
def test_a_typo_is_a_warning_that_names_it(tmp_path: Path, security: str, said: str) -> None:
    (warning,) = settings_of(tmp_path, security).warnings
    assert said in warning
    assert "line 1" in warning
    assert "canary" not in warning


@pytest.mark.parametrize(
    ("security", "said"),
    [
        ("a: [1,\nb: canary: canary", "is not YAML"),
        ("api_token: canary\napi_token: canary2", "line 2: has the same key twice"),
        ("- canary", "must hold a mapping"),
        ("\n\napi_token: 12345678901", "line 3: api_token must be text"),
        ("api_token: 2026-01-01", "line 1: api_token must be text"),
        ("channels:\n  telegram:\n    token: [canary]", "line 3: channels.telegram.token must be text"),
        ("model_list: [canary]", "line 1: model_list must map model names to their api_keys"),
        ("model_list:\n  default: canary", "line 2: model_list.default must be an object with api_keys"),
        ("model_list:\n default:\n  api_keys: canary", "line 3: model_list.default.api_keys must be a list"),
        ("a: &a [x]\n" + "\n".join(f"b{i}: &b{i} [*a,*a]" for i in range(3)) + "\ny: \x00", "is not YAML"),
    ],
)
def test_faults_are_reported_by_line_and_never_echo_a_value(tmp_path: Path, security: str, said: str) -> None:
    fault = fault_of(tmp_path, security)
    assert said in fault
    assert fault.startswith(str(tmp_path / ".security.yml"))
    assert "canary" not in fault
    assert "\n" not in fault


def test_a_tree_that_repeats_itself_is_refused_at_once(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    rows += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert fault_of(tmp_path, "\n".join(rows)).endswith("is nested or repeated beyond all use")


def test_a_file_that_others_can_read_is_a_warning_with_what_mends_it(tmp_path: Path) -> None:
    settings_of(tmp_path, "api_token: canary-0123456789")
    path = tmp_path / ".security.yml"
    path.chmod(0o644)
    environ = {"PICOCLAW_HOME": str(tmp_path)}
    assert load(environ).warnings == (f"SECURITY: {path} can be read by others; run chmod 600 {path}",)
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 4321, 4321)
        (warning,) = load(environ).warnings
        assert "belongs to another user" in warning


def test_secret_values_may_be_in_files_variables_or_sealed(tmp_path: Path) -> None:
    sealer = Sealer("open sesame")
    (tmp_path / "telegram.token").write_text("from a file\n")
    security = f"""
        api_token: "{sealer.seal("sealed-0123456789")}"
        channels: {{telegram: {{token: "file://telegram.token"}}}}
        model_list: {{default: {{api_keys: ["env://MY_KEY", "plain"]}}}}
        tools: {{mcp: {{servers: {{github: {{headers: {{X: "{sealer.seal("deep")}"}}}}}}}}}}
    """
    environ = {"PICOCLAW_KEY_PASSPHRASE": "open sesame", "MY_KEY": "from a variable"}
    settings = settings_of(tmp_path, security, **environ)
    assert settings.warnings == ()
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == "sealed-0123456789"
    assert settings.channels.telegram.token is not None
    assert settings.channels.telegram.token.get_secret_value() == "from a file"
    assert keys_of(settings)[0] == ["from a variable", "plain"]
    assert settings.tools.mcp.servers["github"].headers["X"].get_secret_value() == "deep"
    assert settings.secret_names == {"PICOCLAW_KEY_PASSPHRASE", "MY_KEY"}


def test_a_client_secret_has_the_same_forms_and_a_bad_one_leaves_its_server_out(tmp_path: Path) -> None:
    security = (
        "tools: {mcp: {servers: {github: {client_secret: '" + Sealer("open sesame").seal("sealed") + "'}}}}"
    )
    settings = settings_of(tmp_path, security, PICOCLAW_KEY_PASSPHRASE="open sesame")
    secret = settings.tools.mcp.servers["github"].client_secret
    assert (settings.warnings, secret and secret.get_secret_value()) == ((), "sealed")
    settings = settings_of(tmp_path, security, PICOCLAW_KEY_PASSPHRASE="wrong")
    assert not settings.tools.mcp.servers["github"].enabled
    assert "its client_secret cannot be used" in settings.warnings[0]


@pytest.mark.parametrize(
    "url", ["${NOT_THERE}/mcp", "https://${NOT_THERE}:${PORT}/mcp", "https://${NOT_THERE}"]
)
def test_a_server_whose_address_cannot_be_had_is_left_out_alone(tmp_path: Path, url: str) -> None:
    server = {"url": url, "headers": {"X": "env://NOT_THERE"}}
    settings = settings_of(tmp_path, "", {"tools": {"mcp": {"servers": {"wiki": server}}}})
    assert not settings.tools.mcp.servers["wiki"].enabled
    assert "url cannot be used: the environment variable NOT_THERE is not set" in settings.warnings[-1]
    off = {"wiki": {**server, "enabled": False}}
    (tmp_path / "managed-mcp.json").write_text(json.dumps({"mcpServers": off}))
    config = {"tools": {"mcp": {"servers": off}}}
    assert settings_of(tmp_path, "", config, ORG_DIR=str(tmp_path)).warnings == ()


@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_TOOLS_URL"])
def test_a_store_whose_address_cannot_be_had_is_no_other_store(tmp_path: Path, name: str) -> None:
    for value in ("file://not-there", "env://NOT_THERE", "enc://AAAA", "postgresql://a:${NOT_THERE}@db/pico"):
        with pytest.raises(SettingsError, match=f"{name} cannot be used"):
            settings_of(tmp_path, "", **{name: value})


def test_one_bad_value_disables_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    sealed = Sealer("right").seal("value")
    security = f"""
        api_token: "{sealed}"
        channels: {{telegram: {{token: "file://../outside"}}}}
        model_list: {{default: {{api_keys: ["env://NOT_THERE", "good"]}}}}
        tools: {{mcp: {{servers: {{github: {{headers: {{X: "enc://canary"}}}}}}}}}}
    """
    settings = settings_of(tmp_path, security, PICOCLAW_KEY_PASSPHRASE="wrong")
    assert settings.api_token is None
    assert not settings.channels.telegram.enabled
    assert keys_of(settings)[0] == ["good"]
    assert not settings.tools.mcp.servers["github"].enabled
    said = "\n".join(settings.warnings)
    for part in (
        "api_token",
        "channels.telegram.token",
        "model_list.0.api_keys.0",
        "tools.mcp.servers.github",
    ):
        assert part in said
    assert sealed not in said
    assert "canary" not in said


def test_the_passphrase_is_asked_for_once_and_only_when_it_is_needed(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask() -> str:
        asked.append("asked")
        return "open sesame"

    environ = {"PICOCLAW_HOME": str(tmp_path)}
    write_private(tmp_path / ".security.yml", "api_token: plain-0123456789")
    load(environ, ask)
    assert asked == []
    sealer = Sealer("open sesame")
    security = f"api_token: {sealer.seal('a')}\napi_token_previous: {sealer.seal('b')}"
    write_private(tmp_path / ".security.yml", security)
    settings = load(environ, ask)
    assert settings.api_token_previous is not None
    assert settings.api_token_previous.get_secret_value() == "b"
    assert asked == ["asked"]


@pytest.mark.parametrize(
    ("listed", "security", "keys"),
    [
        (["gpt:0", "gpt:1"], {"gpt": ["a"]}, [["a"], ["a"]]),
        (["gpt:0", "gpt:1"], {"gpt": ["a"], "gpt:1": ["b"]}, [["a"], ["b"]]),
        (["gpt:0", "gpt:1"], {"gpt:1": ["b"], "gpt": ["a"]}, [["a"], ["b"]]),
        (["gpt", "gpt"], {"gpt": ["a"], "gpt:1": ["b"]}, [["a"], ["b"]]),
        (["gpt", "gpt:1"], {"gpt": ["a"]}, [["a"], []]),
        (["gpt:8b", "gpt:"], {"gpt": ["a"]}, [[], []]),
    ],
)
def test_indexed_names_find_their_keys(
    tmp_path: Path, listed: list[str], security: dict[str, list[str]], keys: list[list[str]]
) -> None:
    entries = [{"model_name": name, "model": "claude-a"} for name in listed]
    given = {name: {"api_keys": values} for name, values in security.items()}
    settings = settings_of(tmp_path, json.dumps({"model_list": given}), {"model_list": entries})
    assert keys_of(settings) == keys


def test_keys_of_a_name_go_to_the_first_entrys_address_alone(tmp_path: Path) -> None:
    bases = ["http://one.test", "http://one.test/v1/", "http://two.test"]
    entries = [{"model_name": "a", "model": "m", "api_base": base} for base in bases]
    settings = settings_of(tmp_path, "model_list: {a: {api_keys: [k]}}", {"model_list": entries})
    assert keys_of(settings) == [["k"], ["k"], []]
    assert "stand under a:1, a:2" in settings.warnings[0]


def test_keys_of_a_model_are_read_also_behind_one_without_keys(tmp_path: Path) -> None:
    models = [{"model_name": name, "model": f"anthropic/{name}"} for name in ("keyless", "keyed")]
    security = 'model_list: {keyed: {api_keys: ["env://MY_KEY"]}}'
    settings = settings_of(tmp_path, security, {"model_list": models}, MY_KEY="from a variable")
    assert keys_of(settings) == [[], ["from a variable"]]


@pytest.mark.parametrize(
    "empty", ["api_key: ''", "api_keys: ''", "api_keys: ['']", "api_keys: []", "api_key: null"]
)
def test_an_empty_key_wipes_no_key(tmp_path: Path, empty: str) -> None:
    entry = {"model_name": "default", "model": "claude-a", "api_keys": ["kept"]}
    settings = settings_of(tmp_path, f"model_list: {{default: {{{empty}}}}}", {"model_list": [entry]})
    assert (keys_of(settings), settings.warnings) == ([["kept"]], ())
