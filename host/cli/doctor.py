"""``picoclaw doctor``: what is right and wrong with this installation, and what mends it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
import httpx2

from host.cli.client import HostClient, Json, find_target, surroundings
from host.cli.start import UNGUARDED, guessable, lacks_temporary_files, local_url, passphrase_asker
from host.cli.terminal import HostFault, judged, tell
from host.models.access import ModelAccess, Route, deprecated
from host.models.process import ModelProcess
from host.ports import Delta, ModelError, Target
from host.runs.scheduler import EXTERNAL
from host.runs.webhooks import CLEAR_SECRETS
from host.telemetry import Telemetry
from host.volumes import cure, misplaced, nearest
from shared.clock import local, now_ms
from shared.errors import PicoError, StoreError
from shared.redact import Redactor
from shared.settings import Settings, SettingsError, load
from shared.settings.models import ANTHROPIC
from shared.settings.secret_values import secret_values
from shared.settings.security_yml import NAME, exposed
from shared.store.sqlite.content import FULL, PROBE_BYTES

if TYPE_CHECKING:
    from host.sandbox.policy import Isolation, SandboxPolicy, SandboxReport

MODEL_S: Final = 20.0
TRIAL: Final = {"max_tokens": 16, "messages": [{"role": "user", "content": "Say yes."}]}
OFFLINE: Final = (
    "no key and no address: the embedded offline model answers. Set ANTHROPIC_API_KEY for a real one"
)
HEALTH_S: Final = 5.0
MCP_S: Final = 60.0
SANDBOX_WITHIN_S: Final = 20.0

Verdict = Literal["ok", "note", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome; ``said`` holds what mends a fault."""

    check: str
    verdict: Verdict
    said: str


def doctor(json: Json = False) -> None:
    """Check settings, secrets, volumes, sandbox and model; exit code 1 when something is wrong."""
    findings = list(_findings())
    lines = [judged(each.verdict, each.check, each.said) for each in findings]
    tell(list(map(asdict, findings)), "\n".join(lines), json=json)
    if any(finding.verdict == "fault" for finding in findings):
        raise SystemExit(1)


def _findings() -> Iterator[Finding]:
    try:
        settings = load(surroundings(os.environ), passphrase_asker())
    except SettingsError as error:
        yield from (Finding("settings", "fault", fault) for fault in error.faults)
        return
    yield Finding(
        "host", "ok", f"{local_url(settings.host, settings.port)}, with its home in {settings.home}"
    )
    there = os.path.exists(settings.config_path)
    from_where = f"{settings.config_path} and" if there else f"there is no {settings.config_path};"
    yield Finding("settings", "ok", f"{from_where} the environment can be used")
    yield from _warnings(settings)
    yield _token(settings)
    yield Finding("time zone", "ok", local(now_ms(), settings.timezone))
    yield from _volumes(settings)
    if fault := lacks_temporary_files():
        yield Finding("temporary files", "fault", fault)
    else:
        yield from _whole("sandbox", lambda: _sandbox(settings))
    yield from _skills(settings)
    yield from _whole("model", lambda: _models(settings))
    yield from (Finding("model", "note", said) for said in deprecated(settings))
    yield from _channels(settings)
    yield from _mcp_servers(settings)
    yield from _tasks(settings)
    yield from _webhooks(settings)


