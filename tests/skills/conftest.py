"""The sandbox's workspace, for skills that run in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import lay_out, make_place, ws

__all__ = ["place", "ws"]


@pytest.fixture
def place() -> Iterator[Path]:
    root = make_place()
    lay_out(root)
    yield root
    shutil.rmtree(root, ignore_errors=True)
