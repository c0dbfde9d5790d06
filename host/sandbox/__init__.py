"""The sandbox: files and commands of agents, only where the kernel lets them."""

from __future__ import annotations

from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy, Trust
from host.sandbox.programs import running_program

__all__ = [
    "Limits",
    "Sandbox",
    "SandboxPolicy",
    "Trust",
    "running_program",
]
