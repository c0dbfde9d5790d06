from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from shared.settings import Settings, SettingsError, load
from shared.settings.files import line_of


def settings_in(home: Path, config: object = None, **environ: str) -> Settings:
    """Load with a home of the test's own, and a config.json there when one is given."""
    if config is not None:
        (home / "config.json").write_text(json.dumps(config))
    return load({"PICOCLAW_HOME": str(home), "HOME": str(home), **environ})


def fault_in(home: Path, config: object = None, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings_in(home, config, **environ)
    return str(caught.value)


def test_without_files_and_environment_everything_lives_in_the_home(tmp_path: Path) -> None:
    settings = load({"HOME": str(tmp_path)})
    home = tmp_path / ".picoclaw"
    assert settings.memory_dir == home / "workspace"
    assert settings.store_dir == home / "store"
    assert settings.local_db_path == home / "run/picoclaw.db"
    assert settings.config_path == home / "config.json"
    assert (settings.host, settings.port) == ("127.0.0.1", 9000)
    assert settings.warnings == ()


def test_an_empty_value_in_the_environment_is_none(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, PICOCLAW_AGENTS_DEFAULTS_MAX_TOKENS="", PORT=" ")
    assert settings.agents.defaults.max_tokens == load({"HOME": str(tmp_path)}).agents.defaults.max_tokens
    assert settings.port == 9000


def test_the_line_of_a_key_is_that_of_its_deepest_part_that_is_there() -> None:
    text = "one: 1\ntwo:\n  three: 3\nfour: 4\n"
    assert line_of(text, ("two", "three")) == 3
    assert line_of(text, ("two", "five", "three")) == 2
    assert line_of(text, ("five", "four")) is None


@pytest.mark.skipif(
    os.geteuid() != 0 or Path("/root/.picoclaw").exists(), reason="needs a root without a home of before"
)
def test_the_home_of_root_is_one_that_the_commands_own_uid_can_reach(tmp_path: Path) -> None:
    assert load({"HOME": "/root"}).memory_dir == Path("/var/lib/picoclaw/workspace")
    for said in (str(tmp_path), "/root/.picoclaw"):
        assert load({"HOME": "/root", "PICOCLAW_HOME": said}).home == Path(said)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    config = {"gateway": {"port": 9001}}
    assert settings_in(tmp_path, config).port == 9001
    assert settings_in(tmp_path, config, PICOCLAW_GATEWAY_PORT="9002").port == 9002
    assert settings_in(tmp_path, config, PICOCLAW_GATEWAY_PORT="9002", PORT="9003").port == 9003


def test_two_names_for_one_setting_that_disagree_are_a_warning(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, None, PICOCLAW_GATEWAY_PORT="9002", PORT="9003")
    assert settings.warnings == ("PICOCLAW_GATEWAY_PORT is overruled by PORT: both name gateway.port",)


def test_an_empty_variable_is_an_unset_one_but_for_the_end_marker(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, None, PORT="", API_TOKEN=" ", SESSION_END_MARKER="")
    assert settings.port == 9000
    assert settings.api_token is None
    assert settings.session_end_marker == ""


def test_the_workspace_of_the_seed_s_example_is_in_the_user_s_home(tmp_path: Path) -> None:
    config = {"agents": {"defaults": {"workspace": "~/.picoclaw/workspace", "restrict_to_workspace": True}}}
    settings = settings_in(tmp_path, config)
    assert settings.memory_dir == tmp_path / ".picoclaw/workspace"
    assert settings.agents.defaults.restrict_to_workspace


@pytest.mark.parametrize("config", [None, {"agents": {"defaults": {"restrict_to_workspace": True}}}])
def test_the_wall_of_the_workspace_is_lifted_only_with_a_warning(tmp_path: Path, config: object) -> None:
    settings = settings_in(tmp_path, config, PICOCLAW_AGENTS_DEFAULTS_RESTRICT_TO_WORKSPACE="false")
    assert not settings.agents.defaults.restrict_to_workspace
    assert any("restrict_to_workspace is off" in warning for warning in settings.warnings)


@pytest.mark.parametrize("word", ["true", "1", "YES", "On"])
def test_words_for_yes(tmp_path: Path, word: str) -> None:
    assert settings_in(tmp_path, None, ALLOW_REQUEST_STDIO_MCP=word).allow_request_stdio_mcp


@pytest.mark.parametrize("word", ["maybe", "2", "tru", "wahr"])
def test_other_words_for_a_truth_stop_the_start(tmp_path: Path, word: str) -> None:
    said = fault_in(tmp_path, None, ALLOW_REQUEST_STDIO_MCP=word)
    assert said == "ALLOW_REQUEST_STDIO_MCP (environment) must be true or false (or 1, 0, yes, no, on, off)"


def test_a_database_on_the_volume_is_told(tmp_path: Path) -> None:
    places = {"STORE_DIR": "/data/store", "LOCAL_DB_PATH": "/data/store/run/picoclaw.db"}
    (warning,) = settings_in(tmp_path, None, **places).warnings
    assert warning.startswith("LOCAL_DB_PATH lies in STORE_DIR: ")
    assert settings_in(tmp_path, None, **places, DATABASE_URL="postgresql://a/b").warnings == ()
    assert settings_in(tmp_path, None, **places | {"STORE_DIR": "/data/sto"}).warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("PORT", "nine", "must be a whole number"),
        ("PORT", "70000", "must be 65535 or less"),
        ("MAX_EXECUTION_MS", "0", "must be above 0"),
        ("TZ", "Mars/Olympus", "must be the name of a time zone, such as Europe/Berlin or UTC"),
        ("LOG_LEVEL", "loud", "must be one of 'debug', 'info', 'warning' or 'error'"),
        ("ANTHROPIC_BASE_URL", "ftp://model", "must begin with http:// or https://"),
        ("ANTHROPIC_BASE_URL", "http://[bad", "must be an http or https address"),
        ("DATABASE_URL", "mysql://u:pw@h/d", "must begin with postgresql://"),
        ("DATABASE_TOOLS_URL", "postgresql://u:pw@[::1/d", "cannot be read as an address"),
        ("ANTHROPIC_BASE_URL", "https://:443", "must be an http or https address"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:port", "must be an http or https address"),
        ("PICOCLAW_AUTH_JWT_JWKS_URL", "https://issuer/a b", "must be an http or https address"),
        ("PICOCLAW_CHANNELS_TELEGRAM_WEBHOOK_URL", "http://:80", "must be an http or https address"),
        ("PICOCLAW_MODEL_LIST", "[{", "must be JSON"),
        ("PICOCLAW_BUDGETS_DAY_DOLLARS", "nan", "is a number beyond all use, or not UTF-8 text"),
        ("PICOCLAW_BUDGETS_RUN_DOLLARS", "1e400", "is a number beyond all use, or not UTF-8 text"),
        ("STORE_DIR", "$HOME/store", "has $HOME in it, which stays as it is here: write the path itself"),
        ("MEMORY_DIR", "/srv/${USER}", "has ${USER} in it, which stays as it is here: write the path itself"),
        ("LOCAL_DB_PATH", '"/srv/a.db"', 'has " in it, which stays as it is here: write the path itself'),
    ],
)
def test_a_bad_variable_stops_the_start_by_name(tmp_path: Path, name: str, value: str, end: str) -> None:
    assert fault_in(tmp_path, None, **{name: value}) == f"{name} (environment) {end}"


