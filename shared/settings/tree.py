"""The whole settings tree: the sections of ``config.json`` and what operators set by environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, field_validator

from shared.settings.auth import Auth
from shared.settings.channels import Channels
from shared.settings.providers import LOCAL, messages_base, split_model, unaddressed
from shared.settings.section import Env, Section
from shared.settings.sections import (
    Agents,
    Budgets,
    Files,
    Gateway,
    Heartbeat,
    History,
    McpDoor,
    ModelEntry,
    Permission,
    Principals,
    RateLimits,
    TelemetrySettings,
    Webhooks,
)
from shared.settings.tools import Tools
from shared.zones import checked_zone, machine_zone

CLAUDE: Literal["claude-sonnet-5-5"] = "claude-sonnet-5-5"


LEVELS: Final[Mapping[Any, str]] = {
    "trace": "debug", "verbose": "debug", "notice": "info", "warn": "warning",
    "err": "error", "critical": "error", "fatal": "error",
}  # fmt: skip
"""What other programs call the levels."""


class ModelAccess(Section):
    """The model that answers when ``model_list`` names none, and the credential for it."""

    api_key: Annotated[SecretStr | None, Env("ANTHROPIC_API_KEY")] = Field(
        default=None, description="API key"
    )
    auth_token: Annotated[SecretStr | None, Env("ANTHROPIC_AUTH_TOKEN")] = Field(
        default=None, description="Bearer token, instead of a key"
    )
    oauth_token: Annotated[SecretStr | None, Env("CLAUDE_CODE_OAUTH_TOKEN")] = Field(
        default=None, description="Subscription token, instead of a key"
    )
    base_url: Annotated[str | None, Env("ANTHROPIC_BASE_URL")] = Field(
        default=None, pattern=r"^https?://", description="Address of a Messages-compatible server"
    )
    model: Annotated[str, Env("CLAUDE_MODEL")] = Field(default=CLAUDE, min_length=1, description="Model id")
    fallback_model: Annotated[str | None, Env("CLAUDE_FALLBACK_MODEL")] = Field(
        default=None, description="Model id to go on with when the first is overloaded"
    )

    _base = field_validator("base_url")(messages_base)

    @property
    def has_credential(self) -> bool:
        """Whether any of the three credentials is there."""
        return any((self.api_key, self.auth_token, self.oauth_token))


class Settings(Section):
    """Everything the program was told, read once at start and handed down. Made by ``load``."""

    home: Annotated[Path, Env("PICOCLAW_HOME")] = Field(description="Where state and files live by default")
    config_path: Annotated[Path, Env("PICOCLAW_CONFIG", under_home="config.json")] = Field(
        description="The config.json; .security.yml lies beside it"
    )

    api_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of the HTTP API; without it the host does not start",
    )
    allow_no_token_500: bool = Field(
        default=False, description="Start without API_TOKEN: every route but /health answers 500"
    )
    api_token_previous: SecretStr | None = Field(
        default=None, description="The token before, accepted too while it is being rotated"
    )
    seal_key: SecretStr | None = Field(
        default=None,
        description="Encrypts what is kept of sign-ins at MCP servers, and secrets of webhooks; the same on "
        "all hosts of a store",
    )
    model: ModelAccess = Field(default_factory=ModelAccess)
    assistant_name: str = Field(default="Pico", min_length=1, description="Its name")
    system_prompt_override: str | None = Field(
        default=None, description="Takes the place of the built-in text of the system prompt"
    )

    max_execution_ms: int = Field(default=300_000, gt=0, description="Longest run, milliseconds")
    max_concurrent_runs: int = Field(default=64, ge=1, description="Most runs at once")
    lease_ms: int = Field(
        default=30_000,
        ge=1000,
        description="How long a run or a task's slot stays a host's that gives no sign, milliseconds",
    )
    queue_ms: int = Field(
        default=0, ge=0, description="How long a run may wait for a place before it is refused, milliseconds"
    )
    stop_grace_ms: int = Field(
        default=25_000, ge=0, description="What running runs get when the host stops, milliseconds"
    )
    session_end_marker: Annotated[str, Env("SESSION_END_MARKER", empty_counts=True)] = Field(
        default="[[PICOCLAW_SESSION_END]]",
        description="Text by which the agent ends a session; empty switches it off",
    )
    main_conversation_id: str = Field(
        default="main",
        pattern=r"^[A-Za-z0-9._:-]{1,128}$",
        description="The conversation that may see all others",
    )

    store_dir: Annotated[Path, Env("STORE_DIR", under_home="store")] = Field(
        description="The volume that holds what must survive"
    )
    store_id: str | None = Field(
        default=None,
        description="The only store that may lie on STORE_DIR; another, or none, stops the start",
    )
    local_db_path: Annotated[Path, Env("LOCAL_DB_PATH", under_home="run/picoclaw.db")] = Field(
        description="The database while the host runs; fast local disk"
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL for several hosts (`postgresql://…`); without it the embedded database",
    )
    database_tools_url: SecretStr | None = Field(
        default=None, description="The same with the tool servers' role; without it the host makes that role"
    )
    database_pooler: bool = Field(
        default=False, description="The address is that of a pooler in transaction mode"
    )
    database_connections: int = Field(
        default=10, ge=1, le=1000, description="Most connections of the host to PostgreSQL"
    )
    org_dir: Path | None = Field(default=None, description="The organisation's files")
    skills_dir: Annotated[Path, Env("SKILLS_DIR", under_home="skills")] = Field(
        description="The organisation's skills, beside those of ORG_DIR; above the built-in ones"
    )
    built_in_skills_dir: Path | None = Field(
        default=None, description="The skills that come with the program"
    )
    outbound_ttl_days: int = Field(
        default=7, ge=1, description="Days that delivered outbound messages are kept"
    )
    approvals_ttl_days: int = Field(
        default=90, ge=1, description="Days that requests for a person's word are kept once they are decided"
    )
    audit_ttl_days: int = Field(default=365, ge=1, description="Days that the rows of the audit are kept")
    deliveries_ttl_days: int = Field(
        default=30, ge=7, description="Days that deliveries to webhooks are kept that could not be made"
    )
    responses_ttl_days: int = Field(
        default=30, ge=1, description="Days that responses of /v1/responses can be read and continued"
    )
    task_log_retention: int = Field(default=100, ge=1, description="Run log rows kept for each task")
    max_tasks_per_conversation: int = Field(
        default=100, ge=1, description="Most tasks a conversation may have"
    )

    scheduler: Literal["external", "internal"] = Field(
        default="internal",
        description="What runs due tasks: the host itself, or nothing but calls of POST /task/check",
    )
    timezone: Annotated[str, Env("TZ", or_name="TIMEZONE")] = Field(
        default_factory=machine_zone,
        description="Time zone (also `TIMEZONE`) of the agent's clock and of schedules without one",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severe level that is logged; `warn` and the like are known too",
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="JSON lines, or lines for people"
    )
    version: Annotated[str, Env("APP_VERSION")] = Field(
        default="0.1.0", description="Version that is reported"
    )
    build_commit: str = Field(default="unknown", description="Commit that is reported")
    build_time: str = Field(default="unknown", description="Build time that is reported")
    sandbox_min_level: int = Field(
        default=2, ge=0, le=3, description="Weakest sandbox in which file tools and commands work"
    )
    sandbox_max_level: int = Field(
        default=3, ge=2, le=3, description="2 does without namespaces, where the kernel offers them"
    )
    sandbox_uid_base: int | None = Field(
        default=None,
        ge=1000,
        le=4_000_000_000,
        description="First of the 30000 uids that commands of principals get where the host is root; if left "
        "out 70000, where a container has no such uid 61901 to 65519",
    )
    allow_request_stdio_mcp: bool = Field(
        default=False, description="Let requests bring MCP servers that are programs"
    )

    console: bool = Field(default=False, description="Serve the web console at /console")

    auth: Auth = Field(default_factory=Auth)
    agents: Agents
    principals: Principals = Field(default_factory=Principals)
    model_list: tuple[ModelEntry, ...] = Field(
        default=(), description="`[{model_name, model, api_base, api_keys}]`"
    )
    permissions: tuple[Permission, ...] = Field(
        default=(), description="`[{tool, match, do}]`: calls of tools that wait for a person, or are refused"
    )
    channels: Channels = Field(default_factory=Channels)
    tools: Tools = Field(default_factory=Tools)
    heartbeat: Heartbeat = Field(default_factory=Heartbeat)
    history: History = Field(default_factory=History)
    files: Files = Field(default_factory=Files)
    webhooks: Webhooks = Field(default_factory=Webhooks)
    mcp: McpDoor = Field(default_factory=McpDoor)
    budgets: Budgets = Field(default_factory=Budgets)
    rate_limits: RateLimits = Field(default_factory=RateLimits)
    gateway: Gateway = Field(default_factory=Gateway)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)

    warnings: tuple[str, ...] = ()
    secret_names: frozenset[str] = frozenset()
    secret_keys: frozenset[str] = frozenset()
    managed_mcp: Any = Field(default=None, repr=False)

    _zone = field_validator("timezone")(checked_zone)
    _level = field_validator("log_level", mode="before")(lambda level: LEVELS.get(level, level))

    @field_validator("database_url", "database_tools_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        return url

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.gateway.host

    @property
    def port(self) -> int:
        """The port to listen on."""
        return self.gateway.port

    @property
    def memory_dir(self) -> Path:
        """The workspace, by the operator's name for it."""
        return self.agents.defaults.workspace

    @property
    def principals_dir(self) -> Path:
        """Where the directories of principals are."""
        name = "principals" if self.memory_dir.name != "principals" else "other-principals"
        return self.principals.directory or self.memory_dir.parent / name

    @property
    def config_dir(self) -> Path:
        """The directory that ``.security.yml`` and ``file://`` values live in."""
        return self.config_path.parent

    @property
    def offline(self) -> bool:
        """Whether nothing says how to reach a model, so that the embedded one answers."""
        reachable = self.model.has_credential or self.model.base_url
        return not reachable and not any(
            entry.api_keys or entry.api_base or split_model(entry.model)[0] in LOCAL for entry in self.models
        )

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The entries of ``model_list`` that have an address: the others aren't used."""
        return tuple(entry for entry in self.model_list if self.lacks(entry) is None)

    def lacks(self, entry: ModelEntry) -> str | None:
        """Return why an entry can't be used, None when its address is known."""
        if entry.api_base is not None:
            return None
        return unaddressed(entry.model, has_keys=bool(entry.api_keys), general=self.model.base_url)
