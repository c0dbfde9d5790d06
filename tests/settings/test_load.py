from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.settings import Settings, SettingsError, load


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


@pytest.mark.skipif(Path("/root/.picoclaw").exists(), reason="a home of before is kept")
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


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("PORT", "nine", "must be a whole number"),
        ("PORT", "70000", "must be 65535 or less"),
        ("MAX_EXECUTION_MS", "0", "must be above 0"),
        ("TZ", "Mars/Olympus", "must be the name of a time zone, such as Europe/Berlin or UTC"),
        ("LOG_LEVEL", "loud", "must be one of 'debug', 'info', 'warning' or 'error'"),
        ("ANTHROPIC_BASE_URL", "ftp://model", "must begin with http:// or https://"),
        ("PICOCLAW_MODEL_LIST", "[{", "must be JSON"),
    ],
)
def test_a_bad_variable_stops_the_start_by_name(tmp_path: Path, name: str, value: str, end: str) -> None:
    assert fault_in(tmp_path, None, **{name: value}) == f"{name} (environment) {end}"


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


def test_the_names_of_secrets_in_the_environment_are_known(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, None, API_TOKEN="t" * 20, PORT="9000")
    assert settings.secret_names == {"API_TOKEN"}
    assert "t" * 20 not in repr(settings)


def test_a_workspace_for_each_conversation_is_not_promised(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, {"agents": {"defaults": {"workspace_scope": "conversation"}}})
    assert any("the workspace is shared" in warning for warning in settings.warnings)