def test_a_home_with_a_variable_in_it_is_told_once_and_paths_of_the_config_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"HOME": str(tmp_path), "PICOCLAW_HOME": "${HOME}/.picoclaw"})
    assert str(caught.value).startswith("PICOCLAW_HOME (environment) has ${HOME} in it")
    assert len(caught.value.faults) == 1
    tools = {"allow_read_paths": ["~/docs", "$HOME/docs"]}
    assert "tools.allow_read_paths has $HOME in it" in fault_in(tmp_path, {"tools": tools})


def test_paths_of_a_list_begin_where_other_paths_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["~/docs", "~", "docs/*", "~me", "/srv//a/", "//srv/x/../b"]
    same = ["/srv/a", "/srv/b"]
    tools = settings_in(tmp_path, {"tools": {"allow_read_paths": given}}).tools
    mine = [f"{tmp_path}/docs", f"{tmp_path}"]
    assert list(tools.allow_read_paths) == [*mine, f"{tmp_path}/docs/*", f"{tmp_path}/~me", *same]
    monkeypatch.chdir("/usr")
    names = {"PICOCLAW_TOOLS_ALLOW_WRITE_PATHS": ",".join(given), "SKILLS_DIR": "~me"}
    settings = settings_in(tmp_path, None, **names)
    assert list(settings.tools.allow_write_paths) == [*mine, "/usr/docs/*", "/usr/~me", *same]
    assert settings.skills_dir == Path("/usr/~me")
    assert "must not be empty" in fault_in(tmp_path, {"tools": {"allow_read_paths": [""]}})


