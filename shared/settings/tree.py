"""The whole settings tree: the sections of ``config.json`` and what operators set by environment.

And which model a run may use by it, and by what credential.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from shared.clock import checked_zone, machine_zone
from shared.errors import InvalidInput
from shared.settings.access import Auth, Channels
from shared.settings.models import (
    ANTHROPIC,
    LOCAL,
    ModelAccess,
    ModelEntry,
    address_of,
    split_model,
    unaddressed,
)
from shared.settings.sections import (
    Agents,
    Budgets,
    Env,
    Files,
    Gateway,
    Heartbeat,
    History,
    McpDoor,
    Permission,
    PrincipalBudgets,
    Principals,
    RateLimits,
    Section,
    TelemetrySettings,
    Webhooks,
    setting,
)
from shared.settings.tools import Tools

LEVELS: Final[Mapping[Any, str]] = {
    "trace": "debug", "verbose": "debug", "notice": "info", "warn": "warning",
    "err": "error", "critical": "error", "fatal": "error",
}  # fmt: skip
"""What other programs call the levels."""


class Settings(Section):
    """Everything the program was told, read once at start and handed down. Made by ``load``."""

    home: Annotated[Path, Env("PICOCLAW_HOME")] = setting("Where state and files live by default")
    config_path: Annotated[Path, Env("PICOCLAW_CONFIG", under_home="config.json")] = setting(
        "The config.json; .security.yml lies beside it"
    )

    api_token: SecretStr | None = setting(
        "Bearer token of the HTTP API, 16 characters or more; without it the host does not start", None
    )
    allow_no_token_500: bool = setting("Start without API_TOKEN: every route but /health answers 500", False)
    api_token_previous: SecretStr | None = setting(
        "The token before, accepted too while it is being rotated", None
    )
    seal_key: SecretStr | None = setting(
        "Encrypts what is kept of sign-ins at MCP servers, and secrets of webhooks; the same on "
        "all hosts of a store",
        None,
    )
    model: ModelAccess = Field(default_factory=ModelAccess)
    assistant_name: str = setting("Its name", "Pico", min_length=1)
    system_prompt_override: str | None = setting(
        "Takes the place of the built-in text of the system prompt", None
    )

    max_execution_ms: int = setting("Longest run, milliseconds", 300_000, gt=0)
    max_concurrent_runs: int = setting("Most runs at once", 64, ge=1)
    lease_ms: int = setting(
        "How long a run or a task's slot stays a host's that gives no sign, milliseconds", 30_000, ge=1000
    )
    queue_ms: int = setting("How long a run may wait for a place before it is refused, milliseconds", 0, ge=0)
    stop_grace_ms: int = setting("What running runs get when the host stops, milliseconds", 25_000, ge=0)
    session_end_marker: Annotated[str, Env("SESSION_END_MARKER", empty_counts=True)] = setting(
        "Text by which the agent ends a session; empty switches it off", "[[PICOCLAW_SESSION_END]]"
    )
    main_conversation_id: str = setting(
        "The conversation that may see all others", "main", pattern=r"^[A-Za-z0-9._:-]{1,128}$"
    )

    store_dir: Annotated[Path, Env("STORE_DIR", under_home="store")] = setting(
        "The volume that holds what must survive"
    )
    store_id: str | None = setting(
        "The only store that may lie on STORE_DIR; another, or none, stops the start", None
    )
    local_db_path: Annotated[Path, Env("LOCAL_DB_PATH", under_home="run/picoclaw.db")] = setting(
        "The database while the host runs; fast local disk"
    )
    database_url: SecretStr | None = setting(
        "PostgreSQL for several hosts (`postgresql://…`); without it the embedded database", None
    )
    database_tools_url: SecretStr | None = setting(
        "The same with the tool servers' role; without it the host makes that role", None
    )
    database_pooler: bool = setting("The address is that of a pooler in transaction mode", False)
    database_connections: int = setting("Most connections of the host to PostgreSQL", 10, ge=1, le=1000)
    org_dir: Path | None = setting("The organisation's files", None)
    skills_dir: Annotated[Path, Env("SKILLS_DIR", under_home="skills")] = setting(
        "The organisation's skills, beside those of ORG_DIR; above the built-in ones"
    )
    built_in_skills_dir: Path | None = setting("The skills that come with the program", None)
    outbound_ttl_days: int = setting("Days that delivered outbound messages are kept", 7, ge=1)
    approvals_ttl_days: int = setting(
        "Days that requests for a person's word are kept once they are decided", 90, ge=1
    )
    audit_ttl_days: int = setting("Days that the rows of the audit are kept", 365, ge=1)
    deliveries_ttl_days: int = setting(
        "Days that deliveries to webhooks are kept that could not be made", 30, ge=7
    )
    responses_ttl_days: int = setting(
        "Days that responses of /v1/responses can be read and continued", 30, ge=1
    )
    task_log_retention: int = setting("Run log rows kept for each task", 100, ge=1)
    max_tasks_per_conversation: int = setting("Most tasks a conversation may have", 100, ge=1)

    scheduler: Literal["external", "internal"] = setting(
        "What runs due tasks: the host itself, or nothing but calls of POST /task/check", "internal"
    )
    timezone: Annotated[str, Env("TZ", or_name="TIMEZONE")] = setting(
        "Time zone (also `TIMEZONE`) of the agent's clock and of schedules without one",
        default_factory=machine_zone,
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "Least severe level that is logged; `warn` and the like are known too", "info"
    )
    log_format: Literal["json", "console"] = setting("JSON lines, or lines for people", "json")
    version: Annotated[str, Env("APP_VERSION")] = setting("Version that is reported", "0.1.0")
    build_commit: str = setting("Commit that is reported", "unknown")
    build_time: str = setting("Build time that is reported", "unknown")
    sandbox_min_level: int = setting("Weakest sandbox in which file tools and commands work", 2, ge=0, le=3)
    sandbox_max_level: int = setting("2 does without namespaces, where the kernel offers them", 3, ge=2, le=3)
    sandbox_uid_base: int | None = setting(
        "First of the 30000 uids that commands of principals get where the host is root; if left "
        "out 70000, where a container has no such uid 61901 to 65519",
        None,
        ge=1000,
        le=4_000_000_000,
    )
    allow_request_stdio_mcp: bool = setting("Let requests bring MCP servers that are programs", False)

    console: bool = setting("Serve the web console at /console", False)

    auth: Auth = Field(default_factory=Auth)
    agents: Agents
    principals: Principals = Field(default_factory=Principals)
    model_list: tuple[ModelEntry, ...] = setting("`[{model_name, model, api_base, api_keys}]`", ())
    permissions: tuple[Permission, ...] = setting(
        "`[{tool, match, do}]`: calls of tools that wait for a person, or are refused", ()
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
    expanded: tuple[SecretStr, ...] = ()
    managed_mcp: Any = Field(default=None, repr=False)

    _zone = field_validator("timezone")(checked_zone)
    _level = field_validator("log_level", mode="before")(lambda level: LEVELS.get(level, level))

    @field_validator("database_url", "database_tools_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        try:
            urlsplit("" if url is None else url.get_secret_value())
        except ValueError:  # its text may hold the password
            raise ValueError("cannot be read as an address") from None
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
    def store_dirs(self) -> dict[str, Path]:
        """The store's directories by their settings; beside a PostgreSQL STORE_DIR isn't used."""
        used = {"STORE_DIR": self.store_dir} if self.database_url is None else {}
        return used | {"LOCAL_DB_PATH": self.local_db_path.parent}

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


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model and how it is reached.

    ``name`` is what people call it, ``model`` its id at the API, ``base_url`` None for Anthropic's own.
    ``api_keys`` are used in turn (the next after a 401 or a 429); ``auth_token`` goes instead of a key.
    """

    name: str
    model: str
    base_url: str | None = None
    api_keys: tuple[SecretStr, ...] = field(default=(), repr=False)
    auth_token: SecretStr | None = field(default=None, repr=False)


