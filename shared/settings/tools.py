"""The ``tools`` section of ``config.json``: paths beyond the workspace, commands, MCP servers."""

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
from shared.settings.sections import Section, WebAddress, checked_hosts, setting

Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9*]([A-Za-z0-9.*-]*[A-Za-z0-9])?(/\S*)?$")]
"""A domain without a scheme, with a path if wanted."""
Pattern = Annotated[str, Field(min_length=1)]
"""A path or a glob: an empty one would be the directory that the host was started in."""


class ExecTool(Section):
    """The exec tool."""

    enabled: bool = setting("Offer the exec tool at all", True)
    timeout_seconds: int = setting("How long a command may take when it doesn't say", 60, ge=1)
    allow_network: bool = setting("Open TCP and UDP to commands", False)
    guard: Literal["dangerous", "strict"] = setting(
        "What the guard refuses: what is certainly destructive, or every line of a list "
        "(docs/sandbox.md), such as `rm -rf build`",
        "dangerous",
    )
    custom_deny_patterns: tuple[str, ...] = setting(
        "Regular expressions; a parsed command that matches one is refused", ()
    )
    custom_allow_patterns: tuple[str, ...] = setting(
        "Regular expressions; a parsed command that matches one passes the guard", ()
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
_OF_THE_CLIENT: Final = frozenset({"content-length", "transfer-encoding"})
"""What says where a request ends is said by who sends it."""
LONGEST_TIMEOUT_MS: Final = 600_000
STDIO_ALONE: Final = ("command", "args", "env")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


Word = Annotated[str, AfterValidator(_without_nul)]


class McpServer(Section):
    """An MCP server, as the settings, managed-mcp.json and requests name it."""

    enabled: bool = setting("Connect to it", True)
    type: Literal["http", "sse", "stdio"] = setting(
        "How it is reached; `stdio` where there is a command and no type", "http"
    )
    url: WebAddress | None = setting("Its address (http, sse)", None)
    headers: dict[str, SecretStr] = setting("Headers sent to it (http, sse)", default_factory=dict)
    command: Word | None = setting("The program that is the server (stdio)", None, min_length=1)
    args: tuple[Word, ...] = setting("Its arguments (stdio)", ())
    env: dict[str, SecretStr] = setting("Its environment, added to a command's (stdio)", default_factory=dict)
    allowed_tools: tuple[Word, ...] | None = setting("Only these of its tools; all when unset", None)
    timeout_ms: Annotated[int, BeforeValidator(jsons.whole)] = setting(
        "How long one of its calls, and when set its start, may take", 30_000, ge=1, le=LONGEST_TIMEOUT_MS
    )
    client_id: str | None = setting(
        "The client registered with its authorization server beforehand (http, sse)", None
    )
    client_secret: SecretStr | None = setting("That client's secret", None)

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        texts = {name: value.get_secret_value().strip() for name, value in headers.items()}
        for name, text in texts.items():
            unnamed = name.lower() in _OF_THE_CLIENT or not HEADER_NAME.fullmatch(name)
            if unnamed or not text.isprintable() or not text.isascii():
                raise ValueError(f"{name[:64]!r} is not a header a request can carry")
        return {name: SecretStr(text) for name, text in texts.items()}

    @field_validator("env")
    @classmethod
    def _settable(cls, env: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if any("=" in name or "\0" in name + value.get_secret_value() for name, value in env.items()):
            raise ValueError("must be an object of texts: names without =, and no NUL")
        return env

    @property
    def unused(self) -> list[str]:
        """What has no effect: fields of the other type, and credentials within the address; as sentences."""
        names = ("url", "headers", "client_id", "client_secret") if self.type == "stdio" else STDIO_ALONE
        found = [f"{name} has no effect: its type is {self.type}" for name in names if getattr(self, name)]
        within = self.type != "stdio" and "@" in urlsplit(self.url or "").netloc
        return [*found, "credentials don't belong into its url: use headers"] if within else found

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        needed = "command" if self.type == "stdio" else "url"
        if self.enabled and getattr(self, needed) is None:
            raise ValueError(f"needs {needed}, because its type is {self.type}")
        return self


class McpTools(Section):
    """MCP servers and how far they may reach."""

    servers: dict[str, McpServer] = setting(
        "By name: `{type, url, headers}` or `{type: stdio, command, args, env}`", default_factory=dict
    )
    client_metadata_url: str | None = setting(
        "Where this host's OAuth client is described, for servers that take such an address", None
    )
    allowed_hosts: tuple[str, ...] = setting(
        "Hosts that requests' servers may have although they are loopback or private", ()
    )

    _hosts = field_validator("allowed_hosts")(checked_hosts)


class WebTools(Section):
    """Tools of the Anthropic API that look into the web; the API runs them, not this host."""

    search: bool = setting("Let the model search the web (web_search)", False)
    fetch: bool = setting("Let the model read pages of the web (web_fetch)", False)
    max_uses: int = setting("Most uses of each in one model call", 5, ge=1)
    allowed_domains: tuple[Domain, ...] = setting(
        "Only these domains, such as `example.com` or `example.com/docs`", ()
    )
    blocked_domains: tuple[Domain, ...] = setting("Never these domains; not beside allowed_domains", ())

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.allowed_domains and self.blocked_domains:
            raise ValueError("takes allowed_domains or blocked_domains, not both")
        return self


class Tools(Section):
    """What the agent's tools may do."""

    allow_read_paths: tuple[Pattern, ...] = setting(
        "Directories or globs outside the workspace that may be read", ()
    )
    allow_write_paths: tuple[Pattern, ...] = setting(
        "Directories or globs outside the workspace that may be read and written", ()
    )
    exec: ExecTool = Field(default_factory=ExecTool)
    mcp: McpTools = Field(default_factory=McpTools)
    web: WebTools = Field(default_factory=WebTools)
    plugins: dict[str, dict[str, str | int | float | bool]] = setting(
        "Tools of installed packages: their options, by entry point", default_factory=dict
    )
