"""The corpus files: attempts to leave the sandbox, and harmless commands that must work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

CORPUS = Path(__file__).parent / "corpus"
SIX_TOOLS = ("read_file", "write_file", "edit_file", "append_file", "list_dir", "exec")


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CORPUS / name).read_text())
    return content


def missing_programs(entry: dict[str, Any], *, harmless: bool) -> list[str]:
    """Return the programs an entry needs that this machine lacks; a harmless one needs what it names."""
    needed = list(entry.get("needs", []))
    if harmless and isinstance(entry["input"], str):
        words = re.findall(r"(?:^|[;&|(\n]\s*|xargs (?:-r )?)([a-z][a-z0-9_+-]*)", entry["input"])
        needed += [w for w in words if w in OPTIONAL]
    return [name for name in needed if shutil.which(name) is None]


OPTIONAL = frozenset(
    (
        "jq",
        "zip",
        "unzip",
        "vim",
        "ed",
        "patch",
        "cmake",
        "javac",
        "java",
        "file",
        "tmux",
        "sqlite3",
        "node",
        "npm",
        "xxd",
        "xz",
        "openssl",
        "strip",
        "ldd",
        "git",
        "pip",
    )
)