def test_what_a_server_of_its_type_has_no_use_for_is_a_warning(tmp_path: Path) -> None:
    servers = {
        "a": {
            "command": "notes",
            "headers": {"Authorization": "Bearer x"},
            "client_id": "me",
            "env": {"A": "b"},
        },
        "b": {"url": "https://me:canary-0123@mcp.example", "args": ["x"], "env": {}},
        "c": {"url": "https://mcp.example", "args": ["x"], "enabled": False},
    }
    assert settings_in(tmp_path, {"tools": {"mcp": {"servers": servers}}}).warnings == (
        "tools.mcp.servers.a: headers has no effect: its type is stdio",
        "tools.mcp.servers.a: client_id has no effect: its type is stdio",
        "tools.mcp.servers.b: args has no effect: its type is http",
        "tools.mcp.servers.b: credentials don't belong into its url: use headers",
    )


def test_an_unknown_name_of_ours_is_a_warning_with_the_nearest(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, None, PICOCLAW_GATEWY_PORT="1")
    assert settings.warnings == (
        "PICOCLAW_GATEWY_PORT in the environment is not a known setting; did you mean PICOCLAW_GATEWAY_PORT?",
    )


def test_an_operator_s_name_with_our_prefix_is_a_warning_with_the_right_one(tmp_path: Path) -> None:
    (warning,) = settings_in(tmp_path, None, PICOCLAW_STORE_DIR="/x").warnings
    assert warning == "PICOCLAW_STORE_DIR in the environment is not a known setting; did you mean STORE_DIR?"


def test_an_unknown_key_is_named_in_full_with_line_and_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n "agents": {\n  "defaults": {\n   "workspce": "/w"\n  }\n }\n}')
    place = f"{tmp_path}/config.json, line 4"
    assert (
        fault_in(tmp_path) == f"{place}: agents.defaults.workspce is not a known key; did you mean workspace?"
    )


def test_a_key_in_the_config_is_ignored_with_a_warning(tmp_path: Path) -> None:
    config = {"model_list": [{"model_name": "a", "model": "m", "api_key": "sk-canary-value"}]}
    settings = settings_in(tmp_path, config)
    assert settings.model_list[0].api_keys == ()
    (warning,) = settings.warnings
    assert "model_list.0.api_key is ignored" in warning
    assert "canary" not in warning


def test_nothing_is_coerced_in_the_file(tmp_path: Path) -> None:
    assert fault_in(tmp_path, {"gateway": {"port": "9000"}}).endswith("gateway.port must be a whole number")
    assert fault_in(tmp_path, {"heartbeat": {"enabled": 1}}).endswith(
        "heartbeat.enabled must be true or false"
    )


