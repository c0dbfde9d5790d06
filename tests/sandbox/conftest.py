"""A workspace that a uid of its own can reach, and sandboxes on the real kernel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from host.sandbox.client import Sandbox
from host.sandbox.policy import SandboxPolicy
from host.tools.files_and_commands import SandboxToolset
from tests.sandbox.opened import toolset


@pytest.fixture
def place() -> Iterator[Path]:
    """A world-traversable directory with ``ws`` (the workspace) and ``outside`` beside it."""
    root = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    root.chmod(0o755)
    (root / "ws" / "sub").mkdir(parents=True)
    (root / "ws" / "ok.txt").write_text("fine\n")
    (root / "ws" / "sub" / "inner.txt").write_text("inner\n")
    (root / "outside").mkdir()
    (root / "outside" / "secret.txt").write_text("outside-secret\n")
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def ws(place: Path) -> Path:
    return place / "ws"


@pytest.fixture(params=[3, 2], ids=["level 3", "level 2"])
async def sandbox(ws: Path, request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxPolicy(workspace=ws, max_level=request.param)) as running:
        yield running


@pytest.fixture
async def tools(sandbox: Sandbox) -> SandboxToolset:
    return toolset(sandbox, "conv-test")
