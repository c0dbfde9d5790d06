"""The sandbox: files and commands of agents, only where the kernel lets them."""

from __future__ import annotations

from host.sandbox.client import Sandbox
from host.sandbox.policy import Limits, SandboxPolicy, SandboxReport, Trust
from host.sandbox.programs import running_program
from host.sandbox.wire import SandboxFault

__all__ = [
    "Limits",
    "Sandbox",
    "SandboxFault",
    "SandboxPolicy",
    "SandboxReport",
    "Trust",
    "running_program",
]
