"""What sections of ``config.json`` are made of, and most of them: agents, budgets, gateway, rate limits."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_core import PydanticUndefined


class SettingsError(Exception):
    """The settings cannot be used: a sentence for each fault, with file, line and key, never a value."""

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(dict.fromkeys(faults))
        super().__init__("\n".join(self.faults))


class Section(BaseModel):
    """A node of the tree: immutable, no coercion, no unknown keys, no values in its errors."""

    # Built when first used: the root validates the whole tree, so the nodes never need to be (saves 10 ms).
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True
    )


@dataclass(frozen=True, slots=True)
class Env:
    """The operator's environment name of a field; one at the root has its own in capitals otherwise.

    ``under_home``: the field is a path whose default is this name below ``$PICOCLAW_HOME``.
    ``empty_counts``: an empty value is a value; elsewhere it is the same as unset.
    ``or_name``: another name of it, which is weaker.
    """

    name: str
    under_home: str | None = None
    empty_counts: bool = False
    or_name: str | None = None


def setting(meaning: str, default: Any = PydanticUndefined, **bounds: Any) -> Any:
    """Declare a field: what it means, its default (without one it has to be given), its bounds."""
    return Field(default, description=meaning, **bounds)


def web_address(url: str) -> str:
    """Return an address that requests can be sent to. Raises ValueError."""
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(character <= " " for character in url):
        raise ValueError("must be an http or https address")
    return url


WebAddress = Annotated[str, AfterValidator(web_address)]
Dollars = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AgentDefaults(Section):
    """What an agent may reach and how long it may go on, unless something narrower is said."""

    workspace: Annotated[Path, Env("MEMORY_DIR", under_home="workspace")] = setting(
        "Directory the agent works in"
    )
    restrict_to_workspace: bool = setting(
        "Keep file tools and commands inside the workspace and the allowed paths", True
    )
    allow_read_outside_workspace: bool = setting(
        "Let file tools and commands read beyond the workspace, never what the host hides", False
    )
    workspace_scope: Literal["principal", "conversation", "shared"] = setting(
        "One workspace for each principal, or a directory for each conversation besides the main "
        "one; `shared` is read as `principal`",
        "principal",
    )
    model_name: str | None = setting(
        "Entry of `model_list` that answers when nothing else is asked for", None, min_length=1
    )
    max_tokens: int = setting("Most tokens of one reply", 8192, ge=1)
    max_tool_iterations: int = setting("Most model calls of one run", 50, ge=1)
    thinking: bool = setting("Let the model think before it answers, unless a request says", False)
    max_thinking_tokens: int = setting("Most tokens of thinking in one reply", 4096, ge=1024)
    stream_timeout_seconds: int = setting(
        "Silence after which a model's answer that has begun is given up and asked for again", 90, ge=1
    )
    thinking_type: Literal["auto", "adaptive", "enabled"] = setting(
        "How a model is asked to think: as it sees fit, with a budget, or by what it takes", "auto"
    )


class Principals(Section):
    """Where principals other than the operator work, and how far they must be apart."""

    directory: Annotated[Path | None, Env("PRINCIPALS_DIR")] = setting(
        "Their directories; `principals` beside the workspace if left out", None
    )
    isolation: Literal["uid", "weak"] = setting(
        "`uid`: principals can be made where the sandbox reaches level 3, or level 2 with a uid "
        "for each; `weak` takes level 2 without",
        "uid",
    )


class Permission(Section):
    """A rule about calls of tools: the first one of a list that fits counts."""

    tool: str = setting("Name of the tool; `*` stands for anything", min_length=1, max_length=200)
    match: str | None = setting(
        "What the call does: a command, path, address or text, where `*` stands for anything",
        None,
        max_length=1000,
    )
    do: Literal["allow", "ask", "deny"] = setting("`ask`: it waits for a person; `deny`: it is not made")


class Agents(Section):
    """Agents."""

    defaults: AgentDefaults


class Heartbeat(Section):
    """The main agent's regular look at its HEARTBEAT.md."""

    enabled: bool = setting("Wake the main agent regularly", False)
    interval: int = setting("Minutes between two heartbeats", 30, ge=1)


class Files(Section):
    """Files that programs bring and fetch over HTTP."""

    max_mb: int = setting("Largest file that can be sent, MiB", 1024, ge=1, le=1 << 20)
    picture_hosts: tuple[str, ...] = setting(
        "Hosts that `/v1` fetches pictures from (`image_url`); `*`: any public one by `https`; "
        "one that is named may be loopback, private or `http`",
        (),
    )