def _whole(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; what it cannot do is its finding too."""
    try:
        yield from findings()
    except OSError as error:
        yield Finding(check, "fault", f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (PicoError, StoreError) as error:
        yield Finding(check, "fault", str(error))


def _tasks(settings: Settings) -> Iterator[Finding]:
    """Ask the host that runs here, if one does; without one only the settings tell."""
    try:
        answer = httpx2.get(
            f"{local_url(settings.host, settings.port)}/health", timeout=HEALTH_S, trust_env=False
        )
        scheduler = answer.json()["scheduler"]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError):
        if settings.scheduler == "external" and settings.heartbeat.enabled:
            yield Finding("tasks", "note", EXTERNAL)
        return
    note = scheduler["note"]
    verdict: Verdict = "fault" if scheduler["overdue"] else "note" if note else "ok"
    yield Finding("tasks", verdict, note or "none is overdue")


def _webhooks(settings: Settings) -> Iterator[Finding]:
    """Ask the host that runs here, if one does."""
    target = find_target(local_url(settings.host, settings.port), None, os.environ)
    with suppress(HostFault), HostClient(target) as client:
        if settings.seal_key is None and client.request("GET", "/webhooks")["webhooks"]:
            yield Finding("webhooks", "note", CLEAR_SECRETS)


def _mcp_servers(settings: Settings) -> Iterator[Finding]:
    """Ask the host that runs here, which connects to each; without one nothing is known of them."""
    if not settings.tools.mcp.servers and not settings.managed_mcp:
        return
    url = local_url(settings.host, settings.port)
    try:
        with HostClient(find_target(url, None, os.environ)) as client:
            servers = client.request("GET", "/mcp/servers", timeout=MCP_S)["servers"]
    except HostFault as fault:
        yield Finding("MCP servers", "note", f"they are looked at while the host runs: {fault}")
        return
    for server in servers:
        problems = " ".join(server["problems"])
        said = f"ready, {len(server['tools'])} tools, about {server['tokens']:,} tokens of a request"
        ready = server["state"] == "ready"
        verdict: Verdict = "fault" if not ready else "note" if problems else "ok"
        yield Finding(
            f"MCP server {server['name']}", verdict, f"{said}. {problems}".strip() if ready else problems
        )


def _warnings(settings: Settings) -> Iterator[Finding]:
    warning = exposed(settings.config_dir / NAME)
    for said in settings.warnings:
        yield Finding(
            "secrets" if said == warning else "settings", "fault" if said == warning else "note", said
        )
    if not warning and (settings.config_dir / NAME).exists():
        yield Finding("secrets", "ok", f"{settings.config_dir / NAME} is yours alone")


def _token(settings: Settings) -> Finding:
    if settings.api_token is None:
        return Finding("API token", "fault", UNGUARDED)
    if fault := guessable(settings):
        return Finding("API token", "fault", fault)
    return Finding("API token", "ok", "set")


def _volumes(settings: Settings) -> Iterator[Finding]:
    if faults := [Finding("volumes", "fault", said) for said in misplaced(settings)]:
        yield from faults
        return
    yield _volume("workspace", settings.memory_dir)
    for name, path in settings.store_dirs.items():
        yield _volume("store" if name == "STORE_DIR" else "database", path)
    found = _volume("principals", settings.principals_dir)
    # An installation without principals needs none; an image brings an empty one along.
    needed = False
    with suppress(OSError):
        needed = any(settings.principals_dir.iterdir())
    yield found if needed or found.verdict == "ok" else dataclasses.replace(found, verdict="note")
    yield from _whole("store", lambda: (_store(settings),))
    workspace = settings.memory_dir.resolve()
    for path in (settings.store_dir, settings.local_db_path, settings.config_dir):
        if path.resolve().is_relative_to(workspace):
            said = f"{path} lies inside the workspace, where the agent could change it; move it out"
            yield Finding("workspace", "fault", said)


def _volume(name: str, path: Path) -> Finding:
    place = nearest(path)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(PROBE_BYTES))
            said = f"{path} is writable" if place == path else f"{path} will be made"
            return Finding(name, "ok", said)
    except OSError as error:
        mends = "; make room there" if error.errno in FULL else f".{cure(path, error)}"
        return Finding(name, "fault", f"{path} is not writable ({error.strerror}){mends}")


def _store(settings: Settings) -> Finding:
    from shared.store.volume.opening import identity, must_be

    if settings.database_url is not None:
        return _database(settings.database_url.get_secret_value(), pooled=settings.database_pooler)
    must_be(settings.store_dir, settings.store_id)
    there = identity(settings.store_dir)
    if there is None:
        said = (
            f"{settings.store_dir} has no store yet: the first start makes one (or mount its volume before)"
        )
        return Finding("store", "note", said)
    pinned = "" if settings.store_id else f"; STORE_ID={there} makes a start refuse any other, or none"
    return Finding("store", "ok", f"{settings.store_dir} has the store {there}{pinned}")


def _database(url: str, *, pooled: bool) -> Finding:
    from shared.store.postgres.opening import ask

    return Finding("store", "ok", f"DATABASE_URL answers: PostgreSQL {anyio.run(ask, url, pooled)}")


def _sandbox(settings: Settings) -> Iterator[Finding]:
    from host.cli.sandbox import quiet
    from host.sandbox.policy import sandbox_policy
    from host.skills.catalogue import closed_to_agents

    # A workspace that isn't there yet is root's or this user's, as the one that the start makes.
    with tempfile.TemporaryDirectory() as stand_in, quiet():
        policy = sandbox_policy(settings, closed_to_agents(settings))
        if not os.path.isdir(policy.workspace):
            policy = dataclasses.replace(policy, workspace=Path(stand_in))
        report = anyio.run(_tried, policy)
    lacking = f"; missing: {', '.join(report.missing)}" if report.missing else ""
    level = f"level {report.level}{lacking}"
    if report.level < settings.sandbox_min_level:
        said = (
            f"{level}, and SANDBOX_MIN_LEVEL asks for {settings.sandbox_min_level}. "
            "Use a newer kernel, or let the container use Landlock and seccomp"
        )
        yield Finding("sandbox", "fault", said)
    else:
        yield Finding("sandbox", "ok", f"{level}; commands run as {_user(report.uid)}")
    yield _isolation(settings, report.isolation)
    for warning in report.warnings:
        yield Finding("commands", "note", warning)


def _isolation(settings: Settings, found: Isolation) -> Finding:
    wanted = settings.principals.isolation
    visible = f"; commands of one see of others: {', '.join(found.visible)}" if found.visible else ""
    if found.level == "uid" or found.level == wanted:
        return Finding("principals", "ok", f"kept apart ({found.level}){visible}")
    said = f"can't be made: {found.reason}; principals.isolation is {wanted}"
    return Finding("principals", "note", f"{said}{visible}")


async def _tried(policy: SandboxPolicy) -> SandboxReport:
    from host.sandbox.client import Sandbox

    async with Sandbox(policy) as sandbox:
        with anyio.move_on_after(SANDBOX_WITHIN_S):
            await sandbox.ready()
        return sandbox.report


def _user(uid: int | None) -> str:
    """Return a uid for people, with its name if it has one."""
    try:
        return f"{pwd.getpwuid(uid or 0).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _skills(settings: Settings) -> Iterator[Finding]:
    from host.skills.catalogue import built_in_dir
    from host.skills.knowledge import Knowledge, directly

    knowledge = Knowledge(
        directly(settings.memory_dir, hard_links=False),
        workspace_dir=settings.memory_dir,
        built_in_dir=built_in_dir(settings),
        org_dir=settings.org_dir,
        skills_dir=settings.skills_dir,
    )
    found = anyio.run(knowledge.look).skills
    for problem in found.problems:
        yield Finding("skills", "note", f"{problem.path}: {problem.problem}")
    yield Finding("skills", "ok", f"{len(found.effective)} can be loaded: {', '.join(found.effective)}")


def _models(settings: Settings) -> Iterator[Finding]:
    """Ask each way to a model that a run would take, in its order, by the client that a run takes."""
    if settings.offline:
        yield Finding("model", "note", OFFLINE)
        return
    from host.cli.sandbox import quiet

    with quiet():
        outcomes = anyio.run(_asked, settings)
    none = all(error for _, error in outcomes)
    for way, error in outcomes:
        passing = error is not None and error.retryable and error.status is not None
        verdict: Verdict = "ok" if error is None else "note" if passing and not none else "fault"
        yield Finding("model", verdict, f"{way} {f'fails: {error.sentence}' if error else 'answers'}")


async def _asked(settings: Settings) -> list[tuple[str, ModelError | None]]:
    """Return each way to the models, and what became of a request for a few tokens."""
    redactor, numbers = Redactor(secret_values(settings)), Counter[Target]()
    outcomes = list[tuple[str, ModelError | None]]()
    async with ModelProcess() as process:
        models = ModelAccess(settings, process, Telemetry().ask, redactor.text)
        for way in (way for model in models.models() for way in model.routes):
            numbers[way.target] += 1
            name = f"{way.target.model} at {way.target.address or ANTHROPIC}, key {numbers[way.target]},"
            outcomes.append((name, await _failure(way, redactor)))
    return outcomes


async def _failure(way: Route, redactor: Redactor) -> ModelError | None:
    try:
        with anyio.fail_after(MODEL_S):
            await way.credential.ask({**TRIAL, "model": way.target.model}, _unheard)
    except ModelError as error:
        error.said = redactor.text(error.said)
        return error
    except (PicoError, TimeoutError) as error:
        return ModelError(str(error) or f"No answer in {MODEL_S:.0f} s", retryable=False)
    return None


def _unheard(delta: Delta) -> None:
    """Pieces of an answer don't matter: that there is one does."""


def _channels(settings: Settings) -> Iterator[Finding]:
    if not any(channel.enabled for channel in settings.channels.by_name().values()):
        return
    from host.channels.service import faults

    for said in settings.channels.without_owners():
        yield Finding("owners", "note", said)
    for name, fault in faults(settings):
        yield Finding(f"channel {name}", "fault" if fault else "ok", fault or "it can be used")
