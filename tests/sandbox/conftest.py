"""A workspace that a uid of its own can reach, and sandboxes on the real kernel.

A test that takes ``sandbox`` has one of its own, which it may break; those that only take ``tools`` share one
per module, on a workspace that is laid out anew for each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset

CONVERSATION = "conv-test"


def make_place() -> Path:
    root = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    root.chmod(0o755)
    for name in ("ws", "outside"):
        (root / name).mkdir()
    return root


def lay_out(place: Path) -> None:
    """Put into the workspace and beside it what every test finds there, and nothing else."""
    for directory in (place / "ws", place / "outside"):
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    (place / "ws" / "sub").mkdir()
    (place / "ws" / "ok.txt").write_text("fine\n")
    (place / "ws" / "sub" / "inner.txt").write_text("inner\n")
    (place / "outside" / "secret.txt").write_text("outside-secret\n")
    owner = (place / "ws").stat()
    for path in (place / "ws").rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)


def only_talks(request: pytest.FixtureRequest) -> bool:
    return "tools" in request.fixturenames and "sandbox" not in request.fixturenames


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A world-traversable directory with ``ws`` (the workspace) and ``outside`` beside it."""
    shared = only_talks(request)
    root: Path = request.getfixturevalue("shared_place") if shared else make_place()
    lay_out(root)
    yield root
    if not shared:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def ws(place: Path) -> Path:
    return place / "ws"


@pytest.fixture(scope="module", params=[3, 2], ids=["level 3", "level 2"])
def level(request: pytest.FixtureRequest) -> int:
    assert isinstance(request.param, int)
    return request.param


@pytest.fixture
async def sandbox(ws: Path, level: int) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxPolicy(workspace=ws, max_level=level)) as running:
        yield running


@pytest.fixture(scope="module")
def shared_place(level: int) -> Iterator[Path]:
    root = make_place()
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
async def shared_sandbox(shared_place: Path, level: int) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxPolicy(workspace=shared_place / "ws", max_level=level)) as running:
        yield running


@pytest.fixture
async def shared_tools(ws: Path, shared_sandbox: Sandbox) -> AsyncIterator[SandboxToolset]:
    yield toolset(shared_sandbox, CONVERSATION)
    await shared_sandbox.forget(CONVERSATION)


@pytest.fixture
def tools(request: pytest.FixtureRequest, ws: Path, level: int) -> SandboxToolset:
    tools: SandboxToolset
    if only_talks(request):
        tools = request.getfixturevalue("shared_tools")
    else:
        sandbox: Sandbox = request.getfixturevalue("sandbox")
        tools = toolset(sandbox, CONVERSATION)
    return tools
