"""The ``tools`` section of ``config.json``: paths beyond the workspace, commands, MCP servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from shared import jsons
from shared.settings.section import Section

Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9*]([A-Za-z0-9.*-]*[A-Za-z0-9])?(/\S*)?$")]
"""A domain without a scheme, with a path if wanted."""


class ExecTool(Section):
    """The exec tool."""

    enabled: bool = Field(default=True, description="Offer the exec tool at all")
    timeout_seconds: int = Field(
        default=60, ge=1, description="How long a command may take when it doesn't say"
    )
    allow_network: bool = Field(default=False, description="Open TCP and UDP to commands")
    guard: Literal["dangerous", "strict"] = Field(
        default="dangerous",
        description="What the guard refuses: what is certainly destructive, or every line of a list "
        "(docs/sandbox.md), such as `rm -rf build`",
    )
    custom_deny_patterns: tuple[str, ...] = Field(
        default=(), description="Regular expressions; a parsed command that matches one is refused"
    )
    custom_allow_patterns: tuple[str, ...] = Field(
        default=(), description="Regular expressions; a parsed command that matches one passes the guard"
    )


_HTTP: Final = frozenset({"http", "streamable-http", "streamable_http", "streamableHttp"})


def server_type(entry: Mapping[str, Any]) -> object:
    """Return the type of an MCP server's entry as written by any of the programs that have some."""
    kind = entry.get("type")
    if kind is None:
        return "stdio" if "command" in entry and "url" not in entry else "http"
    return "http" if isinstance(kind, str) and kind in _HTTP else kind


HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token of RFC 9110, section 5.6.2."""
LONGEST_TIMEOUT_MS: Final = 600_000


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(character <= " " for character in url):
        raise ValueError("must be an http or https address")
    return url


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


Word = Annotated[str, AfterValidator(_without_nul)]


class McpServer(Section):
    """An MCP server, as the settings, managed-mcp.json and requests name it."""

    enabled: bool = Field(default=True, description="Connect to it")
    type: Literal["http", "sse", "stdio"] = Field(
        default="http", description="How it is reached; `stdio` where there is a command and no type"
    )
    url: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None, description="Its address (http, sse)"
    )
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Headers sent to it (http, sse)")
    command: Word | None = Field(
        default=None, min_length=1, description="The program that is the server (stdio)"
    )
    args: tuple[Word, ...] = Field(default=(), description="Its arguments (stdio)")
    env: dict[str, SecretStr] = Field(
        default_factory=dict, description="Its environment, added to a command's (stdio)"
    )
    allowed_tools: tuple[Word, ...] | None = Field(
        default=None, description="Only these of its tools; all when unset"
    )
    timeout_ms: Annotated[int, BeforeValidator(jsons.whole)] = Field(
        default=30_000,
        ge=1,
        le=LONGEST_TIMEOUT_MS,
        description="How long one of its calls, and when set its start, may take",
    )
    client_id: str | None = Field(
        default=None, description="The client registered with its authorization server beforehand (http, sse)"
    )
    client_secret: SecretStr | None = Field(default=None, description="That client's secret")

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            text = value.get_secret_value()
            if not HEADER_NAME.fullmatch(name) or not text.isprintable() or not text.isascii():
                raise ValueError(f"{name[:64]!r} is not a header a request can carry")
        return headers

    @field_validator("env")
    @classmethod
    def _settable(cls, env: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if any("=" in name or "\0" in name + value.get_secret_value() for name, value in env.items()):
            raise ValueError("must be an object of texts: names without =, and no NUL")
        return env

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        needed = "command" if self.type == "stdio" else "url"
        if self.enabled and getattr(self, needed) is None:
            raise ValueError(f"needs {needed}, because its type is {self.type}")
        return self


class McpTools(Section):
    """MCP servers and how far they may reach."""

    servers: dict[str, McpServer] = Field(
        default_factory=dict,
        description="By name: `{type, url, headers}` or `{type: stdio, command, args, env}`",
    )
    client_metadata_url: str | None = Field(
        default=None,
        description="Where this host's OAuth client is described, for servers that take such an address",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that requests' servers may have although they are loopback or private"
    )


class WebTools(Section):
    """Tools of the Anthropic API that look into the web; the API runs them, not this host."""

    search: bool = Field(default=False, description="Let the model search the web (web_search)")
    fetch: bool = Field(default=False, description="Let the model read pages of the web (web_fetch)")
    max_uses: int = Field(default=5, ge=1, description="Most uses of each in one model call")
    allowed_domains: tuple[Domain, ...] = Field(
        default=(), description="Only these domains, such as `example.com` or `example.com/docs`"
    )
    blocked_domains: tuple[Domain, ...] = Field(
        default=(), description="Never these domains; not beside allowed_domains"
    )

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.allowed_domains and self.blocked_domains:
            raise ValueError("takes allowed_domains or blocked_domains, not both")
        return self


class Tools(Section):
    """What the agent's tools may do."""

    allow_read_paths: tuple[str, ...] = Field(
        default=(), description="Directories or globs outside the workspace that may be read"
    )
    allow_write_paths: tuple[str, ...] = Field(
        default=(), description="Directories or globs outside the workspace that may be read and written"
    )
    exec: ExecTool = Field(default_factory=ExecTool)
    mcp: McpTools = Field(default_factory=McpTools)
    web: WebTools = Field(default_factory=WebTools)
    plugins: dict[str, dict[str, str | int | float | bool]] = Field(
        default_factory=dict, description="Tools of installed packages: their options, by entry point"
    )
