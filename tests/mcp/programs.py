"""Programs that no one here wrote: npm's and PyPI's, pinned by lock files, installed once for all runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio

from shared import jsons

HERE: Final = Path(__file__).parent
NODE_PACKAGES: Final = HERE / "node"
MACHINE: Final = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
NPM: Final = shutil.which("npm")


def npm_ci(folder: Path) -> Path:
    """Install a folder's locked packages unless they are there; return its node_modules."""
    lock, stamp = folder / "package-lock.json", folder / "node_modules" / ".lock-digest"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    with _alone(lock):
        if not stamp.exists() or stamp.read_text() != digest:
            command = [str(NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            subprocess.run(command, cwd=folder, check=True, timeout=300)
            stamp.write_text(digest)
    return folder / "node_modules"


def node() -> str:
    """Return the node that npm brought; the machine's own may be too old for the Inspector."""
    return str(NODE_PACKAGES / "node_modules" / f"node-linux-{MACHINE}" / "bin" / "node")


def python_with(lock: Path) -> str:
    """Return the interpreter of an environment that holds exactly a lock file's packages."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder = lock.parent / ".venvs" / f"{lock.stem}-{digest[:16]}"
    with _alone(lock):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder, lock)
            (folder / "ready").touch()
    return str(folder / "bin" / "python")


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes of the test run from installing the same."""
    with file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _install(folder: Path, lock: Path) -> None:
    """uv is many times as fast, where it is there; else our own pip installs."""
    python = str(folder / "bin" / "python")
    if uv := shutil.which("uv"):
        made = [uv, "venv", "--quiet", "--python", sys.executable]
        installer = [uv, "pip", "install", "--python", python]
    else:
        made = [sys.executable, "-m", "venv", "--without-pip"]
        installer = [sys.executable, "-m", "pip", "--python", python, "install", "--no-compile"]
    for command in (
        [*made, str(folder)],
        [*installer, "--quiet", "--require-hashes", "-r", str(lock)],
    ):
        subprocess.run(command, check=True, timeout=300, stdin=subprocess.DEVNULL)


async def run(*command: str, env: dict[str, str] | None = None, cwd: Path = NODE_PACKAGES) -> Any:
    """Run a program to its end and return the JSON it printed; raises CalledProcessError."""
    compiled = {"NODE_COMPILE_CACHE": str(NODE_PACKAGES / "node_modules" / ".compiled")}
    told = {**os.environ, **compiled, **(env or {})}
    with anyio.fail_after(300):
        try:
            finished = await anyio.run_process(command, cwd=cwd, env=told)
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"{error.stdout.decode()}\n{error.stderr.decode()}\n")
            raise
    return jsons.loads(finished.stdout)
