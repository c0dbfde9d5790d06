"""``picoclaw init``: the directories and files of a new home; what is there is never touched."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from host.cli.client import Json
from host.cli.start import HOMES_MODE, write_new
from host.cli.terminal import fail, shown, tell
from shared.settings import load
from shared.settings.security_yml import NAME

CONFIG = """{
  "version": 3,
  "agents": {
    "defaults": {
      "restrict_to_workspace": true,
      "model_name": "default"
    }
  },
  "model_list": [
    {"model_name": "default", "model": "claude-sonnet-5-5"}
  ]
}
"""

SECURITY = """# Secrets of PicoClaw, for your eyes alone: keep the mode at 0600.
# `picoclaw secrets` edits this file and keeps its comments.
#
# model_list:
#   default: {{api_keys: ["sk-..."]}}
# channels:
#   telegram: {{token: "123:abc"}}

api_token: "{token}"

# Encrypts what is kept of sign-ins at MCP servers. The same on all hosts that share a store.
seal_key: "{seal_key}"
"""

PERSONA = """# Who you are here

Write down what the agent should always know: who you are, how it should sound, what it must not do.
"""

NEXT = """

Next:
  picoclaw secrets set model_list.default.api_keys   the model's key (or ANTHROPIC_API_KEY)
  picoclaw doctor                                    check everything
  picoclaw serve                                     start the host
  picoclaw chat                                      talk to it"""


def init(json: Json = False) -> None:
    """Make a home: config.json, .security.yml with an API token, workspace; changes nothing that is there."""
    settings = load(os.environ, making=True)
    made = [
        *_directories(HOMES_MODE, settings.home),
        *_directories(0o755 if HOMES_MODE & 1 else 0o700, settings.skills_dir),
        *_directories(0o700, settings.config_dir, settings.memory_dir, settings.local_db_path.parent),
        *_file(settings.config_path, CONFIG),
        *_file(settings.config_dir / NAME, new_secrets()),
        *_file(settings.memory_dir / "CLAUDE.md", PERSONA),
    ]
    lines = [f"made {shown(str(path))}" for path in made]
    words = "\n".join(lines or ["Everything is there already; nothing was changed."])
    tell({"made": [str(path) for path in made]}, words + NEXT, json=json)


def new_secrets() -> str:
    """Return a .security.yml with secrets that were just made."""
    return SECURITY.format(token=secrets.token_urlsafe(32), seal_key=secrets.token_urlsafe(32))


def _directories(mode: int, *paths: Path) -> list[Path]:
    return [path for path in paths if _directory(path, mode)]


def _directory(path: Path, mode: int) -> bool:
    if path.exists():
        return False
    try:
        path.mkdir(parents=True, mode=mode)
        path.chmod(mode)
    except OSError as error:
        fail(f"{path} cannot be made: {error.strerror}", 2)
    return True


def _file(path: Path, text: str) -> list[Path]:
    try:
        return [path] if write_new(path, text) else []
    except OSError as error:
        fail(f"{path} cannot be made: {error.strerror}", 2)
