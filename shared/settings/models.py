"""The models of the settings: entries, the general credential, and where each prefix of an id lives."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, SecretStr

from shared.settings.sections import Env, Section, setting, web_address

ANTHROPIC: Final = "https://api.anthropic.com"

GENERAL: Final = frozenset({"anthropic", "anthropic-messages"})
"""Prefixes that mean the general address: ANTHROPIC_BASE_URL, else Anthropic's own."""

LOCAL: Final = {
    "lmstudio": "http://localhost:1234",  # lmstudio.ai/docs/developer/anthropic-compat
    "ollama": "http://localhost:11434",  # docs.ollama.com/api/anthropic-compatibility
    "vllm": "http://localhost:8000",  # docs.vllm.ai, Claude Code
}
"""Servers on this machine, which need no key."""

ADDRESSES: Final = {
    **LOCAL,
    "alibaba-coding-anthropic": "https://coding-intl.dashscope.aliyuncs.com/apps/anthropic",
    "deepseek": "https://api.deepseek.com/anthropic",  # api-docs.deepseek.com/guides/anthropic_api
    "longcat": "https://api.longcat.chat/anthropic",  # longcat.chat/platform/docs, Anthropic Messages
    "mimo": "https://api.xiaomimimo.com/anthropic",  # platform.xiaomimimo.com/docs, Anthropic API
    "minimax": "https://api.minimax.io/anthropic",  # platform.minimax.io/docs, text-anthropic-api
    "moonshot": "https://api.moonshot.ai/anthropic",  # platform.moonshot.ai/docs, agent support
    "openrouter": "https://openrouter.ai/api",  # openrouter.ai/docs, Messages API
    "qwen": "https://dashscope.aliyuncs.com/apps/anthropic",  # help.aliyun.com, anthropic-api-messages
    "qwen-intl": "https://dashscope-intl.aliyuncs.com/apps/anthropic",  # alibabacloud.com, 2980295
    "zai": "https://api.z.ai/api/anthropic",  # docs.z.ai/devpack/tool/claude
    "zhipu": "https://open.bigmodel.cn/api/anthropic",  # docs.bigmodel.cn, Claude API
}
"""As the providers document them, without the ``/v1/messages`` that the SDK adds."""

_ELSEWHERE: Final = """alibaba-coding antigravity avian azure bedrock byteplus cerebras claude-cli codex-cli
    elevenlabs gemini github-copilot gpt4free groq litellm mistral modelscope novita nvidia openai qwen-us
    shengsuanyun siliconflow venice vivgrid volcengine"""
ELSEWHERE: Final = frozenset(_ELSEWHERE.split())
"""Prefixes of providers whose address for the Messages API isn't known: they need an ``api_base``."""

_ENDING: Final = re.compile(r"(?:/+v1(?:/+messages)?)?/*$")


def messages_base(url: str | None) -> str | None:
    """Return an address as the SDK takes it: without the ``/v1/messages`` that it adds."""
    return None if url is None else _ENDING.sub("", url.strip())


ApiAddress = Annotated[str, AfterValidator(messages_base), AfterValidator(web_address)]


def split_model(model: str) -> tuple[str, str]:
    """Return a model's provider, "" without a known one, and its id at the API.

    A known prefix is cut. ``openrouter/auto`` keeps it: all ids of OpenRouter have the form ``maker/model``.
    """
    prefix, slash, rest = model.strip().partition("/")
    provider = prefix.lower()
    if not (slash and rest and provider in GENERAL | ELSEWHERE | ADDRESSES.keys()):
        return "", model.strip()
    return provider, model.strip() if provider == "openrouter" and "/" not in rest else rest


def address_of(model: str, api_base: str | None) -> str | None:
    """Return where an entry's requests go, None for the general address."""
    return messages_base(api_base) or ADDRESSES.get(split_model(model)[0])


def unaddressed(model: str, *, has_keys: bool, general: str | None) -> str | None:
    """Return why an entry without ``api_base`` can't be used, None when its provider's address is known.

    ``general`` is ANTHROPIC_BASE_URL: without it the general address is Anthropic's, whose ids begin with
    ``claude``, so that no key of somebody else's may go there.
    """
    provider, rest = split_model(model)
    if provider in ELSEWHERE:
        return f"needs an api_base: no address of {provider} is known that speaks the Messages API"
    if provider in ADDRESSES or provider in GENERAL:
        return None
    if "/" in rest:
        return f"needs an api_base: {rest.partition('/')[0]!r} is not a known provider"
    if has_keys and general is None and not rest.lower().startswith("claude"):
        return "needs an api_base: it has keys of its own and is no model of Anthropic's"
    return None


class ModelEntry(Section):
    """A model that runs may ask for by ``model_name``; entries of one name are used in turn."""

    model_name: str = setting("Name by which runs ask for it", min_length=1)
    model: str = setting("The model's id at its API", min_length=1)
    api_base: ApiAddress | None = setting("Address of the Messages API", None)
    api_keys: tuple[SecretStr, ...] = setting("Keys, used in turn; they belong in .security.yml", ())


CLAUDE: Literal["claude-sonnet-5-5"] = "claude-sonnet-5-5"


class ModelAccess(Section):
    """The model that answers when ``model_list`` names none, and the credential for it."""

    api_key: Annotated[SecretStr | None, Env("ANTHROPIC_API_KEY")] = setting("API key", None)
    auth_token: Annotated[SecretStr | None, Env("ANTHROPIC_AUTH_TOKEN")] = setting(
        "Bearer token, instead of a key", None
    )
    oauth_token: Annotated[SecretStr | None, Env("CLAUDE_CODE_OAUTH_TOKEN")] = setting(
        "Subscription token, instead of a key", None
    )
    base_url: Annotated[ApiAddress | None, Env("ANTHROPIC_BASE_URL")] = setting(
        "Address of a Messages-compatible server", None
    )
    model: Annotated[str, Env("CLAUDE_MODEL")] = setting("Model id", CLAUDE, min_length=1)
    fallback_model: Annotated[str | None, Env("CLAUDE_FALLBACK_MODEL")] = setting(
        "Model id to go on with when the first is overloaded", None
    )

    @property
    def has_credential(self) -> bool:
        """Whether any of the three credentials is there."""
        return any((self.api_key, self.auth_token, self.oauth_token))
