"""Fixtures every test may use."""

from __future__ import annotations

import hypothesis
import pytest

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("picoclaw", deadline=None)
hypothesis.settings.load_profile("picoclaw")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