def test_versions_two_and_three_are_read(tmp_path: Path) -> None:
    for version in (2, 3):
        settings_in(tmp_path, {"version": version})
    assert fault_in(tmp_path, {"version": 4}).endswith("version must be 3 (or 2)")


def test_a_channel_open_to_everyone_is_said_unless_acknowledged(tmp_path: Path) -> None:
    open_to_all = {"channels": {"telegram": {"enabled": True, "allow_from": []}}}
    said = "SECURITY: channel telegram allows everyone (allow_from is empty)"
    assert said in settings_in(tmp_path, open_to_all).warnings
    for allowed in (["*"], ["123456789"], [123456789]):
        config = {"channels": {"telegram": {"enabled": True, "allow_from": allowed}}}
        assert settings_in(tmp_path, config).warnings == ()


@pytest.mark.parametrize(
    ("owners", "said"), [([], "is empty"), (["*"], "names nobody"), (["", "@"], "names nobody"), ([7], None)]
)
def test_a_channel_without_an_owner_is_said(tmp_path: Path, owners: list[object], said: str | None) -> None:
    channel = {"enabled": True, "allow_from": [7], "owners": owners}
    told = settings_in(tmp_path, {"channels": {"telegram": channel}}).channels.without_owners()
    begins = [each.partition(",")[0] for each in told]
    assert begins == ([] if said is None else [f"channels.telegram.owners {said}"])


@pytest.mark.parametrize(
    ("rules", "is_said"),
    [
        ([("write_file", None, "ask")], True),
        ([("edit_*", "/etc/*", "deny")], True),
        ([("exec", None, "allow"), ("*", None, "ask")], True),
        ([("write_file", None, "ask"), ("exec", None, "ask")], False),
        ([("*", None, "ask")], False),
        ([("exec", "git push *", "ask")], False),
        ([("*", None, "allow"), ("write_file", None, "deny")], False),
    ],
)
def test_gates_that_exec_leads_around_are_said(
    tmp_path: Path, rules: list[tuple[str, str | None, str]], is_said: bool
) -> None:
    permissions = [{"tool": tool, "match": match, "do": do} for tool, match, do in rules]
    (warning,) = settings_in(tmp_path, {"permissions": permissions}).warnings or ("",)
    assert ("exec can write the same files" in warning) == is_said


def test_the_names_of_secrets_in_the_environment_are_known(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, None, API_TOKEN="t" * 20, PORT="9000")
    assert settings.secret_names == {"API_TOKEN"}
    assert "t" * 20 not in repr(settings)


def test_one_workspace_for_all_principals_is_not_promised(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, {"agents": {"defaults": {"workspace_scope": "shared"}}})
    assert any("read as principal" in warning for warning in settings.warnings)


def test_principals_have_their_directories_beside_the_workspace(tmp_path: Path) -> None:
    for name in ("workspace", "principals"):
        there = settings_in(tmp_path, {"agents": {"defaults": {"workspace": str(tmp_path / name)}}})
        assert there.principals_dir.parent == tmp_path
        assert there.principals_dir != there.memory_dir


def test_all_faults_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{\n"version": 9,\n"foo": 1,\n"agents": {"defaults": {\n"max_tokens": "x",\n"workspce": "/w"}},\n'
        '"channels": {"telegram": {\n"allow_from": [true]}},\n'
        '"model_list": [\n{"model_name": "a", "model": "groq/x"}]}'
    )
    said = fault_in(tmp_path, None, PORT="nine", LOG_LEVEL="loud").splitlines()
    at = f"{tmp_path}/config.json, line"
    assert sorted(said) == sorted(
        [
            f"{at} 2: version must be 3 (or 2)",
            f"{at} 3: foo is not a known key",
            "PORT (environment) must be a whole number",
            "LOG_LEVEL (environment) must be one of 'debug', 'info', 'warning' or 'error'",
            f"{at} 5: agents.defaults.max_tokens must be a whole number",
            f"{at} 6: agents.defaults.workspce is not a known key; did you mean workspace?",
            f"{at} 8: channels.telegram.allow_from.0 must be text or must be a whole number",
            f"{at} 10: model_list.0.model needs an api_base: no address of groq is known that speaks the "
            "Messages API",
        ]
    )


