"""docs/cli.md, made of what the commands say to ``--help``: ``python -m tests.docs.cli_page docs/cli.md``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HEAD: Final = """# Command line

This page is generated from what the commands say to `--help`. Commands find the host by one rule:
[which host a command is about](configuration.md#know-which-host-a-command-is-about).

## Exit codes

| Code | Command | Meaning |
|---|---|---|
| 0 | all | it worked |
| 1 | all | it failed; the sentence on standard error says why |
| 1 | `serve`, `dev` | it may work at the next try: the disk is full, another host has the store or the port |
| 1 | `chat`, `tasks run`, `runs wait` | the run ended as something other than `success` |
| 1 | `doctor` | a check found a fault |
| 1 | `store check` | a fault in the store; nothing is changed |
| 2 | all | an option or a setting is wrong, or only the operator can mend it: trying again changes nothing |
| 2 | all | the host refuses the token, or it lacks one |
| 137 | `supervise` | the host had to be killed after `STOP_WAIT_SECONDS`; else the host's own exit code |

With `--json` a command writes one line of JSON to standard output, and everything else to standard error
(`mcp login` two: the address, and what came of it).
`tasks check` and `store export` always write JSON, a line for each check and each row.
"""


def page() -> str:
    """Return the page."""
    environment = {**os.environ, "TYPER_USE_RICH": "0", "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    command = [sys.executable, "-m", "tests.docs.cli_page"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return f"{HEAD}\n{told.stdout.rstrip()}\n"


def sections() -> Iterator[str]:
    """Yield the section of each command; typer has to be without rich."""
    import typer
    from typer.testing import CliRunner

    from host.cli import make_app

    app = make_app()
    for words in _commands(typer.main.get_command(app), ()):
        said = CliRunner().invoke(app, [*words, "--help"], prog_name="picoclaw").output
        yield f"## `{' '.join(('picoclaw', *words))}`\n\n```text\n{said.strip()}\n```\n"


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield words
        return
    for name, each in below.items():
        yield from _commands(each, (*words, name))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page())
    else:
        print("\n".join(sections()))