def model_choices(
    settings: Settings, asked: str | None = None, allowed: tuple[str, ...] | None = None
) -> tuple[ModelChoice, ...]:
    """Return the models for a run, in the order they are to be tried.

    ``asked`` is what the request wants. Without a ``model_list`` any id may be asked for; with one only its
    names: ``InvalidInput`` otherwise. The last is the fallback model, if there is one. ``allowed``: names of
    those that may be used at all; where the usual one isn't among them, the first of them is.
    """
    named = _named(settings, asked)
    if allowed is not None and named[0].name not in allowed:
        if asked is not None or not allowed:
            raise InvalidInput(f"model: {named[0].name} is not allowed; allowed: {', '.join(allowed)}")
        named = _named(settings, allowed[0])
    fallback = fallback_choice(settings)
    if fallback is None or fallback in named or (allowed is not None and fallback.name not in allowed):
        return named
    return (*named, fallback)


def model_names(settings: Settings) -> tuple[str, ...]:
    """Return the names that requests may ask for; empty when any id will do."""
    return tuple(dict.fromkeys(entry.model_name for entry in settings.models))


def configured(settings: Settings) -> tuple[ModelChoice, ...]:
    """Return every model that the settings name."""
    listed = tuple(_listed(settings, entry) for entry in settings.models)
    fallback = fallback_choice(settings)
    return (*(listed or (_plain(settings, settings.model.model),)), *([fallback] if fallback else []))


