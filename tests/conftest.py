"""Fixtures every test may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("picoclaw", deadline=None)
hypothesis.settings.load_profile("picoclaw")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ByFile(LoadScopeScheduling):
    """Hands out whole files, whose tests share hosts; those on the sandbox, which mostly wait, by corpus."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file != "tests/attack/test_corpus.py":
            return file
        return f"{file}::{'-'.join(test.split('-')[:-2])}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
