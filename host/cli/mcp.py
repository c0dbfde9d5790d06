"""``picoclaw mcp``: this process becomes the tool server."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def mcp_command() -> None:
    """Run the tool server on standard input and output."""
    become_tool_server()


def become_tool_server() -> NoReturn:
    """Replace this process by the tool server: standard streams, environment and process id stay.

    ``-P``: nothing is imported from the directory an agent happens to start it in.
    """
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mcp_server"])  # noqa: S606 - no shell is what we want