def checked_hosts(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of hosts; raises ``ValueError`` for what is none and would let nobody in."""
    if any(re.search(r"[/\s]", name) for name in given):
        raise ValueError("must hold names alone, such as agents.example.com: no scheme, no path")
    return given


class Webhooks(Section):
    """Receivers that are told how runs end."""

    allowed_hosts: tuple[str, ...] = setting(
        "Names that receivers may have although they are loopback, private or `http`", ()
    )

    _hosts = field_validator("allowed_hosts")(checked_hosts)


class McpDoor(Section):
    """Other agents at /mcp."""

    approvals: bool = setting(
        "People may allow calls through clients with API_TOKEN, as through those with `approve`", False
    )


class History(Section):
    """Long conversations: what doesn't fit into the model's window is summed up."""

    window: int = setting("Tokens that fit into a model's window, its answer included", 200_000, ge=2_000)
    windows: dict[str, Annotated[int, Field(ge=2_000)]] = setting(
        "The same for single models, by model id", default_factory=dict
    )
    compact_at: float = setting(
        "Part of the window from which on older turns are summed up", 0.8, ge=0.1, le=1
    )
    archive: bool = setting("Write turns that were summed up to `conversations/` in the workspace", True)


class Limit(Section):
    """How much may be spent; nothing set means no limit."""

    tokens: int | None = setting("Most tokens, input and output together", None, ge=1)
    dollars: Dollars | None = setting("Most US dollars, by `budgets.prices`", None)


class Price(Section):
    """US dollars per million tokens of one model; cached input costs what other input does unless said."""

    input: Dollars = setting("Fresh input")
    output: Dollars = setting("Output, thinking included")
    cache_read: Dollars | None = setting("Input read from the cache; unset: as `input`", None)
    cache_write: Dollars | None = setting("Input written to the cache; unset: as `input`", None)


class PrincipalBudgets(Section):
    """What a principal may spend: in a run, in a conversation, on a day with all it does."""

    run: Limit = Field(default_factory=Limit)
    conversation: Limit = Field(default_factory=Limit)
    day: Limit = Field(default_factory=Limit)

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        limits = (self.run, self.conversation, self.day)
        return any(bound is not None for limit in limits for bound in (limit.tokens, limit.dollars))

    def in_dollars(self) -> list[str]:
        """Return which limits are in dollars."""
        limits = {"run": self.run, "conversation": self.conversation, "day": self.day}
        return [name for name, limit in limits.items() if limit.dollars is not None]


DATE = re.compile(r"([-@](\d{3,8}|\d{4}-\d\d-\d\d|latest)(-v\d+(:\d+)?)?)?")
"""What follows a model's name in its dated ids, as Anthropic, OpenAI, Vertex and Bedrock write them."""


class Budgets(PrincipalBudgets):
    """Spending limits: a run that would pass one pauses and asks."""

    prices: dict[str, Price] = setting(
        "Per model id: `{input, output, cache_read, cache_write}`", default_factory=dict
    )

    def price_of(self, model: str) -> Price | None:
        """Return a model's price, which also holds for its dated ids, and for no other model's."""
        known = [name for name in self.prices if model.startswith(name) and DATE.fullmatch(model, len(name))]
        return self.prices[max(known, key=len)] if known else None


class RateLimits(Section):
    """How often callers may ask; 0 switches a limit off."""

    requests_per_minute: int = setting("Requests of one API token, or of one principal, in a minute", 0, ge=0)
    messages_per_minute: int = setting("Messages of one sender in a minute", 0, ge=0)
    failed_auth_per_minute: int = setting("Failed authentications of one address", 20, ge=0)


V4_IN_V6 = 96
"""Bits before the IPv4 address in ``::ffff:a.b.c.d`` (RFC 4291, section 2.5.5.2)."""


def checked_proxies(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks in their standard form; raises ``ValueError`` with a sentence."""
    return tuple(_checked(item) for item in given)


def is_address(name: str) -> bool:
    """Return whether a host's name is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def peers(proxies: tuple[str, ...]) -> list[str]:
    """Return the networks as a listening socket may see them: IPv4 also as IPv6 writes it."""
    networks = [ip_network(item) for item in proxies]
    mapped = [
        f"::ffff:{network.network_address}/{V4_IN_V6 + network.prefixlen}"
        for network in networks
        if isinstance(network, IPv4Network)
    ]
    return [*map(str, networks), *mapped]


def _checked(item: str) -> str:
    try:
        network = ip_network(item)
    except ValueError:
        raise ValueError("must hold addresses or networks only, such as 10.0.0.7 or 10.0.0.0/8") from None
    if network.prefixlen == 0:
        raise ValueError("must not hold everybody: any caller could then choose the address it comes from")
    return str(network)


class Gateway(Section):
    """Where the host listens, and who may stand between it and its callers."""

    host: Annotated[str, Env("HOST")] = setting("Address to listen on", "127.0.0.1", min_length=1)
    port: Annotated[int, Env("PORT")] = setting("Port; 0 takes a free one", 9000, ge=0, le=65535)
    trusted_proxies: Annotated[tuple[str, ...], Env("TRUSTED_PROXIES")] = setting(
        "Addresses and networks of the proxies in front, whose X-Forwarded-For is believed", ()
    )
    allowed_hosts: tuple[str, ...] = setting(
        "Names under which /mcp may be called, besides localhost and IP addresses; `*` is any", ()
    )

    _proxies = field_validator("trusted_proxies")(checked_proxies)
    _hosts = field_validator("allowed_hosts")(checked_hosts)


class TelemetrySettings(Section):
    """OpenTelemetry: where traces and metrics go; nothing is sent without an endpoint."""

    endpoint: Annotated[WebAddress | None, Env("OTEL_EXPORTER_OTLP_ENDPOINT")] = setting(
        "Base address of an OTLP collector (HTTP)", None
    )
    headers: Annotated[SecretStr | None, Env("OTEL_EXPORTER_OTLP_HEADERS")] = setting(
        "Headers for it: `name=value,name=value`", None
    )
    service_name: Annotated[str, Env("OTEL_SERVICE_NAME")] = setting(
        "Name that it shows there", "picoclaw", min_length=1
    )
    sample: float = setting("Part of the traces that is kept, unless the caller decided", 1.0, ge=0, le=1)
    capture_content: bool = setting("Send what people, model and tools say too, redacted", False)

    def header_values(self) -> dict[str, str]:
        """Return the headers by name."""
        pairs = (self.headers.get_secret_value() if self.headers else "").split(",")
        named = (pair.partition("=") for pair in pairs if "=" in pair)
        return {name.strip().lower(): value.strip() for name, _, value in named}
