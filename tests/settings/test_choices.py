from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import InvalidInput
from shared.settings import Settings, SettingsError, load
from shared.settings.tree import ModelChoice, model_choices, model_names

LISTED = [
    {"model_name": "default", "model": "anthropic/claude-a", "api_keys": ["k1", "k2"]},
    {"model_name": "default", "model": "claude-b"},
    {"model_name": "local", "model": "llama", "api_base": "http://127.0.0.1:8080"},
]


def settings_of(home: Path, models: list[object] | None = None, **environ: str) -> Settings:
    return load({"PICOCLAW_HOME": str(home), "PICOCLAW_MODEL_LIST": json.dumps(models or []), **environ})


def access(choice: ModelChoice) -> tuple[str, str | None, list[str]]:
    return choice.model, choice.base_url, [key.get_secret_value() for key in choice.api_keys]


def test_without_a_list_any_model_may_be_asked_for(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ANTHROPIC_API_KEY="key", CLAUDE_MODEL="claude-x")
    assert [access(choice) for choice in model_choices(settings)] == [("claude-x", None, ["key"])]
    assert [access(choice) for choice in model_choices(settings, "y")] == [("y", None, ["key"])]
    assert model_names(settings) == ()


def test_with_a_list_only_its_names_may_be_asked_for(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, [*LISTED])
    assert model_names(settings) == ("default", "local")
    with pytest.raises(InvalidInput, match="model: must be one of default, local"):
        model_choices(settings, "claude-a")


def test_entries_of_one_name_come_in_turn_and_the_first_name_is_the_default(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, [*LISTED], ANTHROPIC_API_KEY="general")
    first, second = model_choices(settings)
    assert access(first) == ("claude-a", None, ["k1", "k2"])
    assert access(second) == ("claude-b", None, ["general"])
    named = settings_of(tmp_path, [*LISTED], PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME="local")
    assert model_choices(named)[0].model == "llama"


def test_the_general_key_goes_to_no_other_address(tmp_path: Path) -> None:
    environ = {"ANTHROPIC_API_KEY": "general", "ANTHROPIC_AUTH_TOKEN": "token"}
    (choice,) = model_choices(settings_of(tmp_path, [*LISTED], **environ), "local")
    assert access(choice) == ("llama", "http://127.0.0.1:8080", [])
    assert choice.auth_token is None
    assert "general" not in repr(choice)


def test_the_fallback_comes_last_and_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, [*LISTED], CLAUDE_FALLBACK_MODEL="local")
    assert [choice.model for choice in model_choices(settings)] == ["claude-a", "claude-b", "llama"]
    assert [choice.model for choice in model_choices(settings, "local")] == ["llama"]
    plain = settings_of(tmp_path, CLAUDE_FALLBACK_MODEL="claude-small", CLAUDE_MODEL="claude-big")
    assert [choice.model for choice in model_choices(plain)] == ["claude-big", "claude-small"]


def test_a_default_that_is_not_in_the_list_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"MODEL_NAME \(environment\) must be one of .* default, local"):
        settings_of(tmp_path, [*LISTED], PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME="lokal")


def test_a_default_without_a_list_is_a_warning(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME="gpt4")
    assert settings.warnings == ("agents.defaults.model_name is not used: model_list is empty",)


def test_whether_the_embedded_model_answers(tmp_path: Path) -> None:
    assert settings_of(tmp_path).offline
    assert settings_of(tmp_path, [{"model_name": "a", "model": "m"}]).offline
    assert not settings_of(tmp_path, [*LISTED]).offline
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"):
        assert not settings_of(tmp_path, None, **{name: "x"}).offline
    assert not settings_of(tmp_path, ANTHROPIC_BASE_URL="http://127.0.0.1:1").offline


GENERAL = {"ANTHROPIC_API_KEY": "general"}