def test_keys_of_sipeed_are_one_warning_and_their_nulls_are_nothing(tmp_path: Path) -> None:
    config = {
        "evolution": {"enabled": False},
        "agents": {"defaults": {"temperature": 0.7, "max_tokens": 100}},
        "model_list": [
            {"model_name": "a", "model": "claude-x", "api_keys": None, "rpm": 3, "_comment": "mine"},
        ],
        "channel_list": {"telegram": {"enabled": True}},
        "tools": {
            "allow_read_paths": None,
            "web": {"brave": {"enabled": False}},
            "mcp": {"servers": {"notes": {"command": "notes-mcp", "args": None, "deferred": True}}},
        },
        "gateway": {"port": 18790, "hot_reload": False, "log_level": "fatal"},
    }
    settings = settings_in(tmp_path, config)
    (warning,) = settings.warnings
    for key in ("evolution", "channel_list", "agents.defaults.temperature", "model_list.0.rpm"):
        assert key in warning
    assert "import sipeed" in warning
    assert settings.agents.defaults.max_tokens == 100
    assert settings.tools.mcp.servers["notes"].type == "stdio"


@pytest.mark.parametrize(
    ("word", "level"),
    [("warn", "warning"), ("WARN", "warning"), ("fatal", "error"), ("critical", "error"), ("trace", "debug")],
)
def test_the_usual_words_for_levels_are_known(tmp_path: Path, word: str, level: str) -> None:
    assert settings_in(tmp_path, None, LOG_LEVEL=word).log_level == level


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TELEGRAM_BOT_TOKEN", "TELEGRAM_BOT_TOKEN in the environment is ignored: set PICOCLAW_CHANNELS_"),
        ("OPENAI_API_KEY", "OPENAI_API_KEY in the environment is ignored: set ANTHROPIC_API_KEY"),
        ("CLAUDE_CODE_OAUTH", "CLAUDE_CODE_OAUTH in the environment is ignored: set CLAUDE_CODE_OAUTH_TOKEN"),
        ("DATABASE_POOLER", "DATABASE_POOLER in the environment has no effect without DATABASE_URL"),
        (
            "DATABASE_CONNECTIONS",
            "DATABASE_CONNECTIONS in the environment has no effect without DATABASE_URL",
        ),
        ("PICOCLAW_FOO", "PICOCLAW_FOO in the environment is not a known setting and is ignored"),
    ],
)
def test_a_name_without_effect_is_one_line(tmp_path: Path, name: str, said: str) -> None:
    (warning,) = settings_in(tmp_path, None, **{name: "1"}).warnings
    assert warning.startswith(said)


def test_a_name_that_a_secret_is_taken_from_has_an_effect(tmp_path: Path) -> None:
    config = {"channels": {"telegram": {"token": "env://TELEGRAM_BOT_TOKEN"}}}
    assert settings_in(tmp_path, config, TELEGRAM_BOT_TOKEN="1:abc").warnings == ()


def test_a_budget_in_dollars_needs_the_prices_of_its_models(tmp_path: Path) -> None:
    limit = {"budgets": {"day": {"dollars": 3}}}
    key = {"ANTHROPIC_API_KEY": "sk-ant-0123456789"}
    needs = "budgets.day.dollars needs the price of claude-sonnet-5-5 in budgets.prices"
    assert fault_in(tmp_path, limit, **key).endswith(needs)
    settings_in(tmp_path, limit)  # the offline model is free
    priced = {"budgets": {"day": {"dollars": 3}, "prices": {"claude-sonnet-5-5": {"input": 3, "output": 15}}}}
    settings_in(tmp_path, priced, **key)
    said = fault_in(tmp_path, priced, **key, CLAUDE_FALLBACK_MODEL="claude-other")
    assert said.endswith("needs the price of claude-other in budgets.prices")


