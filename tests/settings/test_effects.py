"""Each setting has an effect that is seen from outside: in hosts that run here, or in a test that is named."""

# ruff: noqa: E501 - names of tests are sentences

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.settings.leaves import leaves
from tests.running import HostProcess, ModelProcess, directive, new_host, running_model

ROOT = Path(__file__).parents[2]
DIAL = "import socket; socket.create_connection(('127.0.0.1', {port})); print('through')"
PREFIX = "PICOCLAW_AGENTS_DEFAULTS_"


@dataclass(eq=False)
class Seen:
    """A host with settings, and what it may be asked."""

    host: HostProcess
    client: httpx2.Client
    model: ModelProcess

    def said(self, words: str = "hello", **step: Any) -> dict[str, Any]:
        message = directive(words, **step) if step else words
        answer: dict[str, Any] = self.client.post("/chat", json={"message": message}).json()
        return answer

    @cache  # noqa: B019 - one conversation a host
    def request(self) -> dict[str, Any]:
        """What the model was asked, with the headers."""
        words = f"what is asked by {self.host.root.name}"
        self.said(words)
        return next(each for each in self.model.requests() if words in str(each["body"]))

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.request()["body"]
        return body

    def tool(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(tool for tool in self.body["tools"] if tool["name"] == name)
        return found

    def ran(self, command: str) -> str:
        """What a command gave."""
        return self.called("exec", command=command)

    def called(self, name: str, **arguments: Any) -> str:
        steps = [{"tools": [{"name": name, "input": arguments}]}, {"text": "$results"}]
        return str(self.said(f"{name} {arguments}", steps=steps)["result"])

    @property
    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/health").json()
        return found


def place(seen: Seen, name: str) -> Path:
    return Path(seen.host.environment[name])


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with running_model() as model:
        yield model


EFFECTS: dict[str, tuple[str, Callable[[Seen], bool]]] = {
    "config_path": ("weak", lambda s: s.body["max_tokens"] == 4321),
    "api_token": ("first", lambda s: s.client.get("/chat").status_code == 200),
    "api_token_previous": (
        "first",
        lambda s: (
            s.client.get("/chat", headers={"Authorization": "Bearer token-of-before-0123"}).status_code == 200
        ),
    ),
    "model.model": ("first", lambda s: s.body["model"] == "claude-walk"),
    "model.api_key": ("first", lambda s: s.request()["headers"]["x-api-key"] == "sk-test-canary"),
    "model.base_url": ("first", lambda s: bool(s.request())),
    "model.auth_token": (
        "second",
        lambda s: s.request()["headers"]["authorization"] == "Bearer a-token-of-mine",
    ),
    "model.oauth_token": (
        "third",
        lambda s: s.request()["headers"]["authorization"] == "Bearer an-oauth-token",
    ),
    "assistant_name": ("first", lambda s: "Zaphod" in str(s.body["system"])),
    "system_prompt_override": ("second", lambda s: s.body["system"][0]["text"].startswith("Only this.")),
    "max_execution_ms": ("first", lambda s: s.health["max_execution_ms"] == 123_456),
    "session_end_marker": ("first", lambda s: s.said(text="so [[BYE]]")["session_end_marker_detected"]),
    "main_conversation_id": ("first", lambda s: s.client.get("/chat/den").status_code == 200),
    "store_dir": ("first", lambda s: any(place(s, "STORE_DIR").iterdir())),
    "local_db_path": ("first", lambda s: place(s, "LOCAL_DB_PATH").exists()),
    "timezone": (
        "first",
        lambda s: (
            s.client.post(
                "/task", json={"prompt": "x", "schedule_type": "cron", "schedule_value": "0 9 * * *"}
            ).json()["timezone"]
            == "Asia/Tokyo"
        ),
    ),
    "log_level": ("first", lambda s: s.said() is not None and "debug" in s.host.log_text.lower()),
    "log_format": ("first", lambda s: not s.host.log_text.lstrip().startswith("{")),
    "version": ("first", lambda s: s.health["version"] == "9.9.9"),
    "build_commit": ("first", lambda s: s.health["commit"] == "c0ffee"),
    "build_time": ("first", lambda s: s.health["build_time"] == "a while ago"),
    "sandbox_max_level": (
        "first",
        lambda s: "exit code 0" in s.ran("true") and s.health["sandbox"]["level"] == 2,
    ),
    "console": ("first", lambda s: s.client.get("/console").status_code == 200),
    "agents.defaults.workspace": (
        "first",
        lambda s: (
            "ok" in s.called("write_file", path="here", content="x")
            and (place(s, "MEMORY_DIR") / "here").exists()
        ),
    ),
    "sandbox_min_level": ("weak", lambda s: "3 is required" in s.called("list_dir", path=".")),
    "agents.defaults.max_tokens": ("second", lambda s: s.body["max_tokens"] == 5000),
    "agents.defaults.max_tool_iterations": (
        "second",
        lambda s: (
            s.said("round", steps=[{"tools": [{"name": "list_dir", "input": {}}]}] * 9)["status"] != "success"
        ),
    ),
    "agents.defaults.thinking": ("asked", lambda s: s.body["thinking"]["type"] != "disabled"),
    "agents.defaults.thinking_type": ("asked", lambda s: s.body["thinking"]["type"] == "enabled"),
    "agents.defaults.max_thinking_tokens": ("asked", lambda s: s.body["thinking"]["budget_tokens"] == 2000),
    "agents.defaults.stream_timeout_seconds": (
        "second",
        lambda s: (
            s.said("silence", text="at last", hang_after_deltas=1, times=1)["result"] == "at last"
            and "fell silent" in s.host.log_text
        ),
    ),
    "agents.defaults.restrict_to_workspace": (
        "third",
        lambda s: "exit code 0" in s.ran(f"touch {s.host.root}/mine && ls /tmp /"),
    ),
    "agents.defaults.allow_read_outside_workspace": (
        "second",
        lambda s: "to be read" in s.called("read_file", path=str(s.host.root / "elsewhere")),
    ),
    "agents.defaults.model_name": ("third", lambda s: s.body["model"] == "claude-second"),
    "model_list": (
        "third",
        lambda s: s.client.post("/chat", json={"message": "x", "model": "claude-z"}).status_code == 400,
    ),
    "tools.allow_read_paths": ("first", lambda s: "to be read" in s.ran(f"cat {s.host.root}/elsewhere")),
    "tools.allow_write_paths": ("first", lambda s: "exit code 0" in s.ran(f"touch {s.host.root}/writable/f")),
    "tools.exec.enabled": ("second", lambda s: "exec" not in [tool["name"] for tool in s.body["tools"]]),
    "tools.exec.timeout_seconds": ("first", lambda s: "time limit" in s.ran("sleep 30")),
    "tools.exec.guard": ("first", lambda s: "guard" in s.ran("rm -rf build")),
    "tools.exec.custom_deny_patterns": ("first", lambda s: "guard" in s.ran("echo forbidden")),
    "tools.exec.custom_allow_patterns": ("first", lambda s: "exit code 0" in s.ran("rm -rf allowed")),
    "tools.exec.allow_network": (
        "third",
        lambda s: "through" in s.ran(f'python3 -c "{DIAL.format(port=s.host.port)}"'),
    ),
    "tools.web.search": ("first", lambda s: bool(s.tool("web_search"))),
    "tools.web.fetch": ("first", lambda s: bool(s.tool("web_fetch"))),
    "tools.web.max_uses": ("first", lambda s: s.tool("web_search")["max_uses"] == 2),
    "tools.web.allowed_domains": (
        "first",
        lambda s: s.tool("web_search")["allowed_domains"] == ["example.com"],
    ),
    "tools.web.blocked_domains": (
        "second",
        lambda s: s.tool("web_search")["blocked_domains"] == ["evil.example"],
    ),
    "gateway.host": ("first", lambda s: s.host.listens()),
    "gateway.port": ("first", lambda s: s.host.listens()),
}
"""Which host shows it, and how."""

ELSEWHERE = {
    "tests/mcp/test_asks.py": {
        "test_no_call_is_allowed_through_what_has_no_person_who_may": "mcp.approvals",
    },
    "tests/http/test_openai_door.py": {
        "test_a_picture_is_fetched_from_a_host_that_is_named": "files.picture_hosts",
    },
    "tests/http/test_webhooks.py": {
        "test_a_webhook_that_cannot_be_is_refused_with_the_field": "webhooks.allowed_hosts",
    },
    "tests/contract/store/test_webhooks.py": {
        "test_retention_keeps_what_was_told_for_a_week_and_what_was_not_for_a_month": "deliveries_ttl_days",
    },
    "tests/http/test_opening.py": {
        "test_a_new_store_is_a_warning_where_a_volume_may_be_missing": "home",
    },
    "tests/http/test_auth.py": {
        "test_without_a_configured_token_only_health_and_ready_answer": "allow_no_token_500",
    },
    "tests/mcp/test_sign_in.py": {
        "test_without_a_key_nothing_is_kept_and_what_to_set_is_said": "seal_key",
    },
    "tests/http/test_model_access.py": {
        "test_the_fallback_model_takes_over_when_the_first_stays_overloaded_or_says_to_wait_long": "model.fallback_model",
    },
    "tests/http/test_failures.py": {
        "test_the_concurrency_cap_answers_503_and_recovers": "max_concurrent_runs",
        "test_a_run_that_lost_its_lease_ends_as_documented": "lease_ms",
        "test_sigterm_stops_a_run_that_outlives_its_grace_and_tells_the_client": "stop_grace_ms",
    },
    "tests/http/test_limits.py": {
        "test_a_queue_that_lasts_too_long_ends_in_a_refusal": "queue_ms",
        "test_a_token_may_ask_so_often_in_a_minute": "rate_limits.requests_per_minute",
        "test_a_sender_may_say_so_much_in_a_minute_and_others_are_not_concerned": "rate_limits.messages_per_minute",
        "test_failed_authentications_are_limited_as_the_settings_say": "rate_limits.failed_auth_per_minute",
    },
    "tests/store/test_damage.py": {
        "test_a_pinned_store_is_the_only_one_that_will_do": "store_id",
    },
    "tests/cluster/test_store_commands.py": {
        "test_the_doctor_asks_the_database_that_the_host_would_use": "database_url",
    },
    "tests/cluster/test_tool_access.py": {
        "test_a_role_that_would_bypass_the_policies_is_refused": "database_tools_url",
    },
    "tests/cluster/test_refusals.py": {
        "test_a_pooler_that_was_not_announced_is_named_with_its_setting": "database_pooler",
        "test_a_start_that_is_refused_ends_with_the_servers_words_and_what_mends_it": "database_connections",
    },
    "tests/http/test_prompt.py": {
        "test_the_organisation_s_persona_comes_before_the_user_s": "org_dir",
    },
    "tests/http/test_admin.py": {
        "test_the_organisation_overrides_and_users_only_add": "skills_dir built_in_skills_dir",
    },
    "tests/contract/store/test_retention.py": {
        "test_delivered_messages_go_after_a_week_and_others_stay": "outbound_ttl_days",
        "test_requests_go_ninety_days_after_their_end_and_what_waits_or_is_remembered_stays": (
            "approvals_ttl_days"
        ),
        "test_the_audit_goes_after_a_year": "audit_ttl_days",
        "test_responses_go_after_a_month_and_their_conversations_stay": "responses_ttl_days",
        "test_a_tasks_log_keeps_its_newest_rows_and_their_conversations": "task_log_retention",
    },
    "tests/mcp/test_identity.py": {
        "test_a_conversation_keeps_to_its_quota_of_tasks": "max_tasks_per_conversation",
    },
    "tests/http/test_tasks.py": {
        "test_with_the_internal_scheduler_due_tasks_run_by_themselves": "scheduler",
        "test_a_heartbeat_tells_its_owner_what_it_has_to_say_and_keeps_quiet_otherwise": "heartbeat.enabled",
    },
    "tests/sandbox/test_principals.py": {
        "test_files_and_commands_of_a_principal_are_in_its_own_directory_under_its_own_uid": "sandbox_uid_base",
    },
    "tests/attack/test_entry_points.py": {
        "test_a_program_of_a_request_is_refused_unless_the_operator_allows_it": "allow_request_stdio_mcp",
    },
    "tests/http/test_signed_tokens.py": {
        "test_a_token_that_is_not_for_this_host_now_is_not_believed": "auth.jwt.issuer auth.jwt.audience",
        "test_a_file_of_keys_stops_the_start_when_it_holds_none": "auth.jwt.jwks_file",
        "test_a_sick_key_server_keeps_the_last_keys": "auth.jwt.jwks_url",
        "test_the_claims_name_the_principal_and_its_scopes": "auth.jwt.principal_claim auth.jwt.scopes_claim",
        "test_with_a_limit_in_its_defaults_a_token_may_make_its_principal": "auth.jwt.create auth.jwt.defaults.*",
    },
    "tests/runs/test_spaces.py": {
        "test_a_conversation_may_have_a_directory_of_its_own": "agents.defaults.workspace_scope",
        "test_a_principals_runs_work_in_its_own_directory_and_see_its_own_words": "principals.directory",
        "test_a_start_that_would_open_principals_to_each_other_stops": "principals.isolation",
    },
    "tests/channels/test_mapped.py": {
        "test_a_chat_s_conversations_are_those_of_the_principal_it_is_mapped_to": "channels.telegram.principals",
    },
    "tests/console/test_served.py": {
        "test_it_is_off_unless_it_is_switched_on": "console",
    },
    "tests/settings/test_load.py": {
        "test_the_workspace_of_the_seed_s_example_is_in_the_user_s_home": "agents.defaults.workspace",
    },
    "tests/channels/test_health.py": {
        "test_doctor_asks_telegram_whether_it_knows_the_bot": "channels.telegram.enabled channels.telegram.api_base",
        "test_a_wrong_token_warns_and_the_host_goes_on": "channels.telegram.token",
    },
    "tests/channels/test_allow.py": {
        "test_who_is_not_allowed_gets_nothing_costs_nothing_and_is_logged_once": "channels.telegram.allow_from",
        "test_who_is_an_owner_no_more_hears_the_main_conversation_no_more": "channels.telegram.owners",
    },
    "tests/channels/test_cards.py": {
        "test_approvers_stand_in_for_the_owners": "channels.telegram.approvers",
    },
    "tests/channels/test_trust.py": {
        "test_a_channel_that_is_trusted_changes_memory": "channels.telegram.trusted",
    },
    "tests/channels/test_deliveries.py": {
        "test_a_flood_is_cut_off_with_one_notice": "channels.telegram.messages_per_minute",
    },
    "tests/channels/test_telegram_kinds.py": {
        "test_by_setting_the_sender_is_told_that_nobody_reads_edits": "channels.telegram.edited_messages",
        "test_by_setting_an_answer_comes_at_once_and_smaller_files_are_too_large": "channels.telegram.streaming channels.telegram.max_file_mb",
    },
    "tests/channels/test_webhook.py": {
        "test_messages_come_by_webhook_in_order_and_through_a_kill": "channels.telegram.webhook_url",
        "test_a_wrong_secret_is_refused_and_after_many_the_address_is": "channels.telegram.webhook_secret",
    },
    "tests/channels/test_plugins.py": {
        "test_the_installed_example_brings_messages_and_carries_answers": "channels.plugins",
    },
    "tests/cli/test_mcp.py": {
        "test_a_person_signs_in_and_the_server_becomes_ready": "tools.mcp.servers",
    },
    "tests/mcp/test_conformance_client.py": {
        "test_the_client_passes_every_scenario": "tools.mcp.client_metadata_url",
    },
    "tests/mcp/test_external_servers.py": {
        "test_a_loopback_address_is_not_dialled_unless_its_host_is_allowed": "tools.mcp.allowed_hosts",
    },
    "tests/tools/test_plugins.py": {
        "test_the_tool_of_a_package_is_offered_and_called": "tools.plugins",
    },
    "tests/runs/test_heartbeat.py": {
        "test_a_new_interval_is_taken_over": "heartbeat.interval",
    },
    "tests/http/test_long_conversations.py": {
        "test_two_hundred_turns_cost_the_same_each_and_the_first_facts_survive": "history.window",
        "test_without_an_archive_nothing_is_written": "history.archive",
    },
    "tests/http/test_files.py": {
        "test_a_file_over_the_limit_leaves_nothing": "files.max_mb",
    },
    "tests/agent/test_compaction.py": {
        "test_a_window_is_the_settings_by_the_longest_name_that_fits": "history.windows",
    },
    "tests/http/test_prompt_cache.py": {
        "test_compaction_costs_the_cache_only_now_and_then": "history.compact_at",
    },
    "tests/http/test_approvals.py": {
        "test_a_gated_call_waits_while_the_others_of_its_step_run": "permissions",
    },
    "tests/http/test_budgets.py": {
        "test_a_run_over_budget_pauses_asks_and_goes_on_without_a_new_message": "budgets.*.tokens",
        "test_dollars_are_counted_by_the_prices_and_stop_a_run": "budgets.*.dollars budgets.prices",
    },
    "tests/http/test_proxies.py": {
        "test_each_caller_behind_a_trusted_proxy_has_a_limit_of_its_own": "gateway.trusted_proxies",
    },
    "tests/mcp/test_http.py": {
        "test_only_known_names_and_addresses_are_a_host": "gateway.allowed_hosts",
    },
    "tests/telemetry/test_telemetry.py": {
        "test_a_run_is_one_trace_below_the_callers": "telemetry.endpoint",
        "test_the_collectors_credential_is_sent_to_it_and_nowhere_else": "telemetry.headers",
        "test_the_part_of_the_traces_that_is_asked_for_is_kept_under_the_service_s_name": "telemetry.service_name telemetry.sample",
        "test_what_was_said_is_told_when_it_is_asked_for_with_secrets_taken_out": "telemetry.capture_content",
    },
}
"""By file and test: the settings whose effect it shows; ``*`` is any part of a name."""


ENVIRONMENTS: dict[str, dict[str, str]] = {
    "weak": {
        "PICOCLAW_CONFIG": "{root}/walk.json",
        "SANDBOX_MIN_LEVEL": "3",
        "SANDBOX_MAX_LEVEL": "2",
    },
    "asked": {
        f"{PREFIX}THINKING": "true",
        f"{PREFIX}THINKING_TYPE": "enabled",
        f"{PREFIX}MAX_THINKING_TOKENS": "2000",
    },
    "first": {
        "API_TOKEN_PREVIOUS": "token-of-before-0123",
        "CLAUDE_MODEL": "claude-walk",
        "ASSISTANT_NAME": "Zaphod",
        "MAX_EXECUTION_MS": "123456",
        "SESSION_END_MARKER": "[[BYE]]",
        "MAIN_CONVERSATION_ID": "den",
        "TZ": "Asia/Tokyo",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "console",
        "APP_VERSION": "9.9.9",
        "BUILD_COMMIT": "c0ffee",
        "BUILD_TIME": "a while ago",
        "SANDBOX_MAX_LEVEL": "2",
        "CONSOLE": "true",
        "PICOCLAW_TOOLS_ALLOW_READ_PATHS": "{root}/elsewhere",
        "PICOCLAW_TOOLS_ALLOW_WRITE_PATHS": "{root}/writable",
        "PICOCLAW_TOOLS_EXEC_TIMEOUT_SECONDS": "1",
        "PICOCLAW_TOOLS_EXEC_GUARD": "strict",
        "PICOCLAW_TOOLS_EXEC_CUSTOM_DENY_PATTERNS": "forbidden",
        "PICOCLAW_TOOLS_EXEC_CUSTOM_ALLOW_PATTERNS": "^rm -rf allowed",
        "PICOCLAW_TOOLS_WEB_SEARCH": "true",
        "PICOCLAW_TOOLS_WEB_FETCH": "true",
        "PICOCLAW_TOOLS_WEB_MAX_USES": "2",
        "PICOCLAW_TOOLS_WEB_ALLOWED_DOMAINS": "example.com",
    },
    "second": {
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_AUTH_TOKEN": "a-token-of-mine",
        "SYSTEM_PROMPT_OVERRIDE": "Only this.",
        f"{PREFIX}MAX_TOKENS": "5000",
        f"{PREFIX}MAX_TOOL_ITERATIONS": "3",
        f"{PREFIX}STREAM_TIMEOUT_SECONDS": "1",
        f"{PREFIX}ALLOW_READ_OUTSIDE_WORKSPACE": "true",
        "PICOCLAW_TOOLS_EXEC_ENABLED": "false",
        "PICOCLAW_TOOLS_WEB_SEARCH": "true",
        "PICOCLAW_TOOLS_WEB_BLOCKED_DOMAINS": "evil.example",
    },
    "third": {
        "ANTHROPIC_API_KEY": "",
        "CLAUDE_CODE_OAUTH_TOKEN": "an-oauth-token",
        f"{PREFIX}RESTRICT_TO_WORKSPACE": "false",
        f"{PREFIX}MODEL_NAME": "b",
        "PICOCLAW_MODEL_LIST": json.dumps(
            [{"model_name": "a", "model": "claude-first"}, {"model_name": "b", "model": "claude-second"}]
        ),
        "PICOCLAW_TOOLS_EXEC_ALLOW_NETWORK": "true",
    },
}


@pytest.fixture(scope="module")
def hosts(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Seen]]:
    running: dict[str, Seen] = {}

    def get(name: str) -> Seen:
        if name not in running:
            root = tmp_path_factory.mktemp(name)
            (root / "elsewhere").write_text("to be read")
            (root / "walk.json").write_text('{"agents": {"defaults": {"max_tokens": 4321}}}')
            (root / "writable").mkdir()
            (root / "writable").chmod(0o777)
            given = {key: value.replace("{root}", str(root)) for key, value in ENVIRONMENTS[name].items()}
            host = new_host(root, model.url, given).start()
            running[name] = Seen(host, host.client(), model)
        return running[name]

    yield get
    for seen in running.values():
        seen.client.close()
        seen.host.stop()


@pytest.mark.parametrize("key", EFFECTS)
def test_a_setting_has_an_effect(hosts: Callable[[str], Seen], key: str) -> None:
    name, effect = EFFECTS[key]
    assert effect(hosts(name)), hosts(name).host.log_text[-2000:]


def elsewhere() -> list[str]:
    return [pattern for tests in ELSEWHERE.values() for said in tests.values() for pattern in said.split()]


def test_every_setting_is_shown_to_have_an_effect_here_or_elsewhere() -> None:
    """A setting without an entry has no effect that anybody saw: show it, or take the setting away."""
    keys = [leaf.key for leaf in leaves()]
    shown = {key for key in keys if key in EFFECTS or any(fnmatch(key, each) for each in elsewhere())}
    assert set(keys) - shown == set()
    assert EFFECTS.keys() <= set(keys)
    assert [each for each in elsewhere() if not any(fnmatch(key, each) for key in keys)] == []


@pytest.mark.parametrize("file", ELSEWHERE)
def test_the_tests_that_show_effects_elsewhere_are_there(file: str) -> None:
    names = re.findall(r"^ *(?:async )?def (\w+)\(", (ROOT / file).read_text(), re.MULTILINE)
    assert ELSEWHERE[file].keys() <= set(names)
