"""What would be allowed, and why: for people who set a policy up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from host.sandbox.guard import DANGEROUS, Guard
from host.sandbox.policy import SandboxPolicy, SandboxReport

SAFE_DEVICES = tuple(f"/dev/{name}" for name in ("null", "zero", "random", "urandom"))
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")


def explain_path(policy: SandboxPolicy, path: str) -> str:
    """Return one sentence: what file tools and commands may do with a path under this policy."""
    workspace = policy.workspace.resolve()
    expanded = Path(path).expanduser() if path.startswith("~") else Path(path)
    real = os.path.realpath(workspace / expanded)
    return next(_reasons(policy, str(workspace), real))


def _reasons(policy: SandboxPolicy, workspace: str, real: str) -> Iterator[str]:
    if real in SAFE_DEVICES:
        yield f"{real}: read and write, a device that is safe for all tools"
    if _beneath(real, workspace):
        yield f"{real}: read and write, inside the workspace {workspace}"
    for skills in policy.skill_paths:
        if _beneath(real, os.path.realpath(skills)):
            yield f"{real}: read only, a skill in {skills}"
    for secret in policy.secret_paths:
        if _beneath(real, os.path.realpath(secret)):
            yield f"{real}: closed, {secret} stays secret in every mode"
    for pattern in policy.write_paths:
        if _matches(real, pattern):
            yield f"{real}: read and write, by tools.allow_write_paths {pattern}"
    for pattern in policy.read_paths:
        if _matches(real, pattern):
            yield f"{real}: read only, by tools.allow_read_paths {pattern}"
    if not policy.restrict_to_workspace:
        yield f"{real}: read and write as far as its permissions go, restrict_to_workspace is off"
    if policy.allow_read_outside_workspace:
        yield f"{real}: read only, allow_read_outside_workspace is on"
    if any(_beneath(real, os.path.realpath(top)) for top in SYSTEM):
        yield f"{real}: commands may read and execute it, it is part of the system; file tools may not"
    if _beneath(real, "/etc") or _beneath(real, "/proc"):
        yield f"{real}: commands may read it if it is one of the files that programs need; file tools may not"
    yield f"{real}: closed, outside the workspace {workspace}"


def explain_command(policy: SandboxPolicy, report: SandboxReport, command: str) -> str:
    """Return whether a command line would be run, and if not, why."""
    if not policy.exec_enabled:
        return "refused: exec is switched off (tools.exec.enabled)"
    if report.level < policy.min_level:
        missing = ", ".join(report.missing)
        return (
            f"refused: the sandbox reaches level {report.level}, {policy.min_level} is required ({missing})"
        )
    refusal = Guard(policy, policy.workspace).refusal(command)
    if refusal is None:
        network = "with" if policy.allow_network else "without"
        alone = " in namespaces of its own," if report.level >= 3 else ""
        return f"runs at level {report.level},{alone} {network} network; the kernel decides about its files"
    why = "a certainly destructive command" if refusal == DANGEROUS else "a path outside what it may reach"
    return f"refused by the guard ({why}): {refusal}"


def _beneath(path: str, root: str) -> bool:
    return root == "/" or path == root or path.startswith(f"{root}/")


def _matches(path: str, pattern: str) -> bool:
    """Return whether a path lies at or below what an anchored glob names, part by part."""
    wanted = [part for part in pattern.split("/") if part]
    parts = [part for part in path.split("/") if part][: len(wanted)]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