def test_the_file_that_picoclaw_config_names_must_be_there(tmp_path: Path) -> None:
    path = str(tmp_path / "away.json")
    assert fault_in(tmp_path, None, PICOCLAW_CONFIG=path) == (
        f"PICOCLAW_CONFIG (environment) names {path}, which isn't there"
    )
    environ = {"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path), "PICOCLAW_CONFIG": path}
    assert load(environ, making=True).config_path == tmp_path / "away.json"


def test_the_organisation_s_config_counts_where_the_home_has_none(tmp_path: Path) -> None:
    org = tmp_path / "org"
    org.mkdir()
    (org / "config.json").write_text('{"gateway": {"port": 9009}}')
    assert settings_in(tmp_path, None, ORG_DIR=str(org)).port == 9009
    assert settings_in(tmp_path, {"gateway": {"port": 9001}}, ORG_DIR=str(org)).port == 9001


def test_a_secret_comes_without_the_line_end_of_its_file_and_one_that_no_header_carries_is_said(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path, API_TOKEN="0123456789abcdef\r\n", API_TOKEN_PREVIOUS="correct horse")
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == "0123456789abcdef"
    (said,) = settings.warnings
    assert said.startswith("api_token_previous holds a blank")


def test_a_variable_comes_without_the_line_end_of_the_file_it_came_from(tmp_path: Path) -> None:
    home, config = tmp_path / "home", tmp_path / "other.json"
    config.write_text("{}")
    settings = load(
        {
            "PICOCLAW_HOME": f"{home}\r",
            "PICOCLAW_CONFIG": f"{config}\r",
            "STORE_DIR": f"{tmp_path}/store\r\n",
            "CLAUDE_MODEL": "a-model\r",
        }
    )
    assert (settings.home, settings.store_dir) == (home, tmp_path / "store")
    assert (settings.config_path, settings.model.model) == (config, "a-model")


def test_a_limit_that_is_no_number_is_not_taken_for_none(tmp_path: Path) -> None:
    for endless in (".nan", ".inf", "1e400"):
        (tmp_path / ".security.yml").write_text(f"budgets: {{day: {{dollars: {endless}}}}}\n")
        assert "line 1: budgets.day.dollars is a number" in fault_in(tmp_path)


def test_a_key_that_stands_twice_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"version": 3,\n"gateway": {"port": 1, "port": 2},\n"model_list": [{"model_name": "a", '
        '"model": "anthropic/b",\n"model": "anthropic/c"}], "gateway": {"port": 3}}'
    )
    settings = settings_in(tmp_path)
    assert settings.port == 3
    said = [warning.removeprefix(f"{tmp_path}/config.json, line ") for warning in settings.warnings]
    assert said == [
        "2: gateway stands more than once; the last one counts",
        "3: model_list.0.model stands more than once; the last one counts",
    ]


def test_a_value_beyond_all_use_is_named_with_the_other_faults(tmp_path: Path) -> None:
    (tmp_path / ".security.yml").write_text("api_token: 0123456789012345678901234567890\n")
    said = fault_in(tmp_path, CONSOLE="perhaps")
    assert "CONSOLE (environment) must be true or false" in said
    assert ".security.yml, line 1: api_token is a number beyond all use, or not UTF-8 text" in said


@pytest.mark.parametrize("place", ["gateway", "webhooks", "tools.mcp"])
@pytest.mark.parametrize("name", ["https://agents.example.com", "agents.example.com/mcp", "a b"])
def test_what_is_no_host_s_name_lets_nobody_in_and_is_refused(tmp_path: Path, place: str, name: str) -> None:
    tree: object = {"allowed_hosts": [name]}
    for step in reversed(place.split(".")):
        tree = {step: tree}
    assert f"{place}.allowed_hosts must hold names alone" in fault_in(tmp_path, tree)
