"""Reading the settings files: regular, small, UTF-8, well-formed; else a sentence with file and line."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from shared import jsons
from shared.secrets import NotRegular, TooLong, read_regular
from shared.settings.leaves import KeyPath, Keys, Tree, config_sections, did_you_mean, get, leaves
from shared.settings.models import ModelEntry
from shared.settings.sections import Permission, Section, SettingsError
from shared.settings.tools import McpServer

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


VERSIONS: Final = (2, 3)
TWICE: Final = " stands more than once; the last one counts"
ENTRIES: Final[dict[type[Section], KeyPath]] = {
    ModelEntry: ("model_list",),
    Permission: ("permissions",),
    McpServer: ("tools", "mcp", "servers"),
}


class SettingsFile:
    """A settings file: its text for line numbers, what deserves a warning, and which keys it set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.origins: dict[Keys, Keys] = {}
        """By path of the tree, for a file that is laid over another: the keys in it that set it."""
        self.text = read_text(path) or ""

    def at(self, keys: Keys) -> str:
        """Return ``file, line N: key`` for a sentence; ``keys`` as in the file."""
        line = line_of(self.text, keys)
        place = f"{self.path}, line {line}" if line else f"{self.path}"
        return f"{place}: {'.'.join(str(key) for key in keys)}"


class ConfigJson(SettingsFile):
    """``config.json``, parsed to a tree; ``named``: PICOCLAW_CONFIG says that it is there."""

    def __init__(self, path: Path, *, named: bool = False) -> None:
        super().__init__(path)
        if named and not path.exists():
            raise SettingsError(f"PICOCLAW_CONFIG (environment) names {path}, which isn't there")
        self.tree = self._parsed() if self.text else {}
        self.warnings += [f"{self.at(keys)}{TWICE}" for keys in jsons.repeated(self.text)]
        self._check_version()
        self._drop_foreign()
        self._check_sections()
        self._take_models()
        self._drop_nulls()

    def _parsed(self) -> Tree:
        try:
            tree = jsons.loads(self.text)
        except jsons.JSONDecodeError as error:
            raise SettingsError(f"{self.path}, line {error.lineno}: is not JSON ({_reason(error)})") from None
        if not isinstance(tree, dict):
            raise SettingsError(f"{self.path} must hold a JSON object")
        return tree

    def _check_version(self) -> None:
        version = self.tree.pop("version", 3)
        if version not in VERSIONS or isinstance(version, bool):
            self.faults.append(f"{self.at(('version',))} must be 3 (or 2)")

    def _drop_foreign(self) -> None:
        if foreign := [".".join(map(str, keys)) for keys in take_foreign(self.tree)]:
            self.warnings.append(
                f"{self.path}: these keys of sipeed/picoclaw mean nothing here and are ignored "
                f"(`picoclaw import sipeed` moves a home in): {', '.join(foreign)}"
            )

    def _check_sections(self) -> None:
        for name in sorted(self.tree.keys() - config_sections()):
            del self.tree[name]
            hint = did_you_mean(name, config_sections())
            self.faults.append(f"{self.at((name,))} is not a known key{hint}")

    def _drop_nulls(self) -> None:
        """Take a null for a key that isn't there, as programs write lists that are empty."""
        for leaf in leaves():
            _drop_null(get(self.tree, leaf.path[:-1]), leaf.path[-1])
        for section, path in ENTRIES.items():
            for entry in _members(get(self.tree, path)):
                for name in section.model_fields:
                    _drop_null(entry, name)

    def _take_models(self) -> None:
        for index, entry in enumerate(_members(self.tree.get("model_list"))):
            join_provider(entry)
            if isinstance(entry, dict) and entry.pop("api_key", None) is not None:
                self.warnings.append(
                    f"{self.at(('model_list', index, 'api_key'))} is ignored: "
                    "keys belong in .security.yml (or a secret value in api_keys)"
                )


def _members(node: Any) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _drop_null(node: Any, name: str) -> None:
    if isinstance(node, dict) and node.get(name, "") is None:
        del node[name]


def _reason(error: jsons.JSONDecodeError) -> str:
    """The parser's reason without its position, which the sentence gives already."""
    return re.sub(r":? ?line \d+.*|at line.*", "", error.msg).strip() or "syntax error"


MAX_BYTES: Final = 1 << 20


def read_text(path: Path) -> str | None:
    """Return a settings file's text, or None when there is none.

    Raises ``SettingsError`` when it isn't a regular file, can't be read, is over 1 MiB or isn't UTF-8.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except NotRegular:
        raise SettingsError(f"{path} is not a regular file") from None
    except TooLong:
        raise SettingsError(f"{path} is larger than 1 MiB") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from None
    return _decoded(path, content)


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """Return the line (from 1) of the deepest part of ``path`` that a JSON or YAML text has.

    Costs a parse; meant for the sentence of an error. None when the text has no such structure.
    """
    from ruamel.yaml import nodes

    node, line = _composed(text), None
    for step in path:
        found = _child(node, step, nodes)
        if found is None:
            break
        line, node = found
    return line


@lru_cache(2)
def _composed(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="rt", pure=True).compose(text)
    except (YAMLError, ValueError, RecursionError):
        return None


def _child(node: Any, step: str | int, nodes: Any) -> tuple[int, Any] | None:
    if isinstance(node, nodes.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key.start_mark.line + 1, value
    if isinstance(node, nodes.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}, line {line}: is not UTF-8 text") from None