def uncountable(
    settings: Settings, budgets: PrincipalBudgets, models: Sequence[str] | None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what of such terms can't count, by its place: models that there aren't, dollars without prices.

    ``models`` None: all that the settings name.
    """
    names = model_names(settings)
    for at, name in enumerate(models or ()):
        if names and name not in (*names, settings.model.fallback_model):
            yield ("models", at), f"must be one of the names in model_list: {', '.join(names)}"
    choices = configured(settings)
    if models is not None:
        listed = [choice for choice in choices if choice.name in models]
        choices = (*listed, *(_plain(settings, name) for name in models if not names))
    unpriced = sorted({each.model for each in choices if settings.budgets.price_of(each.model) is None})
    if unpriced and not settings.offline:  # where every model is free
        for limit in budgets.in_dollars():
            yield ("budgets", limit, "dollars"), f"needs the price of {', '.join(unpriced)} in budgets.prices"


def _named(settings: Settings, asked: str | None) -> tuple[ModelChoice, ...]:
    if not settings.models:
        return (_plain(settings, asked or settings.model.model),)
    name = asked or settings.agents.defaults.model_name or settings.models[0].model_name
    found = tuple(_listed(settings, entry) for entry in settings.models if entry.model_name == name)
    if not found:
        raise InvalidInput(f"model: must be one of {', '.join(model_names(settings))}")
    return found


def fallback_choice(settings: Settings) -> ModelChoice | None:
    """Return the model to go on with when the first is overloaded, None without one."""
    name = settings.model.fallback_model
    if name is None:
        return None
    listed = (entry for entry in settings.models if entry.model_name == name)
    entry = next(listed, None)
    return _plain(settings, name) if entry is None else _listed(settings, entry)


def _plain(settings: Settings, model: str) -> ModelChoice:
    access = settings.model
    return ModelChoice(
        name=model,
        model=model,
        base_url=access.base_url,
        api_keys=(access.api_key,) if access.api_key else (),
        auth_token=access.auth_token or access.oauth_token,
    )


def _listed(settings: Settings, entry: ModelEntry) -> ModelChoice:
    """Return an entry; the general credential stands in for its keys, but only at the general address."""
    _, model = split_model(entry.model)
    general = _plain(settings, model)
    base_url = address_of(entry.model, entry.api_base) or general.base_url
    own = bool(entry.api_keys) or (base_url or ANTHROPIC) != (general.base_url or ANTHROPIC)
    return ModelChoice(
        name=entry.model_name,
        model=model,
        base_url=base_url,
        api_keys=entry.api_keys if own else general.api_keys,
        auth_token=None if own else general.auth_token,
    )
