"""A host under attack: keeps secrets in its environment and memory, serves the tools on stdin/stdout.

One JSON object a line: ``{"tool", "input", "conversation", "limits", "policy"}``; answers with
text and error.
Run as a process of its own, so that the test beside it can be the judge, and so that it can have any uid.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio

from host.ports import Allowance, SandboxFault, Trust, Workspace
from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy
from host.tools.files_and_commands import SandboxToolset

NAMES = {"procs": "processes", "mem": "memory", "data": "data", "fsize": "file_size"}


async def main() -> None:
    world = json.loads(sys.stdin.readline())  # not an argument: command lines can be read by everybody
    secret = ctypes.create_string_buffer(world["memory_canary"].encode())
    async with contextlib.AsyncExitStack() as stack:
        sandboxes: dict[str, Sandbox] = {}

        async def sandbox(limits: dict[str, int]) -> Sandbox:
            key = json.dumps(limits, sort_keys=True)
            if key not in sandboxes:
                sandboxes[key] = await stack.enter_async_context(Sandbox(policy(world, limits)))
            return sandboxes[key]

        trust = Trust.MAIN if world["trusted"] else Trust.UNTRUSTED
        first = await sandbox({})
        report = await first.ready()
        say(
            {
                "level": report.level,
                "missing": report.missing,
                "pid": os.getpid(),
                "memory": ctypes.addressof(secret),
            }
        )
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            try:
                request = json.loads(line)
                say(await serve(request, sandbox, attacker(world, request, trust)))
            except SandboxFault as fault:  # one call's; the next may find another supervisor
                say({"fault": str(fault)})


def policy(world: dict[str, Any], limits: dict[str, int]) -> SandboxPolicy:
    outside, root = Path(world["outside"]), Path(world["workspace"])
    principal = world["principal"]
    return SandboxPolicy(
        workspace=root if principal is None else root.parents[1] / "operator",
        # nothing but that it is another principal's keeps what is outside closed then
        secret_paths=(outside,) if principal is None else (),
        principals=None if principal is None else root.parent,
        isolation="weak",
        uids=range(principal, principal + 2) if os.geteuid() == 0 and principal else range(0),
        allow_patterns=("",),  # the guard stands aside: what is tried is the kernel's wall
        uid=world.get("uid"),
        max_landlock_abi=world.get("max_landlock_abi"),
        max_level=world["max_level"],
        restrict_to_workspace=world["restricted"],
        limits=Limits(**{NAMES[name]: value for name, value in limits.items()}),
    )


def attacker(world: dict[str, Any], request: dict[str, Any], trust: Trust) -> Workspace:
    """Return where the calls of a conversation are made."""
    root, principal = Path(world["workspace"]), world["principal"]
    if principal is None:
        return Workspace(request["conversation"], root, trust)
    allowance = Allowance(principal if os.geteuid() == 0 else None, (str(root), f"{root}.conversations"))
    return Workspace(request["conversation"], root, trust, allowance)


async def serve(request: dict[str, Any], sandbox: Any, workspace: Workspace) -> dict[str, Any]:
    running: Sandbox = await sandbox(request.get("limits") or {})
    if request.get("op") == "temporary":
        return await running.request("place", workspace, {})
    if request.get("op") == "forget":
        await running.forget(request["conversation"])
        return {}
    tools = SandboxToolset(running, running.policy, workspace)
    result = await tools.call(request["tool"], request["input"])
    return {"text": result.text, "is_error": result.is_error}


def say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main)
