"""The first two frames between host and supervisor: what it is to do, and what its self-test found."""

from __future__ import annotations

from typing import Any

from host.sandbox.policy import SandboxPolicy, SandboxReport


def configuration(policy: SandboxPolicy, temporary: str) -> dict[str, Any]:
    """Return the first frame; ``temporary`` is the directory of the private directories."""
    limits = policy.limits
    return {
        "workspace": str(policy.workspace),
        "temporary": temporary,
        "restrict_to_workspace": policy.restrict_to_workspace,
        "allow_read_outside_workspace": policy.allow_read_outside_workspace,
        "read_paths": list(policy.read_paths),
        "write_paths": list(policy.write_paths),
        "skill_paths": [str(path) for path in policy.skill_paths],
        "secret_paths": [str(path) for path in policy.secret_paths],
        "allow_network": policy.allow_network,
        "uid": policy.uid,
        "gid": policy.gid if policy.gid is not None else policy.uid,
        "max_landlock_abi": policy.max_landlock_abi,
        "max_level": policy.max_level,
        "path": policy.path,
        "time_zone": policy.time_zone,
        "processes": limits.processes,
        "memory": limits.memory,
        "data": limits.data,
        "file_size": limits.file_size,
        "open_files": limits.open_files,
        "output": limits.output,
        "temporary_bytes": limits.temporary,
        "reaper_idle_s": limits.reaper_idle_s,
    }


def report_of(value: Any) -> SandboxReport:
    """Read the supervisor's report."""
    return SandboxReport(
        level=int(value["level"]),
        landlock_abi=int(value["abi"]),
        layers={str(name): bool(held) for name, held in value["layers"].items()},
        missing=tuple(str(name) for name in value["missing"]),
    )
