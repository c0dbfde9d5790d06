"""What the settings say about the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from host.sandbox import SandboxPolicy
from host.sandbox.policy import OBEYED, OBEYED_AS_MAIN
from host.skills.catalogue import closed_to_agents
from shared.settings import Settings

READ_ONLY_RULE: Final = (
    "What agents obey (persona, memory, skills) is changed by conversations that the operator's token began "
    "and by private chats of a channel's owners; HEARTBEAT.md by the main conversation."
)


def secret_paths(settings: Settings) -> tuple[Path, ...]:
    """Return what stays closed in every mode: the store, the configuration, the home they live in."""
    files = (settings.config_path, settings.config_dir / ".security.yml")
    database = settings.local_db_path
    return (settings.store_dir, database.parent, database.resolve().parent, settings.home, *files)


def obeyed_names(settings: Settings) -> tuple[str, ...]:
    """Return what stands in every prompt, or is loaded on its word, by its name in the workspace."""
    names = list(OBEYED)
    workspace, skills = settings.memory_dir.resolve(), settings.skills_dir.resolve()
    if skills != workspace and skills.is_relative_to(workspace):
        names.append(str(skills.relative_to(workspace)))
    return tuple(dict.fromkeys(names))


def sandbox_policy(settings: Settings) -> SandboxPolicy:
    """Return what the settings let the sandbox reach; the store and the configuration stay closed."""
    defaults, tools = settings.agents.defaults, settings.tools
    return SandboxPolicy(
        workspace=settings.memory_dir,
        restrict_to_workspace=defaults.restrict_to_workspace,
        allow_read_outside_workspace=defaults.allow_read_outside_workspace,
        read_paths=tuple(tools.allow_read_paths),
        write_paths=tuple(tools.allow_write_paths),
        skill_paths=closed_to_agents(settings),
        secret_paths=secret_paths(settings),
        exec_enabled=tools.exec.enabled,
        exec_timeout_ms=tools.exec.timeout_seconds * 1000,
        allow_network=tools.exec.allow_network,
        deny_patterns=tuple(tools.exec.custom_deny_patterns),
        allow_patterns=tuple(tools.exec.custom_allow_patterns),
        min_level=settings.sandbox_min_level,
        max_level=settings.sandbox_max_level,
        time_zone=settings.timezone,
        obeyed=obeyed_names(settings),
        obeyed_as_main=OBEYED_AS_MAIN if settings.heartbeat.enabled else (),
        read_only_because=" ".join((READ_ONLY_RULE, *settings.channels.without_owners())),
    )
