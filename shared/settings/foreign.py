"""Keys of sipeed/picoclaw's ``config.json`` that mean nothing here (its pkg/config)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from shared.settings.leaves import Keys, Tree

COMMENT: Final = "_comment"
FOREIGN: Final = {
    (): "bindings build_info channel_list devices events evolution hooks isolation providers session voice",
    ("agents",): "dispatch list",
    ("agents", "defaults"): """context_manager context_manager_config context_window image_model
        image_model_fallbacks llm_retry_backoff_secs max_llm_retries max_media_size max_parallel_turns model
        model_fallbacks provider routing split_on_marker steering_mode subturn summarize_message_threshold
        summarize_token_percent temperature tool_feedback turn_profile""",
    ("model_list", "*"): """auth_method connect_mode custom_headers enabled extra_body fallbacks
        max_tokens_field proxy request_timeout rpm streaming thinking_level tool_schema_transform
        user_agent workspace""",
    ("channels",): """dingtalk discord feishu irc line maixcam matrix mqtt onebot pico pico_client qq slack
        slack_webhook teams_webhook vk wecom weixin whatsapp whatsapp_native""",
    ("channels", "telegram"): """base_url group_trigger media_group_delay_ms placeholder proxy
        reasoning_channel_id settings type typing use_markdown_v2""",
    ("gateway",): "hot_reload log_level",
    ("tools",): """append_file cron edit_file filter_min_length filter_sensitive_data find_skills i2c
        install_skill list_dir load_image media_cleanup message read_file send_file send_tts serial skills
        spawn spawn_status spi subagent web_fetch write_file""",
    ("tools", "exec"): "allow_remote enable_deny_patterns",
    ("tools", "mcp"): "discovery enabled max_inline_text_chars",
    ("tools", "mcp", "servers", "*"): "deferred env_file",
    ("tools", "web"): """baidu_search brave duckduckgo enabled fetch_limit_bytes format gemini glm_search
        kagi perplexity prefer_native private_host_whitelist provider proxy searxng sogou tavily""",
}
"""By the place that they stand at; ``*`` is any name or number."""


def take_foreign(tree: Tree) -> Iterator[Keys]:
    """Take the foreign keys and comments out of a tree; yield those that said something."""
    for place, names in FOREIGN.items():
        for keys, node in _at(tree, place):
            node.pop(COMMENT, None)
            for name in names.split():
                if node.pop(name, None) is not None:
                    yield (*keys, name)


def join_provider(entry: Any) -> None:
    """Put an entry's ``provider`` before its ``model``, as it was written in the system's older form."""
    provider = entry.pop("provider", None) if isinstance(entry, dict) else None
    if provider and isinstance(provider, str) and isinstance(entry.get("model"), str):
        entry["model"] = f"{provider}/{entry['model']}"


def _at(node: Any, place: Keys, above: Keys = ()) -> Iterator[tuple[Keys, Tree]]:
    if not place:
        if isinstance(node, dict):
            yield above, node
        return
    found = node if isinstance(node, dict) else dict(enumerate(node)) if isinstance(node, list) else {}
    for key, child in found.items():
        if place[0] in ("*", key):
            yield from _at(child, place[1:], (*above, key))
