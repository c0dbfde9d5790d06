"""The ``picoclaw`` command.

``serve``, ``dev``, ``supervise`` and ``mcp`` start long-lived processes: they are dispatched here, before
anything of the command line's own libraries is imported (Typer alone is 40 ms).
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def main() -> None:
    """Run the command of ``sys.argv`` and end the process with its exit code."""
    match sys.argv[1:]:
        case ["serve"]:
            from host.cli.serve import serve

            sys.exit(serve())
        case ["dev"]:
            from host.cli.dev import dev

            sys.exit(dev())
        case ["supervise"]:
            from host.cli.supervise import supervise

            sys.exit(supervise())
        case ["mcp"]:
            become_tool_server()
        case _:
            from host.cli.app import make_app

            make_app(sys.argv[1] if len(sys.argv) > 1 else None)()


def become_tool_server() -> NoReturn:
    """Run the tool server on standard input and output.

    It replaces this process: standard streams, environment and process id stay. ``-P``: nothing is imported
    from the directory an agent happens to start it in.
    """
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mcp_server"])  # noqa: S606 - no shell is what we want
