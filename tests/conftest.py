"""Fixtures every test may use."""

from __future__ import annotations

import gc
import importlib
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.examples import examples
from tests.made_once import make_once

if TYPE_CHECKING:
    from xdist.remote import Producer

# What a shell starts in the background ignores it, and with it what the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("picoclaw", deadline=None, max_examples=examples(100))
hypothesis.settings.load_profile("picoclaw")

make_once()
# Modules and tests stay: looking for garbage among them doubles what collecting takes.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


PROCESSES = frozenset(
    {"host", "hosts", "make_host", "apart", "fetching", "hooked_host", "host_of_two", "open_host", "web_host"}
    | {"own_api", "join", "sandbox", "tools", "world", "browser", "make_page"}
)
"""Fixtures that start what a quick run does without; tests that start it themselves have the mark."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only what needs no host's process, nor a browser")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        importlib.import_module("tests.running").HostProcess.allowed = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        left = {
            item
            for item in items
            if PROCESSES & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("processes")
        }
        config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]


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