@pytest.mark.parametrize(
    ("model", "base", "sent"),
    [
        ("claude-x", None, ("claude-x", None)),
        ("anthropic/claude-x", None, ("claude-x", None)),
        ("anthropic-messages/claude-x", None, ("claude-x", None)),
        ("Anthropic/claude-x", None, ("claude-x", None)),
        ("deepseek/deepseek-chat", None, ("deepseek-chat", "https://api.deepseek.com/anthropic")),
        ("openrouter/auto", None, ("openrouter/auto", "https://openrouter.ai/api")),
        ("openrouter/z-ai/glm-5", None, ("z-ai/glm-5", "https://openrouter.ai/api")),
        ("openai/gpt-5.4", "http://gateway.test/v1", ("gpt-5.4", "http://gateway.test")),
        (
            "meta-llama/llama-4",
            "http://gateway.test/v1/messages/",
            ("meta-llama/llama-4", "http://gateway.test"),
        ),
        ("deepseek/chat", "http://gateway.test//", ("chat", "http://gateway.test")),
        ("openai/", "http://gateway.test/api/v1/", ("openai/", "http://gateway.test/api")),
        ("m", "http://gateway.test/v1beta", ("m", "http://gateway.test/v1beta")),
        ("longcat/LongCat-Flash", None, ("LongCat-Flash", "https://api.longcat.chat/anthropic")),
        ("modelscope/Qwen/Qwen3", "http://gateway.test/v1", ("Qwen/Qwen3", "http://gateway.test")),
        ("ollama/qwen3", "http://gateway.test/v1", ("qwen3", "http://gateway.test")),
    ],
)
def test_a_prefix_is_cut_or_kept_by_the_table_of_providers(
    tmp_path: Path, model: str, base: str | None, sent: tuple[str, str | None]
) -> None:
    entry = {"model_name": "a", "model": model, "api_base": base, "api_keys": ["own"]}
    (choice,) = model_choices(settings_of(tmp_path, [entry], **GENERAL))
    assert access(choice) == (*sent, ["own"])


def test_a_base_that_ends_in_v1_has_one(tmp_path: Path) -> None:
    for ending in ("", "/", "/v1", "/v1/", "/v1/messages", "//v1//messages//"):
        settings = settings_of(tmp_path, ANTHROPIC_BASE_URL=f"http://x.test/api{ending}")
        assert settings.model.base_url == "http://x.test/api"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("openai/gpt-5.4", "no address of openai is known that speaks the Messages API"),
        ("gemini/pro", "no address of gemini is known"),
        ("unheard-of/model", "'unheard-of' is not a known provider"),
        ("gpt-5.4", "has keys of its own and is no model of Anthropic's"),
    ],
)
def test_an_entry_without_an_address_is_a_warning_with_its_line_and_is_not_used(
    tmp_path: Path, model: str, said: str
) -> None:
    entry = {"model_name": "b", "model": model, "api_keys": ["k"]}
    text = json.dumps({"model_list": [{"model_name": "a", "model": "claude-x"}, entry]}, indent=1)
    (tmp_path / "config.json").write_text(text)
    line = text.split(json.dumps(model))[0].count("\n") + 1
    environ = {"PICOCLAW_HOME": str(tmp_path), **GENERAL}
    settings = load(environ)
    (warning,) = settings.warnings
    place = f"config.json, line {line}: model_list.1.model needs an api_base: "
    assert place in warning
    assert said in warning
    assert warning.endswith("it is not used")
    assert model_names(settings) == ("a",)
    with pytest.raises(InvalidInput, match="model: must be one of a"):
        model_choices(settings, "b")
    for name in ("PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME", "CLAUDE_FALLBACK_MODEL"):
        with pytest.raises(SettingsError, match=r"model_list\.1\.model needs an api_base"):
            load({**environ, name: "b"})
    (tmp_path / "config.json").write_text(json.dumps({"model_list": [entry]}))
    with pytest.raises(SettingsError, match=r"model_list\.0\.model needs an api_base"):
        load(environ)


def test_a_server_on_this_machine_needs_no_key_and_no_address(tmp_path: Path) -> None:
    entry = {"model_name": "a", "model": "lmstudio/openai/gpt-oss-20b"}
    settings = settings_of(tmp_path, [entry], **GENERAL)
    assert not settings.offline
    assert access(model_choices(settings)[0]) == ("openai/gpt-oss-20b", "http://localhost:1234", [])


def test_a_provider_of_its_own_stands_before_the_model(tmp_path: Path) -> None:
    entries = [
        {"model_name": "a", "provider": "zhipu", "model": "glm-5", "api_keys": ["k"]},
        {"model_name": "b", "provider": "lmstudio", "model": "openai/gpt-oss-20b"},
        {"model_name": "c", "provider": "openrouter", "model": "openrouter/auto"},
        {"model_name": "d", "provider": "", "model": "claude-x"},
    ]
    (tmp_path / "config.json").write_text(json.dumps({"model_list": entries}))
    settings = load({"PICOCLAW_HOME": str(tmp_path)})
    assert settings.warnings == ()
    assert [model_choices(settings, name)[0].model for name in "abcd"] == [
        "glm-5",
        "openai/gpt-oss-20b",
        "openrouter/auto",
        "claude-x",
    ]


def test_the_general_key_is_used_at_the_general_address_however_it_is_written(tmp_path: Path) -> None:
    for base in ("https://api.anthropic.com", "https://api.anthropic.com/v1"):
        entry = {"model_name": "a", "model": "claude-x", "api_base": base}
        assert model_choices(settings_of(tmp_path, [entry], **GENERAL))[0].api_keys
    entry = {"model_name": "a", "model": "deepseek/chat"}
    assert not model_choices(settings_of(tmp_path, [entry], **GENERAL))[0].api_keys
